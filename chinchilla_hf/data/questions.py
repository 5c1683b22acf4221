"""
Questions about texts, with answers that are parts of them: SQuAD's files, tables or the Hub, as [`load_questions`]
finds them, and the windows that a model is trained on and scored with.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, Value

from ..answer_windows import EncodedText, RankedSpans, Window, WindowCutter, rank_spans
from ..pipeline_chinchilla_answering import pad_rows
from .columns import described
from .tables import TableReader, check_reading_options, choose_splits, one_table

logger = logging.getLogger(__name__)

ON_BAD_ROW = ("stop", "skip")
COLUMNS = ("question", "context", "answers")
_FEATURES = Features(
    {
        "id": Value("string"),
        "question": Value("string"),
        "context": Value("string"),
        "answers": {"text": [Value("string")], "answer_start": [Value("int64")]},
    }
)


@dataclass(frozen=True)
class QuestionData:
    """
    Questions, split.

    Args:
        splits: `train`, `validation` and `test`, each with the columns `id`, `question`, `context` and `answers`, which
            is `{"text": [...], "answer_start": [...]}`, with empty lists where the context has no answer.
        num_bad: rows left out of each split, because a text was empty or an answer not where it is said to be.
        has_unanswerable: whether there are training questions without an answer, as in SQuAD 2.
        fingerprint: a hash of all texts and answers, and how they are split.
    """

    splits: DatasetDict
    num_bad: dict[str, int]
    has_unanswerable: bool
    fingerprint: str

    def summary(self) -> str:
        """One line for the user."""
        parts = []
        for name, split in self.splits.items():
            without = sum(not answers["text"] for answers in split["answers"])
            parts.append(f"{name} {len(split):,}" + (f" ({without:,} without an answer)" if without else ""))
        bad = ", ".join(f"{count:,} of {name}" for name, count in self.num_bad.items() if count)
        return f"questions: {', '.join(parts)}" + (f" (left out: {bad})" if bad else "")


def load_questions(
    dataset: str,
    *,
    dataset_config: str | None = None,
    validation_file: str | None = None,
    test_file: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    test_split: str | None = None,
    on_bad_row: str = "stop",
    validation_share: float = 0.1,
    test_share: float = 0.1,
    max_rows: int | None = None,
    seed: int = 42,
    encoding: str = "utf-8",
    encoding_errors: str = "strict",
) -> QuestionData:
    """
    Load questions about texts.

    `dataset` is one of these; what is here on disk goes before the Hub:

    - a JSON file as of SQuAD 1 or 2, articles with paragraphs with questions (also `.gz`, `.bz2`, `.xz`)
    - a table with the columns `question`, `context`, `answers` and, if questions have one, `id` (`.jsonl`, `.json`,
      `.parquet`); `answers` is `{"text": [...], "answer_start": [...]}`, or a list of `{"text": ..., "answer_start":
      ...}`; without any, the context has no answer
    - a folder of such files, named by split: `train-v2.0.json`, `dev-v2.0.json`, ...
    - the name of a data set on the Hub

    A missing validation or test split is taken from the training questions, all questions about a context together, so
    that no context is on both sides. Splits that are given stay as they are.

    Args:
        dataset: see above.
        dataset_config: which configuration of a Hub data set.
        validation_file, test_file: a file or folder of its own for that split.
        train_split, validation_split, test_split: names of splits, where they are not the usual ones.
        on_bad_row: at a row with an empty text, or an answer that does not stand in the context where it is said to,
            `"stop"`, or `"skip"` and count it.
        validation_share, test_share: share of the training contexts for a split that has to be made.
        max_rows: at most so many rows a split, the first ones: for a quick trial.
        seed: of the splits made.
        encoding, encoding_errors: of text files; `encoding_errors="replace"` reads past undecodable bytes.

    Raises:
        FileNotFoundError: no such file, folder or Hub data set.
        ValueError: columns that are not there, a bad row, an id that occurs twice, or nothing to train on. The message
            names the row and says what to do.
    """
    if on_bad_row not in ON_BAD_ROW:
        raise ValueError(f"on_bad_row is {on_bad_row!r}, but must be one of {', '.join(ON_BAD_ROW)}: choose one")
    check_reading_options(validation_share, test_share, max_rows, encoding, encoding_errors, unit="contexts")
    reader = TableReader(encoding, encoding_errors, None, True)
    wanted = {"train": train_split, "validation": validation_split, "test": test_split}
    files = {name: file for name, file in (("validation", validation_file), ("test", test_file)) if file is not None}
    tables = choose_splits(reader.read(dataset, dataset_config), wanted, set(files), dataset)
    for name, file in files.items():
        read = reader.read(file)
        tables[name] = one_table(read, name, wanted[name] if len(read) > 1 else None, file)

    rows: dict[str, list[dict[str, Any]]] = {}
    num_bad: dict[str, int] = {}
    for name in wanted:
        if name in tables:
            every = _rows(tables[name], name)
            rows[name] = _good_rows(every, on_bad_row)
            num_bad[name] = len(every) - len(rows[name])
            _check_split(rows[name], name, len(every))
    shares = {"validation": validation_share, "test": test_share}
    _hold_out(rows, {name: share for name, share in shares.items() if name not in rows}, seed)
    rows = {name: rows[name][:max_rows] for name in wanted}
    if not any(row["answers"]["text"] for row in rows["train"]):
        raise ValueError("no training question has an answer, so there is nothing to learn: check the column 'answers'")
    columns = ("id", *COLUMNS)
    splits = DatasetDict(
        {
            name: Dataset.from_dict({column: [row[column] for row in split] for column in columns}, features=_FEATURES)
            for name, split in rows.items()
        }
    )
    has_unanswerable = any(not row["answers"]["text"] for row in rows["train"])
    return QuestionData(splits, num_bad, has_unanswerable, _fingerprint(rows))


def _rows(table: Dataset, split: str) -> list[dict[str, Any]]:
    """Rows of one form: `id`, `question`, `context`, `answers` as two lists, and `where`, which names the row."""
    if "paragraphs" in table.column_names:  # SQuAD's own files: articles
        questions = [
            {**question, "context": paragraph.get("context")}
            for paragraphs in table["paragraphs"]
            for paragraph in paragraphs or []
            for question in paragraph.get("qas") or []
        ]
    else:
        missing = [name for name in COLUMNS if name not in table.column_names]
        if missing:
            raise ValueError(
                f"the {split} split lacks {', '.join(map(repr, missing))}; its columns are {described(table)}: give "
                "SQuAD's own file, or a table with the columns question, context and answers"
            )
        columns = [table[name][:] for name in table.column_names]
        questions = [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]
    rows = []
    for number, row in enumerate(questions, start=1):
        identity = row.get("id")
        where = f"row {number:,} of the {split} split" + ("" if identity is None else f" (id {identity!r})")
        unanswerable = row.get("is_impossible") is True
        rows.append(
            {
                "id": str(number) if identity is None else str(identity),
                "question": row.get("question"),
                "context": row.get("context"),
                "answers": _answers(None if unanswerable else row.get("answers"), where),
                "where": where,
            }
        )
    return rows


def _answers(value: Any, where: str) -> dict[str, list[Any]]:
    """`{"text": [...], "answer_start": [...]}` of either form."""
    if isinstance(value, dict) and {"text", "answer_start"} <= set(value):
        texts, starts = value["text"], value["answer_start"]
        if isinstance(texts, str):  # one answer, without lists
            texts, starts = [texts], [starts]
        texts, starts = list(texts or []), list(starts or [])
    elif value is None or (isinstance(value, list) and all(isinstance(answer, dict) for answer in value)):
        texts = [answer.get("text") for answer in value or []]
        starts = [answer.get("answer_start") for answer in value or []]
    else:
        texts = None
    if texts is None or len(texts) != len(starts):
        raise ValueError(
            f"the answers of {where} are {value!r:.80}, but must be {{'text': [...], 'answer_start': [...]}} or a list "
            "of {'text': ..., 'answer_start': ...}"
        )
    return {"text": texts, "answer_start": starts}


def _good_rows(rows: list[dict[str, Any]], on_bad_row: str) -> list[dict[str, Any]]:
    faults = [_fault(row) for row in rows]
    first, count = next(filter(None, faults), None), len(faults) - faults.count(None)
    if first is not None and on_bad_row == "stop":
        raise ValueError(
            f"{first} ({count:,} of {len(rows):,} rows {'is' if count == 1 else 'are'} bad): correct it, or pass "
            "on_bad_row='skip' to leave out such rows"
        )
    return [row for row, fault in zip(rows, faults, strict=True) if fault is None]


def _fault(row: dict[str, Any]) -> str | None:
    """What is wrong with a row, or `None`."""
    where = row["where"]
    for name in ("question", "context"):
        if row[name] is not None and not isinstance(row[name], str):
            return f"the {name} of {where} is {row[name]!r:.60}, and no text"
        if not (row[name] or "").strip():
            return f"the {name} of {where} is empty"
    context = row["context"]
    for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
        if not isinstance(text, str) or not text.strip():
            return f"an answer of {where} is {text!r:.60}, and no text"
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            return f"the answer {text!r:.60} of {where} begins at {start!r}, which is no place in the context"
        if context[start : start + len(text)] != text:
            found = context[start : start + len(text)]
            actual = context.find(text)
            hint = f"it stands at {actual}" if actual >= 0 else "it stands nowhere in the context"
            return (
                f"the answer {text!r:.60} of {where} should begin at character {start} of the context, where "
                f"{found!r:.60} stands; {hint}"
            )
    return None


def _check_split(rows: list[dict[str, Any]], name: str, num_all: int) -> None:
    if not rows:
        raise ValueError(f"of the {num_all:,} rows of the {name} split none is left: check the file")
    seen: dict[str, str] = {}
    for row in rows:
        if row["id"] in seen:
            raise ValueError(
                f"{row['where']} has the id of {seen[row['id']]}, but scores go by the id: give every question its own"
            )
        seen[row["id"]] = row["where"]


def _hold_out(rows: dict[str, list[dict[str, Any]]], shares: dict[str, float], seed: int) -> None:
    """Take splits from the training rows, by contexts drawn at random."""
    if not shares:
        return
    contexts = list(dict.fromkeys(row["context"] for row in rows["train"]))
    counts = {name: round(share * len(contexts)) for name, share in shares.items()}
    if min(counts.values()) < 1 or sum(counts.values()) >= len(contexts):
        raise ValueError(
            f"the training questions are about {len(contexts)} contexts, too few to take {' and '.join(shares)} from: "
            "give more, or files for these splits"
        )
    order = [contexts[i] for i in np.random.default_rng(seed).permutation(len(contexts))]
    for name, count in counts.items():
        taken, order = set(order[:count]), order[count:]
        rows[name] = [row for row in rows["train"] if row["context"] in taken]
        rows["train"] = [row for row in rows["train"] if row["context"] not in taken]


def _fingerprint(rows: dict[str, list[dict[str, Any]]]) -> str:
    digest = hashlib.sha256()
    for name, split in rows.items():
        digest.update(name.encode())
        for row in split:
            answers = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
            for part in (row["id"], row["question"], row["context"], *(f"{start} {text}" for text, start in answers)):
                digest.update(part.encode(errors="surrogatepass") + b"\0")
            digest.update(b"\1")
    return digest.hexdigest()[:16]


class QuestionWindows(torch.utils.data.Dataset):
    """
    A split's windows, as a Trainer takes them: `input_ids`, `token_type_ids` where the tokenizer has them,
    `start_positions` and `end_positions`.

    The first answer of a question is learned. In a window that does not hold all of it, and where there is none, both
    positions are 0, which is the first special token.

    Args:
        split: of [`QuestionData`].
        cutter: makes the windows.
        on_bad_row: at a question that leaves no room for the context, or a text or an answer without a token, `"stop"`,
            or `"skip"` and count it.
        sort: the longest windows first, so that batches in this order have little padding; else as the questions are.

    Attributes:
        num_bad: questions left out.
        num_cut: questions whose answer is whole in no window, because it is longer than the overlap.
        answer_lengths: of the answers, in tokens.

    Raises:
        ValueError: at a bad question; it is named.
    """

    def __init__(self, split: Dataset, cutter: WindowCutter, on_bad_row: str = "stop", sort: bool = False):
        self.cutter = cutter
        questions = [question.strip() for question in split["question"]]
        contexts = split["context"][:]
        distinct = list(dict.fromkeys(contexts))
        encoded = dict(zip(distinct, cutter.encode(distinct), strict=True))
        self.questions: list[EncodedText] = cutter.encode(questions)
        self.contexts: list[EncodedText] = [encoded[context] for context in contexts]
        self.ids: list[str] = split["id"][:]
        self.answers: list[dict[str, list[Any]]] = split["answers"][:]
        self.answer_lengths: list[int] = []
        self.num_bad = self.num_cut = 0
        self._windows: list[tuple[int, Window, int, int]] = []  # question, window, first and last token of the answer
        self._good: list[int] = []
        for number in range(len(split)):
            try:
                windows, answer = self._cut(number)
            except ValueError as error:
                if on_bad_row == "stop":
                    raise ValueError(f"at the question with the id {self.ids[number]!r}: {error}") from None
                self.num_bad += 1
                continue
            self._good.append(number)
            self._windows += [(number, window, *answer) for window in windows]
            if answer != (-1, -1):
                self.answer_lengths.append(answer[1] - answer[0] + 1)
                self.num_cut += not any(_holds(window, *answer) for window in windows)
        if not self._good:
            raise ValueError("no question fits into a window: raise max_length")
        if sort:
            self._windows.sort(key=lambda item: -self._length(item))

    def _cut(self, number: int) -> tuple[list[Window], tuple[int, int]]:
        context, answers = self.contexts[number], self.answers[number]
        windows = self.cutter.windows(self.questions[number], context)
        if not answers["text"]:
            return windows, (-1, -1)
        start, text = answers["answer_start"][0], answers["text"][0]
        first, last = context.tokens_of(start, start + len(text))
        if last < first:
            raise ValueError(f"the answer {text[:60]!r} has no token of its own, so it cannot be learned: leave it out")
        return windows, (first, last)

    def _length(self, item: tuple[int, Window, int, int]) -> int:
        number, window, _, _ = item
        return len(self.questions[number].ids) + window.last - window.first + self.cutter.num_special_tokens

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row, special ones included."""
        return list(map(self._length, self._windows))

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, window, first, last = self._windows[index]
        row: dict[str, Any] = dict(self.cutter.row(self.questions[number], self.contexts[number], window))
        inside = _holds(window, first, last)
        row["start_positions"] = window.offset + first - window.first if inside else 0
        row["end_positions"] = window.offset + last - window.first if inside else 0
        return row

    def rank(self, start_logits: Any, end_logits: Any, max_answer_length: int, with_null: bool) -> list[RankedSpans]:
        """
        The best span of every question that was not left out, in their order.

        Args:
            start_logits, end_logits: `(windows, length)`, in the order of this data set, arrays or tensors.
            max_answer_length: in tokens.
            with_null: see [`rank_spans`].
        """
        starts, ends = np.asarray(start_logits), np.asarray(end_logits)
        if len(starts) != len(self):
            raise ValueError(f"there are logits of {len(starts)} windows, but {len(self)} windows: give those of all")
        of_question: dict[int, list[int]] = {number: [] for number in self._good}
        for index, (number, *_) in enumerate(self._windows):
            of_question[number].append(index)
        return [
            rank_spans(
                self.contexts[number],
                [self._windows[i][1] for i in indices],
                [starts[i] for i in indices],
                [ends[i] for i in indices],
                max_answer_length,
                with_null=with_null,
            )
            for number, indices in of_question.items()
        ]

    def texts(self, ranked: Sequence[RankedSpans]) -> list[str]:
        """The text of each best span, as it stands in the context."""
        contexts = [self.contexts[number].text for number in self._good]
        return [
            context[spans.spans[0].start : spans.spans[0].end] if spans.spans else ""
            for context, spans in zip(contexts, ranked, strict=True)
        ]

    @property
    def asked(self) -> list[str]:
        """Every question that was not left out."""
        return [self.questions[number].text for number in self._good]

    @property
    def references(self) -> list[dict[str, Any]]:
        """Id and answers of every question that was not left out, as [`chinchilla_hf.answer_metrics`] takes them."""
        return [{"id": self.ids[number], "answers": self.answers[number]} for number in self._good]


def _holds(window: Window, first: int, last: int) -> bool:
    return window.first <= first and last < window.last


@dataclass(frozen=True)
class WindowCollator:
    """Batches of [`QuestionWindows`], padded to their longest row."""

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        positions = ("start_positions", "end_positions")
        inputs = [{name: value for name, value in row.items() if name not in positions} for row in rows]
        batch = pad_rows(inputs, self.pad_token_id)
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in positions}

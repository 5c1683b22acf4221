"""
Sentences with a label for every word, from wherever they are to train, validation and test splits.

    data = load_tagged("conll2000", label_column="-1")  # a folder with train.txt and test.txt; a file; a Hub name
    data.splits["train"][0]  # {"tokens": ["He", "reckons", ...], "labels": [1, 3, ...]}
    tokenized = tokenize_tagged(data.splits, tokenizer, max_length=128)  # what a Trainer takes

Labels with prefixes (IOB1, IOB2, BIOES, BILOU, BMES) are read as entities, as the package seqeval reads them, and
written as IOB2, which `pipeline("token-classification")` puts together again. Plain labels stay as they are.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Sequence as ListOf
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .columns import described, is_text, type_name
from .tables import (
    SPLIT_NAMES,
    TableReader,
    check_reading_options,
    choose_splits,
    one_table,
    split_in,
    table_suffix,
)

logger = logging.getLogger(__name__)

IGNORED = -100  # the label of what is neither trained on nor scored, in torch's cross-entropy and on the Hub
# Names of columns; those of a later line are looked for where none of an earlier one is there.
TOKEN_NAMES = (("tokens", "words"), ("token", "word", "form", "forms", "text"))
LABEL_NAMES = (("tags", "labels", "label"), ("ner_tags", "ner"), ("chunk_tags",), ("pos_tags", "pos", "upos"))
# Files with a word and its labels on a line, and an empty line between sentences.
COLUMN_SUFFIXES = (".conll", ".conllu", ".txt", ".tsv", ".iob", ".iob1", ".iob2", ".bio", ".bioes", ".tags")
CONLLU = ".conllu"
_COLUMN = "column_"
_PREFIXED = re.compile(r"([BIESLUM])(?:[-_](.+))?")
# Prefixes of BILOU and BMES, as those of BIOES, which seqeval knows.
_PREFIXES = {"L": "E", "U": "S", "M": "I"}
_BARE_TYPE = "entity"  # of labels that are a prefix and nothing more
_LONGEST_SENTENCE = 5_000  # of one that is a whole file: the empty lines are missing


@dataclass(frozen=True)
class TaggedData:
    """
    Three splits, ready to be tokenized.

    Args:
        splits: `train`, `validation`, `test`; columns `tokens`, the words, and `labels`, an id for each, or -100.
        label_names: names by id: `O`, `B-PER`, `I-PER`, ... for entities, else the labels of the data.
        token_column, label_column: where words and labels come from.
        num_missing_removed: sentences without a word or without a label, over all splits.
        num_seen_in_train: split -> sentences whose words are a sentence of `train`, too.
        fingerprint: SHA-256 over all words and labels, for the run record.
    """

    splits: DatasetDict
    label_names: list[str]
    token_column: str
    label_column: str
    num_missing_removed: int
    num_seen_in_train: dict[str, int]
    fingerprint: str

    def summary(self) -> str:
        """Sentences, words and the share of every kind of label, for people to read: one line a split."""
        lines = [f"{self.token_column} -> {self.label_column}: {len(self.label_names)} labels"]
        for name, split in self.splits.items():
            labels = [label for row in split["labels"] for label in row if label != IGNORED]
            counts = Counter(re.sub("^[BI]-", "", self.label_names[label]) for label in labels)
            shares = [f"{kind} {count / len(labels):.1%}" for kind, count in counts.most_common(8)]
            lines.append(f"  {name:<10} {len(split):>9,} sentences {len(labels):>10,} words   {', '.join(shares)}")
        return "\n".join(lines)


@dataclass
class _Sentences:
    """Sentences of one split: words, and the name of the label of each, `None` where it is ignored."""

    tokens: list[list[str]]
    labels: list[list[str | None]]

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, indices: Sequence[int]) -> "_Sentences":
        return _Sentences([self.tokens[i] for i in indices], [self.labels[i] for i in indices])

    def kinds(self) -> set[str]:
        """Labels without the prefix that says where in an entity a word stands."""
        return {re.sub("^[BI]-", "", label) for row in self.labels for label in row if label is not None}


def load_tagged(
    dataset: str,
    *,
    dataset_config: str | None = None,
    validation_file: str | None = None,
    test_file: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    test_split: str | None = None,
    token_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 42,
    max_rows: int | None = None,
    encoding: str = "utf-8",
    encoding_errors: str = "strict",
) -> TaggedData:
    """
    Load sentences of labelled words, and split them.

    `dataset` is one of these; what is here on disk goes before the Hub:

    - a file of columns: a word a line, its labels beside it after tabs or spaces, an empty line between sentences
      (CoNLL; `.conllu` as in Universal Dependencies)
    - a file `.json`, `.jsonl`, `.parquet` (also compressed) with lists of words and of labels
    - a folder of such files, named by split (`train.txt`, `dev.txt`), or written by `save_to_disk`
    - the name of a data set on the Hub

    A missing validation or test split is taken from the training sentences at random, equal ones together, so that none
    is on both sides; those with the only words of a kind of label stay. Splits that are given stay as they are.

    Args:
        dataset: see above.
        dataset_config: which configuration of a Hub data set.
        validation_file, test_file: a file or folder of its own for that split.
        train_split, validation_split, test_split: names of splits, where they are not the usual ones.
        token_column, label_column: names of columns; in a file of columns their numbers, from 0, or from the end: -1.
            By default found by their names; in a file of columns the first and the last, in `.conllu` form and UPOS.
        class_names: of labels that are numbers, in the order of their ids.
        validation_share, test_share: share of the training sentences for a split that has to be made.
        seed: of the splits made, and of `max_rows`.
        max_rows: at most so many sentences a split, drawn at random after all checks: for a quick trial.
        encoding, encoding_errors: of text files; `encoding_errors="replace"` reads past undecodable bytes.

    Raises:
        FileNotFoundError: no such file, folder or Hub data set.
        ValueError: the data cannot be read, are ambiguous, or cannot be trained on. The message says what to do.
    """
    check_reading_options(validation_share, test_share, max_rows, encoding, encoding_errors)
    reader = TableReader(encoding, encoding_errors, delimiter=None, quoting=True)
    wanted = {"train": train_split, "validation": validation_split, "test": test_split}
    files = {name: file for name, file in (("validation", validation_file), ("test", test_file)) if file is not None}
    tables = choose_splits(_read(reader, dataset, dataset_config), wanted, set(files), dataset)
    for name, file in files.items():
        tables[name] = one_table(_read(reader, file), name, wanted[name], file)

    chosen = (
        _choose_column(tables["train"], "token_column", token_column, TOKEN_NAMES),
        _choose_column(tables["train"], "label_column", label_column, LABEL_NAMES),
    )
    if chosen[0] == chosen[1]:
        raise ValueError(f"the words and their labels are both column {chosen[0]!r}: choose another label_column")
    demanded = {"train", *files, *(name for name, split in wanted.items() if split is not None)}
    sentences: dict[str, _Sentences] = {}
    num_missing = 0
    for name, table in tables.items():
        part, missing = _clean(name, table, chosen, class_names)
        num_missing += missing
        if len(part):
            sentences[name] = part
        elif name in demanded:
            raise ValueError(
                f"no sentence of split {name!r} has words ({chosen[0]}) and labels ({chosen[1]}): pass other columns "
                "as token_column and label_column"
            )
        else:
            logger.warning("the split %s has no labels: leaving it out", name)
    declared = list(class_names or _declared_names(tables["train"], chosen[1]))
    names = _unify_labels(sentences, declared, chosen[1])

    shares = {"validation": validation_share, "test": test_share}
    _make_splits(sentences, {name: share for name, share in shares.items() if name not in sentences}, seed)
    seen = {tuple(row) for row in sentences["train"].tokens}
    num_seen = {name: sum(tuple(row) in seen for row in sentences[name].tokens) for name in ("validation", "test")}
    if max_rows is not None:
        rng = np.random.default_rng(seed)
        for name, part in sentences.items():
            sentences[name] = part.select(sorted(rng.permutation(len(part))[:max_rows].tolist()))
    data = TaggedData(
        splits=_build_splits(sentences, names),
        label_names=names,
        token_column=chosen[0],
        label_column=chosen[1],
        num_missing_removed=num_missing,
        num_seen_in_train=num_seen,
        fingerprint=_fingerprint(sentences, names),
    )
    logger.info("%s", data.summary())
    return data


# ---- Files ----


def _read(reader: TableReader, source: str, config: str | None = None) -> dict[str, Dataset]:
    """Tables by split; those of a file of columns are called `column_0`, `column_1`, ... and hold lists of strings."""
    path = Path(source).expanduser()
    if path.is_file() and table_suffix(path) in ("", ".tsv"):
        return {"train": _read_columns(reader, path)}
    if path.is_dir():
        inside = {file: file.relative_to(path).parts for file in sorted(path.rglob("*")) if file.is_file()}
        files = {file: split_in(parts) for file, parts in inside.items() if file.suffix.lower() in COLUMN_SUFFIXES}
        if files and not any(table_suffix(file) not in ("", ".tsv") for file in inside):
            splits: dict[str, Dataset] = {}
            for file, split in files.items():
                if split is None and len(files) > 1:
                    logger.info("leaving out %s: no split is in its name", file)
                elif split in splits:
                    raise ValueError(f"{path} has two files for the split {split!r}, one of them {file.name}: keep one")
                else:
                    splits[split or "train"] = _read_columns(reader, file)
            return splits
    return reader.read(source, config)


def _read_columns(reader: TableReader, path: Path) -> Dataset:
    """A row a sentence, a column for every column of the lines."""
    with reader.explained(path):
        lines = reader.text(path).split("\n")
    is_conllu = path.suffix.lower() == CONLLU
    rows: list[list[list[str]]] = [[]]
    first: tuple[int, list[str]] | None = None
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r\n")
        if not line.strip() or line.startswith("-DOCSTART-"):
            rows.append([])
            continue
        cells = line.split("\t") if "\t" in line else line.split(" ")
        cells = [cell for cell in map(str.strip, cells) if cell or "\t" in line]
        # Comments; words that are several (3-4), which follow one by one; words that are not in the text (3.1).
        if is_conllu and (line.startswith("#") or not cells[0].isdigit()):
            continue
        first = first or (number, cells)
        if len(cells) != len(first[1]):
            raise ValueError(
                f"line {number} of {path} has {len(cells)} columns ({line[:60]!r}), but line {first[0]} has "
                f"{len(first[1])}: every word needs all its columns, with tabs or spaces between them"
            )
        rows[-1].append(cells)
    rows = [row for row in rows if row]
    if first is None:
        raise ValueError(f"{path} has no words: pass a file with a word and its label on every line")
    if len(first[1]) < 2:
        raise ValueError(
            f"{path} has one column (line {first[0]} is {first[1][0][:60]!r}), and so no labels: expected a word and "
            "its label on every line, with a tab or a space between them"
        )
    if len(rows) == 1 and len(rows[0]) > _LONGEST_SENTENCE:
        raise ValueError(f"all {len(rows[0]):,} words of {path} are one sentence: put an empty line between sentences")
    # A .conllu has ten columns, of which these two are what is usually wanted: the word and its part of speech.
    names = {1: "form", 3: "upos"} if is_conllu else {}
    return Dataset.from_dict(
        {
            names.get(column, f"{_COLUMN}{column}"): [[cells[column] for cells in row] for row in rows]
            for column in range(len(first[1]))
        }
    )


def _choose_column(train: Dataset, role: str, wanted: str | None, usual: Sequence[Sequence[str]]) -> str:
    of_file = [name for name in train.column_names if name.startswith(_COLUMN)]
    if wanted is not None:
        if wanted in train.column_names:
            return wanted
        if (
            of_file
            and re.fullmatch(r"-?\d+", wanted)
            and -len(train.column_names) <= int(wanted) < len(train.column_names)
        ):
            return train.column_names[int(wanted)]
        shown = ", ".join(f"{i} ({train[0][name][0]})" for i, name in enumerate(train.column_names)) if of_file else ""
        raise ValueError(f"{role} is {wanted!r}, but the columns are {shown or described(train)}: choose one of them")
    lower = {name.lower(): name for name in train.column_names}
    for names in usual:
        found = [lower[name] for name in names if name in lower]
        if len(found) == 1:
            return found[0]
        if found:
            break
    if of_file and len(of_file) == len(train.column_names):
        return of_file[0 if role == "token_column" else -1]
    raise ValueError(
        f"cannot tell which column holds the {'words' if role == 'token_column' else 'labels of the words'}; the "
        f"columns are {described(train)}: pass {role}"
    )


# ---- Labels ----


def _declared_names(train: Dataset, column: str) -> list[str]:
    feature = getattr(train.features[column], "feature", None)
    return feature.names if isinstance(feature, ClassLabel) else []


def _clean(
    split: str, table: Dataset, columns: tuple[str, str], class_names: Sequence[str] | None
) -> tuple[_Sentences, int]:
    """Sentences that have words and labels, and how many others there were."""
    for role, column in zip(("token_column", "label_column"), columns, strict=True):
        if column not in table.column_names:
            raise ValueError(f"split {split!r} lacks the column {column!r}; its columns are {described(table)}")
        items = getattr(table.features[column], "feature", None)
        empty = items is not None and type_name(items) == "null"
        if items is None or hasattr(items, "feature") or (role == "token_column" and not (is_text(items) or empty)):
            raise ValueError(
                f"column {column!r} of split {split!r} holds no lists of {'words' if role[0] == 't' else 'labels'}; "
                f"the columns are {described(table)}: choose another with {role}"
            )
    feature = table.features[columns[1]].feature
    names = list(class_names or _declared_names(table, columns[1]))
    numeric = isinstance(feature, ClassLabel) or (isinstance(feature, Value) and feature.dtype.startswith(("int", "u")))
    sentences = _Sentences([], [])
    missing = 0
    for number, (tokens, labels) in enumerate(zip(table[columns[0]][:], table[columns[1]][:], strict=True), start=1):
        tokens, labels = tokens or [], labels or []
        # -1 is how the Hub marks a hidden label.
        if not tokens or not labels or (numeric and all(label is not None and label < 0 for label in labels)):
            missing += 1
            continue
        where = f"row {number} of split {split!r} ({' '.join(str(token) for token in tokens[:6])} ...)"
        if len(tokens) != len(labels):
            raise ValueError(
                f"{where} has {len(tokens)} words in {columns[0]!r}, but {len(labels)} labels in {columns[1]!r}: give "
                "every word one label"
            )
        for place, (token, label) in enumerate(zip(tokens, labels, strict=True), start=1):
            if token is None or label is None or label == "":
                lacks = "label" if token is not None else "text"
                raise ValueError(f"word {place} of {where} has no {lacks}: correct or remove this row")
        sentences.tokens.append(tokens)
        sentences.labels.append([_label_name(label, names, where) for label in labels] if numeric else labels)
    if missing:
        logger.warning("dropping %d of the %d sentences of %s, which lack words or labels", missing, len(table), split)
    return sentences, missing


def _label_name(label: int, names: list[str], where: str) -> str | None:
    if label == IGNORED:
        return None
    if label < 0 or (names and label >= len(names)):
        known = f"ids go from 0 to {len(names) - 1}" if names else "ids begin with 0"
        raise ValueError(
            f"{where} has the label {label}, but {known}, and {IGNORED} is for words to ignore: correct it"
        )
    return names[label] if names else str(label)


def _unify_labels(sentences: dict[str, _Sentences], declared: list[str], column: str) -> list[str]:
    """Rewrite labels that mark entities as IOB2. Returns all labels, by id."""
    labels = {label for part in sentences.values() for row in part.labels for label in row if label is not None}
    prefixed = {label for label in labels if _PREFIXED.fullmatch(label)}
    plain = labels - prefixed - {"O"}
    has_entities = any(label[0] in "BI" and label[1:2] in ("-", "_") for label in prefixed)
    # Labels that are nothing but prefixes, and no labels of another kind that happen to be such letters.
    is_bare = not plain and "B" in prefixed and all(len(label) == 1 for label in prefixed)
    is_iob2 = has_entities or is_bare
    if has_entities and plain:
        raise ValueError(
            f"label column {column} holds {sorted(plain)[0]!r}, but its other labels begin with B- or I- "
            f"({sorted(prefixed)[0]!r}), or are O: give all of them a prefix, or none"
        )
    words = sum(len(row) for row in sentences["train"].tokens)
    if len(labels) > max(100, words / 10):
        raise ValueError(
            f"label column {column} holds {len(labels):,} different values for {words:,} words, such as "
            f"{sorted(labels)[0]!r}: choose another with label_column"
        )
    if is_iob2:
        for part in sentences.values():
            part.labels = [_to_iob2(row) for row in part.labels]
    kinds = sentences["train"].kinds()
    for split, part in sentences.items():
        unseen = sorted(part.kinds() - kinds - {"O"})
        if unseen:
            rows = sum(any(label and re.sub("^[BI]-", "", label) in unseen for label in row) for row in part.labels)
            raise ValueError(
                f"{rows} of the {len(part)} sentences of split {split!r} have labels that training never saw: "
                f"{', '.join(map(repr, unseen[:10]))}. Add sentences with them to train, or remove these"
            )
    if kinds <= {"O"} or (len(kinds) == 1 and not is_iob2):
        raise ValueError(
            f"label column {column} says {sorted(kinds)[0]!r} of every word: choose another with label_column"
        )
    order = list(dict.fromkeys(_kind(name) if is_iob2 else name for name in declared))
    ordered = [kind for kind in order if kind in kinds] + sorted(kinds - set(order))
    if not is_iob2:
        return ordered
    return ["O", *(f"{prefix}-{kind}" for kind in ordered if kind != "O" for prefix in "BI")]


def _kind(label: str) -> str:
    found = _PREFIXED.fullmatch(label)
    return (found[2] or _BARE_TYPE) if found else label


def _to_iob2(labels: list[str | None]) -> list[str | None]:
    """
    The entities that seqeval finds in `labels`, as IOB2. Where a label is ignored, an entity ends.

    In its default mode seqeval reads IOB1, IOB2 and BIOES alike, and so does the script of the CoNLL tasks.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    read = []
    for label in labels:
        found = _PREFIXED.fullmatch(label or "O")
        read.append(f"{_PREFIXES.get(found[1], found[1])}-{found[2] or _BARE_TYPE}" if found else "O")
    written: list[str | None] = [None if label is None else "O" for label in labels]
    for kind, start, end in get_entities(read):
        written[start : end + 1] = [f"B-{kind}", *[f"I-{kind}"] * (end - start)]
    return written


# ---- Splits ----


def _make_splits(sentences: dict[str, _Sentences], shares: dict[str, float], seed: int) -> None:
    """Move a share of the training sentences to each split in `shares`."""
    total = len(sentences["train"])
    for number, (name, share) in enumerate(shares.items()):
        train = sentences["train"]
        count = max(1, round(share * total))
        alike: dict[tuple[str, ...], list[int]] = {}
        for i, tokens in enumerate(train.tokens):
            alike.setdefault(tuple(tokens), []).append(i)
        groups = list(alike.values())
        left = Counter(kind for i in range(len(train)) for kind in train.select([i]).kinds())
        held_out: list[int] = []
        for group in np.random.default_rng((seed, number)).permutation(len(groups)).tolist():
            kinds = Counter(kind for i in groups[group] for kind in train.select([i]).kinds())
            if len(held_out) < count and all(left[kind] > rows for kind, rows in kinds.items()):
                held_out += groups[group]
                left -= kinds
        if not held_out:
            raise ValueError(
                f"there are too few sentences to make the split {name!r}: of {len(train)}, none can be spared without "
                f"a label being lost to training. Pass {name}_file, or more sentences"
            )
        logger.info("taking %d of %d training sentences as the split %s", len(held_out), total, name)
        sentences[name] = train.select(sorted(held_out))
        sentences["train"] = train.select(sorted(set(range(len(train))) - set(held_out)))


def _build_splits(sentences: dict[str, _Sentences], names: list[str]) -> DatasetDict:
    ids: dict[str | None, int] = {None: IGNORED, **{name: i for i, name in enumerate(names)}}
    # Not a ClassLabel, which takes no -100.
    features = Features({"tokens": ListOf(Value("string")), "labels": ListOf(Value("int64"))})
    splits = DatasetDict()
    for name in SPLIT_NAMES:
        part = sentences[name]
        columns = {"tokens": part.tokens, "labels": [[ids[label] for label in row] for row in part.labels]}
        splits[name] = Dataset.from_dict(columns, features=features)
    return splits


def _fingerprint(sentences: dict[str, _Sentences], names: list[str]) -> str:
    digest = hashlib.sha256(json.dumps(names).encode())
    for name in SPLIT_NAMES:
        digest.update(json.dumps([name, len(sentences[name])]).encode())
        for row in zip(sentences[name].tokens, sentences[name].labels, strict=True):
            digest.update(json.dumps(row).encode())
    return digest.hexdigest()


# ---- Sub-words ----


def load_word_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a checkpoint, set so that words given one by one become what they are in a running text.

    Byte-level tokenizers, such as RoBERTa's, need `add_prefix_space=True` for that.

    Raises:
        ValueError: it has no such setting.
    """
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    if _splits_words_alike(tokenizer):
        return tokenizer
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, add_prefix_space=True)
    check_word_tokenizer(tokenizer, name_or_path)
    return tokenizer


def check_word_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise `ValueError` unless words given one by one become what they are in a running text."""
    if not _splits_words_alike(tokenizer):
        raise ValueError(
            f"the tokenizer of {name} makes other tokens of words given one by one than of a running text, so no label "
            "would fit: take another checkpoint, or from scratch --tokenizer_algorithm wordpiece or unigram"
        )


def _splits_words_alike(tokenizer: PreTrainedTokenizerBase) -> bool:
    words = ["a", "of", "b"]
    try:
        return tokenizer(words, is_split_into_words=True)["input_ids"] == tokenizer(" ".join(words))["input_ids"]
    except (AssertionError, ValueError):  # transformers refuses some itself
        return False


def tokenize_tagged(
    splits: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    continuations: dict[int, int] | None = None,
) -> DatasetDict:
    """
    Token ids in place of words, with the label of a word at its first token and -100 at its others.

    A sentence of more than `max_length` tokens becomes several rows, split between words. A word of which the tokenizer
    leaves nothing (a lone soft hyphen) becomes an unknown one. So every word has a label, and is scored.

    Args:
        splits: columns `tokens` and `labels`, as of [`load_tagged`].
        tokenizer: see [`load_word_tokenizer`].
        max_length: of a row, special tokens included.
        continuations: label -> label of the other tokens of a word, in `train` alone: see [`continuation_labels`].

    Returns:
        Columns of the tokenizer, `labels`, and `length`, by which Trainer puts rows of like length together.
    """

    def encode(rows: dict[str, list], others: dict[int, int]) -> dict[str, list]:
        pieces = _pieces(rows["tokens"], rows["labels"], tokenizer, max_length)
        words = [piece for piece, _ in pieces]
        encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
        labels = []
        for number, (_, of_words) in enumerate(pieces):
            ids = encoded.word_ids(number)
            labels.append(
                [
                    IGNORED
                    if word is None
                    else of_words[word]
                    if word != before
                    else others.get(of_words[word], IGNORED)
                    for before, word in zip([None, *ids], ids, strict=False)
                ]
            )
        return {**encoded, "labels": labels, "length": [len(row) for row in labels]}

    return DatasetDict(
        {
            name: split.map(
                encode,
                batched=True,
                remove_columns=split.column_names,
                fn_kwargs={"others": (continuations or {}) if name == "train" else {}},
                desc="Tokenizing",
            )
            for name, split in splits.items()
        }
    )


def continuation_labels(label_names: Sequence[str]) -> dict[int, int]:
    """Label -> label of the tokens of a word after its first: the same, but `I-PER` after `B-PER`."""
    ids = {name: i for i, name in enumerate(label_names)}
    return {i: ids.get(f"I-{name[2:]}", i) if name.startswith("B-") else i for name, i in ids.items()}


def _pieces(
    tokens: list[list[str]], labels: list[list[int]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[tuple[list[str], list[int]]]:
    """Words and their labels, in pieces of at most `max_length` tokens; a longer word is a piece of its own."""
    room = max_length - tokenizer.num_special_tokens_to_add()
    unknown = tokenizer.unk_token or "?"
    encoded = tokenizer(tokens, is_split_into_words=True, add_special_tokens=False)
    pieces = []
    for number, (words, of_words) in enumerate(zip(tokens, labels, strict=True)):
        sizes = Counter(encoded.word_ids(number))
        words = [word if sizes[i] else unknown for i, word in enumerate(words)]
        begin = used = 0
        for i in range(len(words)):
            size = max(1, sizes[i])
            if used and used + size > room:
                pieces.append((words[begin:i], of_words[begin:i]))
                begin, used = i, 0
            used += size
        pieces.append((words[begin:], of_words[begin:]))
    return pieces

"""
Question answering, which Transformers 5 dropped: windows over long texts, the best spans in them, and the pipeline.

A context that is longer than a row of the model is cut into windows that overlap. The windows are made here and not by
the tokenizer, whose overflow was broken in some releases of Transformers, and `training/answer.py` makes the same ones.
An answer is a span of the context's own characters, whatever the tokenizer made of them.

`import chinchilla_hf` registers the pipeline as `"chinchilla-question-answering"`, because Transformers blocks the old
name. Checkpoints carry this file: with `trust_remote_code=True` they have the old name, `"question-answering"`, too.

This file travels inside checkpoints: it needs transformers and torch alone.
"""

import itertools
import types
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES
from transformers.pipelines.base import ChunkPipeline

# Where neither the checkpoint nor the caller says otherwise. Overlapping by more than the longest answer, windows have
# every answer whole in one of them.
MAX_LENGTH = 384
STRIDE = 64
MAX_ANSWER_LENGTH = 30

# On a CPU in bfloat16, attention written out takes less time than torch's fused kernel up to this length, as long as
# its scores fit into the cache: 0.92 of the time of a whole pass over 4 windows of 384 tokens, but 1.19 over 8 of them
# (MiniLM, AVX-512 with bf16).
_LONGEST_EAGER = 512
_BATCH_SIZE = {"cpu": 4}

_ZERO_WIDTH_JOINER = "\u200d"
_SKIN_TONES = range(0x1F3FB, 0x1F400)


@dataclass(frozen=True)
class EncodedText:
    """Token ids of a text without special tokens, and which characters each token stands for."""

    text: str
    ids: list[int]
    starts: list[int]  # of the tokens, in characters; `ends` are one past the last
    ends: list[int]

    def tokens_of(self, start: int, end: int) -> tuple[int, int]:
        """First and last token of the characters from `start` to `end` - 1; last < first where there is none."""
        return bisect_right(self.ends, start), bisect_left(self.starts, end) - 1

    def characters_of(self, first: int, last: int) -> tuple[int, int]:
        """
        The characters of the tokens from `first` to `last`: `text[start:end]`.

        Spaces at the ends are no part of an answer. An accent, a skin tone or a joined emoji is never torn off its
        character, where the tokenizer left it out or cut it up.
        """
        text, start, end = self.text, self.starts[first], self.ends[last]
        while start > 0 and start < len(text) and _joins(text, start):
            start -= 1
        while 0 < end < len(text) and _joins(text, end):
            end += 1
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        return start, end


def _joins(text: str, position: int) -> bool:
    """Whether the character at `position` belongs to the one before it."""
    character = text[position]
    return (
        unicodedata.category(character).startswith("M")  # accents, vowel signs, variation selectors
        or character == _ZERO_WIDTH_JOINER
        or text[position - 1] == _ZERO_WIDTH_JOINER
        or ord(character) in _SKIN_TONES
    )


@dataclass(frozen=True)
class Window:
    """Part of a context, behind its question: the context's tokens `first` to `last` - 1, at `offset` of the row."""

    first: int
    last: int
    offset: int


class WindowCutter:
    """
    Makes rows of a question and a part of its context: all special tokens as the tokenizer sets them around a pair.

    Args:
        tokenizer: a fast one, which tells the characters of its tokens.
        max_length: tokens of a row.
        stride: tokens that a window has in common with the next one.

    Raises:
        ValueError: a tokenizer that cannot do this, or lengths that leave no room.
    """

    def __init__(self, tokenizer: Any, max_length: int = MAX_LENGTH, stride: int = STRIDE):
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} does not tell which characters its tokens stand for: use a checkpoint "
                "with a tokenizer.json"
            )
        self.tokenizer, self.max_length, self.stride = tokenizer, max_length, stride
        pair = tokenizer("a", "b", return_token_type_ids=True, padding=False, truncation=False)
        sides = pair.sequence_ids(0)
        ids, kinds = pair["input_ids"], pair["token_type_ids"]
        if sides[:1] != [None] or 0 not in sides or 1 not in sides or sides.index(0) > sides.index(1):
            raise ValueError(
                "the tokenizer sets no special token before a pair of texts, which stands for 'no answer': use a "
                "checkpoint with one like BERT's [CLS]"
            )
        question, question_end = sides.index(0), _last(sides, 0) + 1
        context, context_end = sides.index(1), _last(sides, 1) + 1
        # The row is before + question + between + context + after.
        self._ids = ids[:question], ids[question_end:context], ids[context_end:]
        self._kinds = (
            kinds[:question], kinds[question], kinds[question_end:context], kinds[context], kinds[context_end:]
        )  # fmt: skip
        self._has_types = "token_type_ids" in tokenizer.model_input_names
        self.num_special_tokens = sum(map(len, self._ids))
        if not 0 <= stride < max_length - self.num_special_tokens - 1:
            raise ValueError(
                f"max_length is {max_length} and stride {stride}, but of a row {self.num_special_tokens} tokens are "
                "special ones, and the question needs room, too: raise max_length, or lower stride"
            )

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """The texts, tokenized together."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [
            EncodedText(text, ids, [start for start, _ in offsets], [end for _, end in offsets])
            for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def windows(self, question: EncodedText, context: EncodedText) -> list[Window]:
        """
        Windows that cover `context`, each as long as fits, but for the last one.

        Raises:
            ValueError: the question leaves no room for the context; or a text without a token.
        """
        for name, side in (("question", question), ("context", context)):
            if not side.ids:
                raise ValueError(f"the {name} {side.text[:60]!r} has no token: give one with words")
        room = self.max_length - self.num_special_tokens - len(question.ids)
        if room <= self.stride:
            raise ValueError(
                f"the question {question.text[:60]!r} has {len(question.ids)} tokens, which leaves {max(0, room)} of a "
                f"window of {self.max_length} to the context, where more than the overlap of {self.stride} is needed: "
                "shorten the question, raise max_length, or lower stride"
            )
        offset = len(self._ids[0]) + len(question.ids) + len(self._ids[1])
        length, step = len(context.ids), room - self.stride
        firsts = range(0, max(1, length - self.stride), step)
        return [Window(first, min(first + room, length), offset) for first in firsts]

    def row(self, question: EncodedText, context: EncodedText, window: Window) -> dict[str, list[int]]:
        """The model's inputs for one window."""
        before, between, after = self._ids
        part = context.ids[window.first : window.last]
        row = {"input_ids": [*before, *question.ids, *between, *part, *after]}
        if self._has_types:
            kinds_before, of_question, kinds_between, of_context, kinds_after = self._kinds
            row["token_type_ids"] = [
                *kinds_before,
                *[of_question] * len(question.ids),
                *kinds_between,
                *[of_context] * len(part),
                *kinds_after,
            ]
        return row


def _last(values: list[Any], value: Any) -> int:
    return len(values) - 1 - values[::-1].index(value)


def pad_rows(rows: Sequence[dict[str, list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Rows as a batch; rows of one length need no `attention_mask`, and attention is faster without."""
    lengths = [len(row["input_ids"]) for row in rows]
    longest = max(lengths)
    batch = {
        name: torch.tensor(
            [row[name] + [pad_token_id if name == "input_ids" else 0] * (longest - len(row[name])) for row in rows]
        )
        for name in rows[0]
    }
    if min(lengths) < longest:
        batch["attention_mask"] = torch.tensor([[1] * length + [0] * (longest - length) for length in lengths])
    return batch


@dataclass(frozen=True)
class Span:
    """A possible answer: `context[start:end]`."""

    start: int
    end: int
    logit: float
    probability: float


@dataclass(frozen=True)
class RankedSpans:
    """The best spans of a context, best first, and what speaks for no answer at all."""

    spans: list[Span]
    null_logit: float
    null_probability: float

    @property
    def no_answer_score(self) -> float:
        """How much more likely no answer is than the best one, in logits."""
        return self.null_logit - self.spans[0].logit if self.spans else float("inf")


def rank_spans(
    context: EncodedText,
    windows: Sequence[Window],
    start_logits: Sequence[torch.Tensor],
    end_logits: Sequence[torch.Tensor],
    max_answer_length: int = MAX_ANSWER_LENGTH,
    top_k: int = 1,
    with_null: bool = False,
) -> RankedSpans:
    """
    The spans with the highest sum of both logits, over all windows of a context.

    Logits of different windows are compared as they are, and a softmax over all of them together makes probabilities:
    a softmax for each window would be as sure of the best span in a window that does not have the answer.

    Args:
        context: the windows are of.
        windows: all of one question.
        start_logits, end_logits: of each window's row, `(length,)`.
        max_answer_length: in tokens.
        top_k: how many, if there are as many.
        with_null: the model was trained on questions without an answer, so that no answer takes its share of the
            probability.
    """
    starts = [
        logits[w.offset : w.offset + w.last - w.first].float() for logits, w in zip(start_logits, windows, strict=True)
    ]
    ends = [
        logits[w.offset : w.offset + w.last - w.first].float() for logits, w in zip(end_logits, windows, strict=True)
    ]
    # The first token stands for no answer. One window that sees the answer is enough to say that there is one.
    nulls = torch.stack([torch.stack([s[0], e[0]]).float() for s, e in zip(start_logits, end_logits, strict=True)])
    null_start, null_end = nulls[nulls.sum(dim=1).argmin()]
    totals = []
    for logits, null in ((starts, null_start), (ends, null_end)):
        totals.append(torch.logsumexp(torch.cat([*logits, null[None]] if with_null else logits), dim=0))
    total = float(totals[0] + totals[1])

    candidates: list[tuple[float, int, int]] = []
    for window, start, end in zip(windows, starts, ends, strict=True):
        width = min(max_answer_length, len(end))
        later = torch.nn.functional.pad(end, (0, width - 1), value=-torch.inf).unfold(0, width, 1)  # (length, width)
        scores = (start[:, None] + later).flatten()
        # More than wanted: the same characters may come from two windows, and some tokens stand for none.
        best = scores.topk(min(2 * top_k + 2, len(scores)))
        for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            first = window.first + place // width
            candidates.append((score, first, first + place % width))
    candidates.sort(key=lambda candidate: -candidate[0])
    spans: dict[tuple[int, int], Span] = {}
    for score, first, last in candidates:
        if len(spans) == top_k or score == -torch.inf:
            break
        characters = context.characters_of(first, last)
        if characters[0] < characters[1]:
            spans.setdefault(characters, Span(*characters, score, _probability(score - total)))
    null_logit = float(null_start + null_end)
    return RankedSpans(list(spans.values()), null_logit, _probability(null_logit - total) if with_null else 0.0)


def _probability(logarithm: float) -> float:
    return float(torch.tensor(logarithm).exp())


class ChinchillaQuestionAnsweringPipeline(ChunkPipeline):
    """
    Answers questions with words of a text, of any length.

    A context of many questions is tokenized once. The model reads every question together with the context, so it has
    to read the context anew for each; but windows of all questions share batches by their length, with next to no
    padding, and in bfloat16 where the machine multiplies that in hardware.

    A checkpoint that was trained with questions without an answer gives an empty answer to those it takes for such.

    Example:

    ```python
    >>> import chinchilla_hf
    >>> from transformers import pipeline

    >>> answer = pipeline("chinchilla-question-answering", "runs/answers")
    >>> answer(question="Who barks?", context="A cat sleeps. The dog barks.")
    {'score': 0.93, 'start': 14, 'end': 21, 'answer': 'The dog'}
    >>> answer(question=["Who barks?", "Who sleeps?"], context="A cat sleeps. The dog barks.", top_k=2)
    ```
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _pipeline_calls_generate = False

    _batch_size: int | None
    # Questions that are read ahead, so that windows of like length find each other.
    _READ_AHEAD = 128

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self._batch_size is None:
            self._batch_size = _BATCH_SIZE.get(self.device.type, 32)
        self.check_model_type(MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES)

    def _sanitize_parameters(
        self,
        max_length: int | None = None,
        stride: int | None = None,
        max_answer_length: int | None = None,
        no_answer_threshold: float | None = None,
        top_k: int | None = None,
        bf16: bool | None = None,
        **unknown: Any,
    ) -> tuple[dict, dict, dict]:
        if unknown:
            raise TypeError(
                f"unknown: {', '.join(unknown)}. Question answering takes question, context, top_k, max_answer_length, "
                "no_answer_threshold, max_length, stride, bf16 and batch_size"
            )
        given = {"max_length": max_length, "stride": stride, "max_answer_length": max_answer_length, "top_k": top_k}
        for name, value in given.items():
            least = 0 if name == "stride" else 1
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}: raise it")
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if max_length is not None and positions is not None and max_length > positions:
            raise ValueError(f"max_length is {max_length}, but the model has {positions} positions: lower it")
        preprocess = {name: given[name] for name in ("max_length", "stride") if given[name] is not None}
        postprocess: dict[str, Any] = {
            name: given[name] for name in ("max_answer_length", "top_k") if given[name] is not None
        }
        if no_answer_threshold is not None:
            postprocess["no_answer_threshold"] = no_answer_threshold
        return preprocess, {} if bf16 is None else {"bf16": bf16}, postprocess

    def _trained(self, name: str, default: Any) -> Any:
        """A setting with which the checkpoint was trained."""
        return (getattr(self.model.config, "question_answering", None) or {}).get(name, default)

    def __call__(
        self, inputs: Any = None, *, question: Any = None, context: str | Sequence[str] | None = None, **kwargs: Any
    ) -> Any:
        """
        Answer questions.

        Args:
            inputs: `{"question": ..., "context": ...}`, a list, a data set or a generator of such.
            question: in place of `inputs`, a question, or a list of them.
            context: one text for all questions, or a list with one for each.
            kwargs: `top_k`: how many answers to a question; `max_answer_length`: in tokens; `no_answer_threshold`: in
                logits, how much likelier than the best answer no answer has to be to be given, `inf` for never;
                `max_length` and `stride`: tokens of a window, and of its overlap with the next; `bf16`: mixed
                precision, by default where the machine has it; `batch_size`: windows at a time, 4 on a CPU, else 32.

        Returns:
            For one question `{"score": ..., "start": ..., "end": ..., "answer": ...}`, where `answer` is
            `context[start:end]`, or a list of them with `top_k` above 1; for several a list with one such an item; for
            a data set or a generator, an iterator.

        Raises:
            ValueError: an empty text, or a question that leaves no room in a window.
            TypeError: an input of another form.
        """
        if isinstance(inputs, dict) and question is None and context is None:
            question, context = inputs.get("question"), inputs.get("context")
            if set(inputs) - {"question", "context"} and isinstance(question, str):
                question, context = None, None  # a row with an id: as it is
        if inputs is None or question is not None:
            if question is None or context is None:
                raise TypeError("give a question and a context, or rows with both")
            if isinstance(question, str) and isinstance(context, str):
                return super().__call__({"question": question, "context": context}, **kwargs)
            questions = [question] if isinstance(question, str) else list(question)
            contexts = [context] * len(questions) if isinstance(context, str) else list(context)
            if isinstance(question, str):
                questions = questions * len(contexts)
            if len(questions) != len(contexts):
                raise ValueError(
                    f"there are {len(questions)} questions and {len(contexts)} contexts: give one context for all "
                    "questions, or one for each"
                )
            inputs = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
        if isinstance(inputs, Sequence) and not isinstance(inputs, list | str):
            inputs = list(inputs)
        elif not isinstance(inputs, dict | list | str | types.GeneratorType) and hasattr(inputs, "__len__"):
            rows = inputs
            inputs = (rows[number] for number in range(len(rows)))  # a data set, of torch or of `datasets`
        return super().__call__(inputs, **kwargs) if not isinstance(inputs, list) or inputs else []

    def get_iterator(
        self,
        inputs: Iterable[dict[str, Any]],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Answers in the order of the questions; windows go through the model in the order of their length."""
        rows = iter(inputs)
        while ahead := list(itertools.islice(rows, self._READ_AHEAD)):
            items = list(self.preprocess(ahead, **preprocess_params))
            windows = [(item, number) for item in items for number in range(len(item["rows"]))]
            windows.sort(key=lambda window: -len(window[0]["rows"][window[1]]["input_ids"]))
            for begin in range(0, len(windows), batch_size):
                batch = windows[begin : begin + batch_size]
                outputs = self.forward(
                    self._collate([item["rows"][number] for item, number in batch]), **forward_params
                )
                for (item, number), *logits in zip(batch, outputs["start_logits"], outputs["end_logits"], strict=True):
                    item["logits"][number] = logits
            for item in items:
                yield self.postprocess(item, **postprocess_params)

    def _collate(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return pad_rows(rows, self.tokenizer.pad_token_id or 0)

    def preprocess(
        self, rows: Sequence[dict[str, Any]], max_length: int | None = None, stride: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Windows of several questions; each distinct text is tokenized once."""
        limit = min(self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", MAX_LENGTH))
        max_length = max_length or self._trained("max_length", min(MAX_LENGTH, limit))
        if stride is None:
            stride = min(self._trained("stride", STRIDE), max_length // 4)
        cutter = WindowCutter(self.tokenizer, max_length, stride)
        pairs = [_texts(row) for row in rows]
        distinct = list(dict.fromkeys(text for pair in pairs for text in pair))
        encoded = dict(zip(distinct, cutter.encode(distinct), strict=True))
        for question_text, context_text in pairs:
            question, context = encoded[question_text], encoded[context_text]
            windows = cutter.windows(question, context)
            yield {
                "context": context,
                "windows": windows,
                "rows": [cutter.row(question, context, window) for window in windows],
                "logits": [None] * len(windows),
            }

    def _forward(self, model_inputs: dict[str, torch.Tensor], bf16: bool | None = None) -> dict[str, torch.Tensor]:
        if bf16 is None:
            bf16 = self.model.dtype == torch.float32 and _bf16_is_fast(self.device)
        length = model_inputs["input_ids"].shape[1]
        eager = self.device.type == "cpu" and length <= _LONGEST_EAGER and (bf16 or self.model.dtype == torch.bfloat16)
        with (
            _attention(self.model, "eager" if eager else None),
            torch.autocast(self.device.type, torch.bfloat16, enabled=bf16),
        ):
            outputs = self.model(**model_inputs)
        return {"start_logits": outputs.start_logits.float(), "end_logits": outputs.end_logits.float()}

    def get_inference_context(self) -> Any:
        return torch.inference_mode

    def postprocess(
        self,
        item: dict[str, Any],
        max_answer_length: int | None = None,
        no_answer_threshold: float | None = None,
        top_k: int = 1,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        if max_answer_length is None:
            max_answer_length = self._trained("max_answer_length", MAX_ANSWER_LENGTH)
        if no_answer_threshold is None:
            no_answer_threshold = self._trained("no_answer_threshold", None)
        has_null = no_answer_threshold is not None
        start_logits, end_logits = zip(*item["logits"], strict=True)
        ranked = rank_spans(
            item["context"], item["windows"], start_logits, end_logits, max_answer_length, top_k, with_null=has_null
        )
        text = item["context"].text
        answers = [
            {"score": span.probability, "start": span.start, "end": span.end, "answer": text[span.start : span.end]}
            for span in ranked.spans
        ]
        if not answers or (has_null and ranked.no_answer_score > no_answer_threshold):
            answers = [{"score": ranked.null_probability, "start": 0, "end": 0, "answer": ""}, *answers][:top_k]
        return answers[0] if top_k == 1 else answers


def _texts(row: Any) -> tuple[str, str]:
    """Question and context of one input."""
    if not isinstance(row, dict) or not {"question", "context"} <= set(row):
        raise TypeError(f"an input is {row!r:.80}, but must be a dictionary with 'question' and 'context'")
    for name in ("question", "context"):
        if not isinstance(row[name], str):
            raise TypeError(f"the {name} is {row[name]!r:.60}, but must be a text")
        if not row[name].strip():
            raise ValueError(f"the {name} is empty: give a text, or leave the row out")
    return row["question"].strip(), row["context"]


@contextmanager
def _attention(model: Any, implementation: str | None) -> Iterator[None]:
    """Inside, `implementation` in place of the default; an attention that the user chose stays."""
    if implementation is None or model.config._attn_implementation != "sdpa":
        yield
        return
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def _bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


__all__ = ["ChinchillaQuestionAnsweringPipeline"]

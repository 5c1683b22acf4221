"""
Answers to questions about long texts: windows over a text, and the best spans in them.

A context that is longer than a row of the model is cut into windows that overlap. The windows are made here and not by
the tokenizer, whose overflow was broken in some releases of Transformers, and `training/answer.py` makes the same ones.
An answer is a span of the context's own characters, whatever the tokenizer made of them.

This file travels inside checkpoints, and is imported where there is no torch.
"""

import math
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Where neither the checkpoint nor the caller says otherwise. Overlapping by more than the longest answer, windows have
# every answer whole in one of them.
MAX_LENGTH = 384
STRIDE = 64
MAX_ANSWER_LENGTH = 30

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
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
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
    starts, ends = (
        [
            np.asarray(logits, dtype=np.float32)[w.offset : w.offset + w.last - w.first]
            for logits, w in zip(of_windows, windows, strict=True)
        ]
        for of_windows in (start_logits, end_logits)
    )
    # The first token stands for no answer. One window that sees the answer is enough to say that there is one.
    nulls = np.array([[s[0], e[0]] for s, e in zip(start_logits, end_logits, strict=True)], dtype=np.float32)
    null_start, null_end = nulls[nulls.sum(axis=1).argmin()]
    totals = []
    for of_windows, null in ((starts, null_start), (ends, null_end)):
        logits = np.concatenate([*of_windows, [null]] if with_null else of_windows)
        highest = logits.max()
        totals.append(float(highest + np.log(np.exp(logits - highest).sum())))
    total = sum(totals)

    candidates: list[tuple[float, int, int]] = []
    for window, start, end in zip(windows, starts, ends, strict=True):
        width = min(max_answer_length, len(end))
        padded = np.concatenate([end, np.full(width - 1, -np.inf, dtype=np.float32)])
        later = np.lib.stride_tricks.sliding_window_view(padded, width)  # (length, width)
        scores = (start[:, None] + later).ravel()
        # More than wanted: the same characters may come from two windows, and some tokens stand for none.
        count = min(2 * top_k + 2, len(scores))
        best = np.argpartition(-scores, count - 1)[:count]
        for place in sorted(best.tolist(), key=lambda place: (-scores[place], place)):
            first = window.first + place // width
            candidates.append((float(scores[place]), first, first + place % width))
    candidates.sort(key=lambda candidate: -candidate[0])
    spans: dict[tuple[int, int], Span] = {}
    for score, first, last in candidates:
        if len(spans) == top_k or score == -math.inf:
            break
        characters = context.characters_of(first, last)
        if characters[0] < characters[1]:
            spans.setdefault(characters, Span(*characters, score, _probability(score - total)))
    null_logit = float(null_start + null_end)
    return RankedSpans(list(spans.values()), null_logit, _probability(null_logit - total) if with_null else 0.0)


def _probability(logarithm: float) -> float:
    return math.exp(min(logarithm, 0.0))  # rounding apart, it is no more


def find_answers(
    context: EncodedText,
    windows: Sequence[Window],
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    max_answer_length: int = MAX_ANSWER_LENGTH,
    no_answer_threshold: float | None = None,
    top_k: int = 1,
) -> list[dict[str, Any]]:
    """
    The best answers, as the pipeline gives them: `score`, `start`, `end` and `answer`.

    Args:
        context, windows, start_logits, end_logits, max_answer_length, top_k: as for [`rank_spans`].
        no_answer_threshold: of the score above which there is no answer; `None` for a model that always has one.
    """
    has_null = no_answer_threshold is not None
    ranked = rank_spans(context, windows, start_logits, end_logits, max_answer_length, top_k, with_null=has_null)
    answers = [
        {"score": span.probability, "start": span.start, "end": span.end, "answer": context.text[span.start : span.end]}
        for span in ranked.spans
    ]
    if not answers or (no_answer_threshold is not None and ranked.no_answer_score > no_answer_threshold):
        answers = [{"score": ranked.null_probability, "start": 0, "end": 0, "answer": ""}, *answers][:top_k]
    return answers


__all__ = ["EncodedText", "RankedSpans", "Span", "Window", "WindowCutter", "find_answers", "rank_spans"]

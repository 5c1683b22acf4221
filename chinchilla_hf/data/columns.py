"""Which columns of a table hold the texts and the labels: by their names, then by what they hold."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, Value

logger = logging.getLogger(__name__)

# fmt: off
# Where a name of the first line is there, those of the second do not make the choice ambiguous.
TEXT_NAMES = (
    ("text",),
    ("sentence", "review", "review_text", "review_body", "content", "tweet", "comment", "comment_text", "utterance",
     "body", "message", "document"),
)
LABEL_NAMES = (
    ("label", "labels"),
    ("sentiment", "intent", "category", "class", "target", "stars", "rating", "topic", "emotion", "emotions",
     "polarity", "gold_label", "entailment_judgment", "relatedness_score", "similarity_score", "score"),
)
PAIR_NAMES = (
    ("text", "text_pair"), ("text1", "text2"), ("text_1", "text_2"), ("text_a", "text_b"),
    ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence"), ("question", "answer"),
    ("question", "passage"), ("query", "passage"),
)
# fmt: on
# A column of such a name holds many different strings, and yet no text.
_NO_TEXT = re.compile(r"(^|_)(id|idx|index|uuid|guid|url|link|date|time|timestamp)s?$", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """Names of one or two columns of text, and of the columns of the labels."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]


def choose_columns(
    train: Dataset, text_column: str | None, text_pair_column: str | None, label_column: str | Sequence[str] | None
) -> Columns:
    """
    The columns that are named, and those that are found for what is not.

    Raises:
        ValueError: a column that is not there, or more than one that could be it; the message lists the columns.
    """
    labels = (label_column,) if isinstance(label_column, str) else tuple(label_column or ())
    texts = tuple(name for name in (text_column, text_pair_column) if name)
    roles = {"text_column": [text_column], "text_pair_column": [text_pair_column], "label_column": labels}
    for role, name in ((role, name) for role, names in roles.items() for name in names):
        if name and name not in train.column_names:
            raise ValueError(f"{role} is {name!r}, but the columns are {described(train)}: choose one of them")
    if text_pair_column and not text_column:
        raise ValueError(f"text_pair_column is {text_pair_column!r}, but text_column is not given: pass both")
    texts = texts or _find_texts(train, labels)
    labels = labels or (_find_label(train, texts),)
    if len({*texts, *labels}) < len(texts) + len(labels):
        raise ValueError(f"the columns of text ({', '.join(texts)}) and label ({', '.join(labels)}) must be different")
    logger.info("text: %s; label: %s; all columns: %s", " + ".join(texts), ", ".join(labels), described(train))
    return Columns(texts, labels)


def described(table: Dataset) -> str:
    return ", ".join(f"{name} ({type_name(feature)})" for name, feature in table.features.items())


def type_name(feature: Any) -> str:
    return str(feature.dtype).removeprefix("large_") if isinstance(feature, Value) else type(feature).__name__


def is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "string_view")


def _find_texts(train: Dataset, labels: tuple[str, ...]) -> tuple[str, ...]:
    strings = [name for name, feature in train.features.items() if name not in labels and is_text(feature)]
    lower = {name.lower(): name for name in strings}
    pairs = [(lower[first], lower[second]) for first, second in PAIR_NAMES if first in lower and second in lower]
    candidates = [lower[name] for names in TEXT_NAMES for name in names if name in lower]
    if len(pairs) == 1:
        return pairs[0]
    if not pairs and (candidates[:1] == [lower.get("text")] or len(candidates) == 1):
        return (candidates[0],)
    if not pairs and not candidates:
        words = [name for name in strings if not _holds_numbers(train, name)]
        candidates = [name for name in words if _holds_texts(train, name)] or words
        if len(candidates) == 1:
            return (candidates[0],)
    raise ValueError(
        f"cannot tell which column is the text; the columns are {described(train)}: pass text_column (and "
        f"text_pair_column for pairs){_delimiter_hint(train)}"
    )


def _holds_texts(train: Dataset, name: str) -> bool:
    """Mostly different values, and not ids or dates."""
    values = [value for value in train[name][:10_000] if value]
    return not _NO_TEXT.search(name) and 2 * len(set(values)) > len(values)


def _holds_numbers(train: Dataset, name: str) -> bool:
    return all(as_number(value) is not None for value in train[name][:10_000] if value)


def _find_label(train: Dataset, texts: tuple[str, ...]) -> str:
    names = [name for name in train.column_names if name not in texts]
    for usual in LABEL_NAMES:
        found = [name for name in names if name.lower() in usual]
        if found:
            break
    else:
        found = [name for name in names if isinstance(train.features[name], ClassLabel)]
        found = found or [name for name in names if _holds_classes(train, name)]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"cannot tell which column is the label{f' ({chr(32).join(found)})' if found else ''}; the columns are "
        f"{described(train)}: pass label_column{_delimiter_hint(train)}"
    )


def _holds_classes(train: Dataset, name: str) -> bool:
    """Strings or whole numbers that repeat."""
    feature = train.features[name]
    if not (is_text(feature) or (isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "bool")))):
        return False
    values = [value for value in train[name][:] if value is not None]
    distinct = set(values)
    numbers = [as_number(value) for value in distinct]
    fractions = all(number is not None for number in numbers) and not all(
        n is not None and n.is_integer() for n in numbers
    )
    return 2 <= len(distinct) <= len(values) / 2 and not fractions


def _delimiter_hint(train: Dataset) -> str:
    header = train.column_names[0]
    found = [delimiter for delimiter in (";", "\t", ",", "|") if delimiter in header]
    return f". Or is it delimiter={found[0]!r}?" if found and len(train.column_names) == 1 else ""


def as_number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None

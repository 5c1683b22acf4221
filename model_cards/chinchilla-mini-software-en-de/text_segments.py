"""
Texts cut into segments that a translator can take.

This file travels inside checkpoints, and is imported where there is no torch.
"""

import re
from collections.abc import Callable, Iterator

# Behind the marks that end a sentence, and the quotation marks and brackets that may follow them. In Chinese and
# Japanese no space comes after.
_SENTENCE_END = re.compile(r"""(?<=[.!?…])(?:["'»”’)\]]*)\s+|(?<=[。！？])""")
_CLAUSE_END = re.compile(r"(?<=[,;:])\s+|(?<=[，、；：])")
_SPACE = re.compile(r"\s+")


def split_text(text: str, fits: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """
    Cut `text` into segments that a model can take, each with what stands before it.

    Lines are segments; where one does not fit, its sentences are, then its clauses, its words, and pieces of a word.

    Args:
        fits: whether a segment is short enough.

    Yields:
        `(before, segment)`: line breaks and spaces, and a text without any at its ends. What ends the text stands
        before an empty last segment.
    """
    before = ""
    for number, line in enumerate(text.split("\n")):
        before += "\n" if number else ""
        for space, segment in _split_line(line, fits):
            yield before + space, segment
            before = ""
        before += line[len(line.rstrip()) :]
    if before:
        yield before, ""


def _split_line(line: str, fits: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    stripped = line.strip()
    if not stripped:
        return
    before = line[: len(line) - len(line.lstrip())]
    if fits(stripped):
        yield before, stripped
        return
    for pattern in (_SENTENCE_END, _CLAUSE_END, _SPACE):
        parts = _parts(stripped, pattern)
        if len(parts) > 1:
            break
    else:
        middle = len(stripped) // 2  # one word, or a script without spaces
        parts = [("", stripped[:middle]), ("", stripped[middle:])] if middle else []
        if not parts:
            raise ValueError(f"{stripped!r} alone is too long for the model: it takes fewer tokens than one character")
    # Words are put together again as long as they fit: alone they mean little.
    if pattern is _SPACE:
        parts = _joined(parts, fits)
    for space, part in parts:
        before += space
        for inner_space, segment in _split_line(part, fits):
            yield before + inner_space, segment
            before = ""


def _parts(text: str, pattern: re.Pattern) -> list[tuple[str, str]]:
    """`text` cut where `pattern` is, which keeps all but the spaces at the end of what it matches."""
    parts, begin, space = [], 0, ""
    for match in pattern.finditer(text):
        end = match.start() + len(match.group().rstrip())
        if begin < end < len(text):
            parts.append((space, text[begin:end]))
            begin, space = match.end(), text[end : match.end()]
    return [*parts, (space, text[begin:])]


def _joined(parts: list[tuple[str, str]], fits: Callable[[str], bool]) -> list[tuple[str, str]]:
    joined = [parts[0]]
    for space, part in parts[1:]:
        longer = joined[-1][1] + space + part
        if fits(longer):
            joined[-1] = joined[-1][0], longer
        else:
            joined.append((space, part))
    return joined


__all__ = ["split_text"]

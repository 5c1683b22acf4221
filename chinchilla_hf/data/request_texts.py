"""
Questions and requests as people put them to an assistant or into a search box: frames, filled with words of WordNet.

There are few such texts that are free to train on, and a small encoder that never saw one is weak on them. What they
say need not make sense to teach a student what its teacher makes of their words.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

FRAMES = Path(__file__).with_name("request_frames.txt")
KINDS = {"nouns": "noun", "verbs": "verb", "adjectives": "adj"}
# WordNet's numbers of sentences such as "Somebody ----s something" and "Somebody ----s somebody"
TAKES_OBJECT = {8, 9, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 31}
COMMON, KNOWN = 5_000, 12_000  # ranks of words that are taken three times and twice as often
LONGEST_MEANING = 8  # words of a definition that stands for its word
BARE_SHARE = 0.6  # of the nouns; the others have a determiner
DETERMINERS = ("a ", "the ", "my ", "some ", "your ", "this ")
DAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "today", "tomorrow", "tonight"]
DAYS += ["yesterday", "january", "february", "march", "april", "may", "june", "july", "august", "september", "october"]
DAYS += ["november", "december", "christmas"]
DAYS += ["next week", "this weekend", "last month", "next year", "the weekend", "this morning"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "fifteen"]
NUMBERS += ["twenty", "thirty", "forty", "fifty", "sixty", "hundred", "thousand"]
SLOT = re.compile(r"\{(noun|verb|adjective|day|number)\}")


@dataclass
class Words:
    """What fills the frames; what is to come more often stands several times. `objects`: verbs that take one."""

    nouns: list[str] = field(default_factory=list)
    verbs: list[str] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    adjectives: list[str] = field(default_factory=list)


def read_wordnet(folder: str | Path, rank: Callable[[str], int | None]) -> Words:
    """
    Words and short definitions of a folder of WordNet 3 (`data.noun`, `data.verb`, `data.adj`; Debian's package
    `wordnet-base` has them).

    Args:
        folder: of the files.
        rank: how common a word is, 0 the most; None: not to be used, nor what it is a part of.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: no word is left.
    """
    found = Words()
    for name, kind in KINDS.items():
        path = Path(folder) / f"data.{kind}"
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no {path}, expected a folder of WordNet 3 such as /usr/share/wordnet: Debian's package "
                "wordnet-base has one"
            )
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if not line.startswith("  "):  # the licence
                    _add(found, name, line, rank)
    if not (found.nouns and found.verbs and found.objects and found.adjectives):
        raise ValueError(f"no word of {folder} is left: is the vocabulary one of English words in small letters?")
    return found


def _add(found: Words, name: str, line: str, rank: Callable[[str], int | None]) -> None:
    """The words of one line of WordNet: offset, file, kind, count, words, pointers, frames of verbs | definition."""
    entry, _, gloss = line.partition(" | ")
    fields = entry.split()
    count = int(fields[3], 16)
    lemmas = [re.sub(r"\(\w+\)$", "", word).replace("_", " ").lower() for word in fields[4 : 4 + 2 * count : 2]]
    definition = gloss.split(";")[0].split("(")[0].strip()
    into = [getattr(found, name)]
    if name == "verbs":
        rest = fields[5 + 2 * count + 4 * int(fields[4 + 2 * count]) :]
        frames = {int(number) for number in rest[2::3]}
        if frames & TAKES_OBJECT:
            into.append(found.objects)
    known = False
    for lemma in dict.fromkeys(lemmas):  # which may differ in capitals only
        ranks = [rank(word) for word in lemma.split(" ")]
        if any(number is None for number in ranks):
            continue
        known, rarest = True, max(number for number in ranks if number is not None)
        for words in into:
            words.extend([lemma] * (1 + (rarest < KNOWN) + (rarest < COMMON)))
    if known and name != "adjectives" and 1 < len(definition.split()) <= LONGEST_MEANING:
        into[0].append(definition)


def read_frames(path: str | Path = FRAMES) -> list[str]:
    """
    Frames, one a line, with slots `{noun}`, `{verb}`, `{adjective}`, `{day}` and `{number}`.

    Raises:
        ValueError: a slot is none of these, or there are no frames.
    """
    frames = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not frames:
        raise ValueError(f"{path} has no frame: give one a line, such as: where is {{noun}}")
    for frame in frames:
        if unknown := re.findall(r"\{[^}]*\}?", SLOT.sub("", frame)):
            raise ValueError(f"{path}: {unknown[0]} in {frame!r} is no slot, expected one such as {{noun}} or {{verb}}")
    return frames


def request_texts(words: Words, frames: list[str], count: int, seed: int = 42) -> Iterator[str]:
    """
    `count` frames, drawn at random and filled; each text once, so that there are fewer.

    Args:
        words: what [`read_wordnet`] found.
        frames: what [`read_frames`] found.
        count: draws.
        seed: of the draws.
    """
    rng = Random(seed)

    def fill(slot: re.Match) -> str:
        match slot[1]:
            case "noun":
                return ("" if rng.random() < BARE_SHARE else rng.choice(DETERMINERS)) + rng.choice(words.nouns)
            case "verb" if rng.random() < 0.5:
                return f"{rng.choice(words.objects)} {rng.choice(('the ', 'a ', 'my ', ''))}{rng.choice(words.nouns)}"
            case "verb":
                return rng.choice(words.verbs)
            case "adjective":
                return rng.choice(words.adjectives)
            case "day":
                return rng.choice(DAYS)
            case _:
                return rng.choice(NUMBERS) if rng.random() < 0.5 else str(rng.randint(1, rng.choice((20, 500))))

    seen = set()
    for _ in range(count):
        text = SLOT.sub(fill, rng.choice(frames))
        if text not in seen:
            seen.add(text)
            yield text

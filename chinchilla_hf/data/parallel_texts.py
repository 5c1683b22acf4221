"""
Pairs of sentences out of what translators of free software wrote: Debian's descriptions of packages, catalogues of
gettext, and manuals of which each page has one in the other language.

A reader yields [`Passage`]s, texts that say the same. [`clean_pairs`] cuts them into sentences where both sides have as
many, and leaves out what is no translation; [`hold_out`] holds out whole documents.
"""

import gettext
import gzip
import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ..run_record import write_atomically

HELD_OUT_SHARE = 0.05
SPLITS = ("train", "validation", "test")
# A passage is cut into sentences behind these, before what can begin one.
SENTENCE_END = re.compile(r"(?<=[.!?…])[\"“”»«')]*\s+(?=[\"„“»«'(]*[A-ZÄÖÜ0-9])")
# No sentence ends behind these, nor behind a single letter, as in "z. B.".
ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:\w|\d+|e\.g|i\.e|etc|vs|Mr|Mrs|Dr|St|No|bzw|ca|usw|vgl|Nr|evtl|ggf|inkl|Abs)\.$"
)
# What stands before some texts of a catalogue: "female^Elvish Fighter", "?unit:Archer".
CONTEXT = re.compile(r"[\w ]+\^|\?\w+:")
LABEL = 60  # characters; what is longer is no label with a mark of its shortcut
PLACEHOLDER = re.compile(r"%[\d$.#+-]*l*[a-zA-Z\d]|%\([^)]*\)\w|\$\{?[\w.]+\}?|\{[^{}]*\}|\\[nt]")
TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
WORD = re.compile(r"[^\W\d_]+")
SHINGLE = 5  # words; a held-out source that shares half of these with training is a copy with other names in it
# Words of one language that the other does not have: a side with more of the other's is in the wrong language.
COMMON = {
    "en": frozenset(re.findall(r"\w+", "the of to and that with you from which your this are by")),
    "de": frozenset(re.findall(r"\w+", "der das und ist nicht mit für den dem eine einen wird werden oder von sich")),
}


class Passage(NamedTuple):
    """A text and its translation.

    Args:
        source, target: the two sides.
        document: what is held out as a whole.
        origin: kind of text, for the counts.
    """

    source: str
    target: str
    document: str
    origin: str


def read_descriptions(source_index: str | Path, target_index: str | Path) -> Iterator[Passage]:
    """
    Descriptions of Debian packages, paragraph by paragraph where both have as many.

    A document is the packages whose names begin alike, which describe themselves alike.

    Args:
        source_index, target_index: `Translation-en` and another, as `apt-get update` leaves them in its lists.
    """
    sources = {key: paragraphs for key, _, paragraphs in _descriptions(source_index)}
    for key, package, targets in _descriptions(target_index):
        document = "description/" + _package_family(package)
        aligned = _align(sources.get(key, []), targets)
        yield from (Passage(source, target, document, "descriptions") for source, target in aligned)


def read_catalogue(path: str | Path, document: str | None = None) -> Iterator[Passage]:
    """
    What a compiled gettext catalogue (`.mo`) has translations of, and these, in one number each.

    Args:
        path: of the catalogue.
        document: default is the name of the file without numbers.
    """
    document = document or "catalogue/" + re.sub(r"[\d.-]+$", "", Path(path).stem)
    with open(path, "rb") as file:
        # gettext's tables have no public reader; keys are texts, or (text, number) where there is a plural.
        catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
    for key, target in catalogue.items():
        if isinstance(key, tuple):
            if key[1] != 0:  # the forms beside the singular, whose source the table does not have
                continue
            key = key[0]
        source = key.rpartition("\x04")[2]  # behind the context
        if source:
            sides = [re.split(r"\n\s*\n", side) for side in _without_marks(source, target)]
            yield from (Passage(*pair, document, "catalogues") for pair in _align(*sides))


def read_manual(source_folder: str | Path, target_folder: str | Path, name: str = "manual") -> Iterator[Passage]:
    """
    Pages that stand in both folders under the same name (HTML, or Mallard's `.page`), element by element.

    Elements with one `id` translate each other; others, where both pages have the same elements in the same
    order.

    Args:
        source_folder, target_folder: of the pages.
        name: of the manual.
    """
    for path in sorted(Path(source_folder).rglob("*")):
        if path.suffix not in (".html", ".page"):
            continue
        relative = path.relative_to(source_folder)
        translation = Path(target_folder) / relative
        if not translation.is_file():
            continue
        source, target = (_PageReader(file.read_text("utf-8")).blocks for file in (path, translation))
        document = f"{name}/{relative}"
        if [block.key for block in source] == [block.key for block in target]:
            pairs = zip(source, target, strict=True)
        else:
            known = {block.key: block for block in target if block.identifier}
            pairs = ((block, known[block.key]) for block in source if block.key in known)  # type: ignore[assignment]
        for ours, theirs in pairs:
            if not (ours.is_variant or theirs.is_variant):
                yield Passage(ours.text, theirs.text, document, name)


def clean_pairs(
    passages: Iterable[Passage],
    source_language: str = "en",
    target_language: str = "de",
    max_characters: int = 400,
    max_ratio: float = 2.0,
) -> tuple[list[Passage], Counter[str]]:
    """
    Sentences and their translations, each once, and how many were dropped, by reason.

    Args:
        passages: what the readers yield.
        source_language, target_language: of the sides; the wrong language is noticed in English and German.
        max_characters: of a side.
        max_ratio: how often the longer side may be as long as the shorter one, if both had 20 characters more.
    """
    dropped: Counter[str] = Counter()
    pairs: dict[tuple[str, str], Passage] = {}
    languages = source_language, target_language
    for passage in passages:
        for source, target in _sentences(clean(passage.source), clean(passage.target), max_ratio):
            reason = _fault(source, target, languages, max_characters, max_ratio)
            key = (_simplified(source), _simplified(target))
            if reason is None and key in pairs:
                reason = "repeat another"
            if reason is None:
                pairs[key] = passage._replace(source=source, target=target)
            else:
                dropped[reason] += 1
    return list(pairs.values()), dropped


def hold_out(pairs: Iterable[Passage], held_out: int = 1000) -> tuple[dict[str, list[Passage]], Counter[str]]:
    """
    Three splits of `pairs`, and how many were dropped.

    Whole documents are held out, in the order of a hash of their names; those with more than a tenth of the pairs of a
    split stay in training. Of what is held out, pairs are dropped whose source or target is in the training pairs but
    for case, numbers and punctuation, or whose source has half of its sequences of five words there.

    Args:
        pairs: of all documents.
        held_out: pairs of the validation and the test split each, at most, and at most a twentieth of all.

    Raises:
        ValueError: too few pairs for the splits.
    """
    documents: dict[str, list[Passage]] = {}
    for pair in pairs:
        documents.setdefault(pair.document, []).append(pair)
    number = sum(map(len, documents.values()))
    held_out = min(held_out, int(HELD_OUT_SHARE * number))
    splits: dict[str, list[Passage]] = {split: [] for split in SPLITS}
    for document in sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest()):
        split = min(("validation", "test"), key=lambda name: len(splits[name]))
        # Twice as many as wanted, because some are dropped.
        is_full = len(splits[split]) >= 2 * held_out
        splits["train" if is_full or len(documents[document]) > max(1, held_out / 10) else split] += documents[document]

    dropped: Counter[str] = Counter()
    sides = {_simplified(side) for pair in splits["train"] for side in pair[:2]}
    shingles = set(chain.from_iterable(_shingles(pair.source) for pair in splits["train"]))
    for split in ("validation", "test"):
        kept = [pair for pair in splits[split] if not _is_known(pair, sides, shingles)]
        dropped["are held out, but nearly in training"] += len(splits[split]) - len(kept)
        dropped["would be held out beyond the number wanted"] += len(kept[held_out:])
        splits[split] = kept[:held_out]
    if not all(splits.values()):
        raise ValueError(
            f"{number} pairs of {len(documents)} documents are too few for three splits with nothing in common: "
            "give more texts"
        )
    return splits, dropped


def write_pairs(
    splits: dict[str, list[Passage]], folder: str | Path, source_language: str = "en", target_language: str = "de"
) -> None:
    """Aligned files that `training/translate.py` takes as `--dataset`: `train.en`, `train.de`, `train.origin`, ..."""
    folder = Path(folder)
    for split, pairs in splits.items():
        sides = {
            source_language: [pair.source for pair in pairs],
            target_language: [pair.target for pair in pairs],
            "origin": [pair.origin for pair in pairs],
        }
        for ending, lines in sides.items():
            write_atomically(folder / f"{split}.{ending}", "".join(f"{line}\n" for line in lines).encode())


def clean(text: str) -> str:
    """`text` in one line, without markup and characters that are not seen."""
    text = unicodedata.normalize("NFC", text.replace("\u00ad", "").replace("\u200b", ""))
    text = TAG.sub("", text)
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&nbsp;", " "), ("&amp;", "&")):
        text = text.replace(entity, character)
    return re.sub(r"\s+", " ", text.replace("\\n", " ")).strip()


def _without_marks(source: str, target: str) -> tuple[str, str]:
    """Both without the mark of a shortcut (`_File`, `&File`, `~File`), or what says where a text stands (`female^`)."""
    if not CONTEXT.match(target):
        source = CONTEXT.sub("", source)
    for mark in "_&~":
        words = [re.findall(rf"\w*{mark}\w+", side) for side in (source, target)]
        # A word that stands in the translation, too, is a name: "call open_file".
        if len(words[0]) == len(words[1]) == 1 and words[0] != words[1] and len(source) <= LABEL:
            source, target = (re.sub(rf"{mark}(?=\w)", "", side) for side in (source, target))
    return source, target


def _open_text(path: str | Path) -> Iterator[str]:
    opened = gzip.open if str(path).endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as file:
        yield from file


def _descriptions(index: str | Path) -> Iterator[tuple[tuple[str, str], str, list[str]]]:
    """Package and checksum, package, and the title and paragraphs of its description."""
    fields: dict[str, list[str]] = {}
    name = ""
    for line in chain(_open_text(index), ["\n"]):
        if line[0] in " \t":
            fields.setdefault(name, []).append(line.rstrip("\n"))
        elif line.strip():
            name, _, value = line.partition(":")
            fields[name] = [value.strip()]
        elif fields:
            text = next((value for key, value in fields.items() if re.fullmatch(r"Description-(?!md5)\w+", key)), None)
            if text is not None and "Package" in fields and "Description-md5" in fields:
                package, checksum = fields["Package"][0], fields["Description-md5"][0]
                yield (package, checksum), package, [text[0], *_paragraphs(text[1:])]
            fields = {}


def _paragraphs(lines: Sequence[str]) -> list[str]:
    """Of a description: a dot ends one; lists and lines that are set as they stand are one a line."""
    paragraphs = [""]
    for line in lines:
        if line.strip() == ".":
            paragraphs.append("")
        elif re.match(r"\s+[-*•+o]\s|\s{2,}\S", line):
            if re.match(r"\s+[-*•+o]\s", line) or not paragraphs[-1]:
                paragraphs.append(re.sub(r"^\s+[-*•+o]\s+", "", line))
            else:
                paragraphs[-1] += " " + line.strip()
        else:
            paragraphs[-1] += " " + line.strip()
    return [paragraph.strip() for paragraph in paragraphs if paragraph.strip()]


def _package_family(package: str) -> str:
    name = re.sub(
        r"^(?:python3?|lib|ruby|golang|node|fonts|texlive|task|gir1\.2|r-cran|php|xserver-xorg|elpa)-?", "", package
    )
    return re.split(r"[-.\d]", name)[0] or package


def _align(sources: Sequence[str], targets: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Part by part if both have as many; else the first, which is the title, and the others as one."""
    if len(sources) == len(targets):
        yield from zip(sources, targets, strict=True)
    elif len(sources) > 1 and len(targets) > 1:
        yield sources[0], targets[0]
        yield " ".join(sources[1:]), " ".join(targets[1:])


def _split_sentences(text: str) -> list[str]:
    sentences = [""]
    start = 0
    for match in SENTENCE_END.finditer(text):
        part = text[start : match.end()].rstrip()
        if ABBREVIATION.search(part):
            continue
        sentences.append(part)
        start = match.end()
    return [*sentences[1:], text[start:]]


def _sentences(source: str, target: str, max_ratio: float) -> Iterator[tuple[str, str]]:
    """Sentence by sentence, if both have as many, each about as long as its translation; else as a whole."""
    sides = _split_sentences(source), _split_sentences(target)
    pairs = list(zip(*sides, strict=False))
    if len(sides[0]) == len(sides[1]) and all(_ratio(*pair) <= max_ratio for pair in pairs):
        yield from pairs
    else:
        yield source, target


def _ratio(source: str, target: str) -> float:
    # 20 characters more on both sides: a short text may be translated by one of another length.
    short, long = sorted((len(source) + 20, len(target) + 20))
    return long / short


def _simplified(text: str) -> str:
    """What is left of `text` if case, numbers and punctuation do not count."""
    return " ".join(WORD.findall(text.lower()))


def _shingles(text: str) -> set[int]:
    words = WORD.findall(text.lower())
    return {hash(tuple(words[i : i + SHINGLE])) for i in range(len(words) - SHINGLE + 1)}


def _is_known(pair: Passage, sides: set[str], shingles: set[int]) -> bool:
    if _simplified(pair.source) in sides or _simplified(pair.target) in sides:
        return True
    own = _shingles(pair.source)
    return len(own) > 0 and 2 * len(own & shingles) >= len(own)


def _fault(source: str, target: str, languages: tuple[str, str], max_characters: int, max_ratio: float) -> str | None:
    """Why a pair is left out, or None."""
    if not source or not target:
        return "are empty"
    letters = [sum(map(len, WORD.findall(PLACEHOLDER.sub("", side)))) for side in (source, target)]
    if min(letters) < 3 or any(
        count < 0.6 * len(side.replace(" ", "")) for count, side in zip(letters, (source, target), strict=True)
    ):
        return "have little text"
    if max(len(source), len(target)) > max_characters:
        return "are too long"
    if _ratio(source, target) > max_ratio:
        return "differ in length"
    if _simplified(source) == _simplified(target):
        return "are not translated"
    for side, language, other in ((source, *languages), (target, *languages[::-1])):
        words = [word.lower() for word in WORD.findall(side)]
        own, foreign = (sum(word in COMMON.get(code, ()) for word in words) for code in (language, other))
        if foreign > own:
            return "are in the wrong language"
    placeholders = [Counter(PLACEHOLDER.findall(side)).total() for side in (source, target)]
    if placeholders[0] != placeholders[1]:
        return "differ in placeholders"
    numbers = [re.findall(r"\d{2,}", side) for side in (source, target)]
    if len(numbers[0]) != len(numbers[1]):  # not other ones: dates are written in another order
        return "differ in numbers"
    if any("�" in side or re.search(r"[\u0400-\u04ff\u0600-\u06ff\u3040-\u9fff]", side) for side in (source, target)):
        return "have another script"
    return None


@dataclass(frozen=True)
class _Block:
    key: tuple[str, str, int]  # element, id, and the how manieth of these on the page
    text: str
    is_variant: bool  # has parts for several systems, of which only one is shown

    @property
    def identifier(self) -> str:
        return self.key[1]


class _PageReader(HTMLParser):
    """The texts of a page, by the elements that begin a new line."""

    BLOCKS = re.compile(
        "p|h[1-6]|li|td|th|dt|dd|div|desc|title|item|tr|table|ul|ol|dl|section|page|body|pre|figure|blockquote|note|steps|"
        "list|terms|header|footer|aside|nav|br|noscript|media|screen|code"
    )
    SKIPPED = re.compile("script|style|head|info|noscript|header|footer|aside|pre|screen|nav|button")

    def __init__(self, page: str):
        super().__init__()
        self.blocks: list[_Block] = []
        self._skipping: list[str] = []
        self._counts: Counter[tuple[str, str]] = Counter()
        self._begin("", "")
        self.feed(page)
        self.close()
        self._flush()

    def _begin(self, element: str, identifier: str) -> None:
        self._element, self._identifier = element, identifier
        self._text, self._is_variant = "", False

    def _flush(self) -> None:
        text = " ".join(self._text.split())
        if text:
            name = (self._element, self._identifier)
            self._counts[name] += 1
            self.blocks.append(_Block((*name, self._counts[name]), text, self._is_variant))
        self._begin(self._element, self._identifier)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.SKIPPED.fullmatch(tag):
            self._skipping.append(tag)
        if self.BLOCKS.fullmatch(tag):
            self._flush()
            self._begin(tag, dict(attrs).get("id") or "")
        elif "hidden" in dict(attrs):
            self._is_variant = True

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self.BLOCKS.fullmatch(tag):
            self._flush()

    def handle_endtag(self, tag: str) -> None:
        if self._skipping and tag == self._skipping[-1]:
            self._skipping.pop()
        if self.BLOCKS.fullmatch(tag):
            self._flush()

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._text += data

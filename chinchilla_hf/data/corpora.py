"""
Raw text, document by document, from local files or the Hub.

    corpus = Corpus("wiki.jsonl.gz")  # or a folder, a .txt, a Parquet file, the name of a data set on the Hub
    for document in corpus.documents():
        ...

Nothing is held in memory but the document at hand, so a corpus may be larger than memory.
"""

import bz2
import gzip
import hashlib
import json
import logging
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import datasets
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from ..recipes import resolve_location

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
COMPRESSION: dict[str, Callable[[IO[bytes]], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DOCUMENT_SEPARATORS = ("blank_line", "line", "file")
BAD_TEXT_CHOICES = ("stop", "skip")
# Of every file, so much of its beginning and of its end goes into the quick fingerprint.
QUICK_BYTES = 1 << 20
# Rows of a Hub data set that are read at once.
HUB_BATCH = 100


class Place(NamedTuple):
    """
    Where a document ends in a [`Corpus`], so that reading can go on there: a plain tuple of numbers, for JSON.

    Args:
        file: number of files before this one; of a Hub data set, of shards.
        item: lines or rows of the file up to here.
        offset: bytes up to here, after decompression; 0 in files that are read by rows.
    """

    file: int = 0
    item: int = 0
    offset: int = 0


BEGINNING = Place()


@dataclass
class Corpus:
    """
    Documents of raw text.

    Args:
        source: a file (`.txt`, `.md`, JSON Lines, each also with `.gz`, `.bz2` or `.xz`; Parquet), a folder of such
            files, or the name of a data set on the Hub. What is on disk goes before the Hub.
        config: configuration of a Hub data set.
        split: split of a Hub data set.
        revision: branch, tag or commit of a Hub data set.
        text_column: column of the text, in all but plain text.
        document_separator: what ends a document in plain text: `"blank_line"`, `"line"`, or only the end of the
            `"file"`.
        on_bad_text: `"stop"` at bytes that are no UTF-8 and at lines that are no JSON, or `"skip"` and count them.

    Raises:
        ValueError: an argument that is none of its choices.
        FileNotFoundError: no such file or folder, or a folder without text.
    """

    source: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    text_column: str = "text"
    document_separator: str = "blank_line"
    on_bad_text: str = "stop"

    def __post_init__(self) -> None:
        for name, choices in (("document_separator", DOCUMENT_SEPARATORS), ("on_bad_text", BAD_TEXT_CHOICES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be one of {', '.join(choices)}")
        path = Path(self.source).expanduser()
        self.files: list[Path] = []  # empty for a Hub data set
        if path.is_file():
            self.files = [path]
        elif path.is_dir():
            inside = [file for file in sorted(path.rglob("*")) if file.is_file() and _kind(file)]
            self.files = [file for file in inside if not any(p.startswith(".") for p in file.relative_to(path).parts)]
            if not self.files:
                raise FileNotFoundError(
                    f"the folder {path} holds no text: expected {', '.join((*TEXT_SUFFIXES, *JSON_SUFFIXES))} or "
                    ".parquet"
                )
        elif path.is_absolute() or self.source.startswith((".", "~")) or self.source.count("/") > 1 or _kind(path):
            raise FileNotFoundError(f"there is no file or folder {self.source!r} (the current folder is {Path.cwd()})")
        for file in self.files:
            if not _kind(file):
                raise ValueError(
                    f"cannot tell how to read {file}: expected "
                    f"{', '.join((*TEXT_SUFFIXES, *JSON_SUFFIXES))} (also with .gz, .bz2, .xz) or .parquet"
                )

    @property
    def size(self) -> int | None:
        """Bytes of all files on disk; `None` for the Hub."""
        return sum(file.stat().st_size for file in self.files) if self.files else None

    def fingerprint(self) -> str:
        """SHA-256 of what the documents depend on: the bytes of the files, or the version of the Hub data set."""
        digest = hashlib.sha256(
            json.dumps([self.text_column, self.document_separator, self.on_bad_text, len(self.files)]).encode()
        )
        for file in self.files:
            with open(file, "rb") as stream:
                file_digest = hashlib.sha256()
                while block := stream.read(1 << 20):
                    file_digest.update(block)
            digest.update(file_digest.digest() + _kind(file).encode())
        digest.update(self._hub_version())
        return digest.hexdigest()

    def quick_fingerprint(self) -> str:
        """
        As [`fingerprint`], for a stream that is not to be read as a whole first: the sizes of the files, their first
        and their last megabyte. It is the same for a copy, but a change in the middle of a file that leaves its size
        goes unnoticed. What is done at bad text is no part of it, so that it may change where reading stopped.
        """
        digest = hashlib.sha256(json.dumps([self.text_column, self.document_separator, len(self.files)]).encode())
        for file in self.files:
            size = file.stat().st_size
            digest.update(f"{_kind(file)} {size} ".encode())
            with open(file, "rb") as stream:
                digest.update(stream.read(QUICK_BYTES))
                stream.seek(max(0, size - QUICK_BYTES))
                digest.update(stream.read(QUICK_BYTES))
        digest.update(self._hub_version())
        return digest.hexdigest()

    def _hub_version(self) -> bytes:
        """What tells one version of a Hub data set from another; empty for files."""
        if self.files:
            return b""
        builder = datasets.load_dataset_builder(self.source, self.config, revision=self.revision)
        return json.dumps([self.source, self.config, self.split, builder.hash]).encode()

    def documents(self, start: Place = BEGINNING) -> "Documents":
        """All documents behind `start`, from the first one; texts without a visible character are left out."""
        return Documents(self, start)


@dataclass
class CorpusArguments:
    """Which raw text: options that the scripts share which train on it."""

    _argument_group_name = "Data"

    dataset: str = field(
        metadata={
            "help": "A file (.txt, JSON Lines, Parquet; also .gz), a folder of such files, or the name of a Hub data "
            "set."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split of a Hub data set."})
    text_column: str = field(default="text", metadata={"help": "Column of the text, in all but plain text files."})
    document_separator: str = field(
        default="blank_line",
        metadata={"help": "What ends a document in a plain text file.", "choices": ["blank_line", "line", "file"]},
    )
    on_bad_text: str = field(
        default="stop",
        metadata={"help": "At text that cannot be decoded: stop, or skip and count it.", "choices": ["stop", "skip"]},
    )
    max_documents: int | None = field(default=None, metadata={"help": "Only so many documents, for a quick trial."})
    validation_share: float = field(default=0.01, metadata={"help": "Share of the documents held out for validation."})

    def corpus(self) -> Corpus:
        """The text that the options name; raises what [`Corpus`] raises."""
        return Corpus(
            resolve_location(self.dataset),
            self.dataset_config,
            self.dataset_split,
            text_column=self.text_column,
            document_separator=self.document_separator,
            on_bad_text=self.on_bad_text,
        )


class Documents(Iterator[str]):
    """
    The documents of a [`Corpus`], one by one.

    `place` is the end of the last one: `corpus.documents(place)` begins with the next. `bytes_read` says how far it is
    in the files, for a progress bar; `num_skipped` how many it could not read.

    Raises:
        ValueError: bytes or lines that cannot be read, with the file and the place; a column that is not there.
    """

    def __init__(self, corpus: Corpus, start: Place = BEGINNING):
        self.corpus = corpus
        self.place = start
        self.bytes_read = 0
        self.num_skipped = 0
        self._texts = self._from_files(start) if corpus.files else self._from_hub(start)

    def __next__(self) -> str:
        return next(self._texts)

    def _from_files(self, start: Place) -> Iterator[str]:
        finished = 0
        for number, path in enumerate(self.corpus.files):
            if number >= start.file:
                begin = start if number == start.file else Place(number)
                reader = {"text": self._plain_text, "json": self._json_lines, "parquet": self._parquet}[_kind(path)]
                for place, text in reader(path, finished, begin):
                    if text.strip():
                        self.place = place
                        yield text
            finished += path.stat().st_size
            self.bytes_read = finished

    def _lines(self, path: Path, finished: int, begin: Place) -> Iterator[tuple[Place, str]]:
        """Text and end of every line behind `begin` that can be decoded."""
        with open(path, "rb") as raw:
            opener = COMPRESSION.get(path.suffix.lower())
            stream: IO[bytes] = opener(raw) if opener else raw
            offset = begin.offset
            try:
                stream.seek(offset)
                for number, line in enumerate(stream, start=begin.item + 1):
                    self.bytes_read = finished + raw.tell()
                    try:
                        text = line.decode("utf-8-sig" if offset == 0 else "utf-8")
                        yield Place(begin.file, number, offset + len(line)), text
                    except UnicodeDecodeError as error:
                        self._bad(
                            f"{path} is not UTF-8 at byte {offset + error.start} (line {number}): "
                            f"{line[error.start : error.start + 8]!r}",
                            error,
                        )
                    offset += len(line)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise ValueError(f"{path} cannot be read beyond byte {offset}: {error}. Is the file whole?") from error

    def _plain_text(self, path: Path, finished: int, begin: Place) -> Iterator[tuple[Place, str]]:
        separator = self.corpus.document_separator
        document: list[str] = []
        place = begin
        for place, line in self._lines(path, finished, begin):
            if separator == "line":
                yield place, line.rstrip("\r\n")
            elif separator == "blank_line" and not line.strip():
                yield place, "".join(document).rstrip()
                document = []
            else:
                document.append(line)
        yield place, "".join(document).rstrip()

    def _json_lines(self, path: Path, finished: int, begin: Place) -> Iterator[tuple[Place, str]]:
        for place, line in self._lines(path, finished, begin):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                self._bad(f"line {place.item} of {path} is not JSON ({error.msg})", error)
                continue
            yield place, self._text_of(row, f"line {place.item} of {path}")

    def _parquet(self, path: Path, finished: int, begin: Place) -> Iterator[tuple[Place, str]]:
        with pq.ParquetFile(path) as file:
            if self.corpus.text_column not in file.schema_arrow.names:
                raise ValueError(
                    f"text_column is {self.corpus.text_column!r}, but {path} has the columns "
                    f"{', '.join(file.schema_arrow.names)}: choose one of them"
                )
            size, rows = path.stat().st_size, 0
            groups = list(range(file.num_row_groups))
            while groups and rows + file.metadata.row_group(groups[0]).num_rows <= begin.item:
                rows += file.metadata.row_group(groups.pop(0)).num_rows
            for batch in file.iter_batches(batch_size=1000, row_groups=groups, columns=[self.corpus.text_column]):
                for text in batch.column(0).to_pylist():
                    rows += 1
                    if rows > begin.item:
                        where = f"row {rows} of {path}"
                        yield Place(begin.file, rows), self._text_of({self.corpus.text_column: text}, where)
                self.bytes_read = finished + size * rows // max(file.metadata.num_rows, 1)

    def _from_hub(self, start: Place) -> Iterator[str]:
        corpus = self.corpus
        try:
            stream = datasets.load_dataset(
                corpus.source, corpus.config, split=corpus.split, revision=corpus.revision, streaming=True
            )
        except (FileNotFoundError, ConnectionError) as error:
            raise FileNotFoundError(
                f"{corpus.source!r} is no file or folder in {Path.cwd()}, and the Hub gives out no data set of that "
                f"name: {error}"
            ) from error
        # Shard by shard, so that whoever goes on from a place reads one of them again, not all. The state that streams
        # of `datasets` keep themselves has gone wrong at the second interruption (huggingface/datasets#8308).
        for shard in range(start.file, stream.num_shards):
            begin = start.item if shard == start.file else 0
            rows = stream.shard(num_shards=stream.num_shards, index=shard)
            part = f" in shard {shard}" if stream.num_shards > 1 else ""
            number = 0
            # In batches, because one by one a stream gives a worker of a data loader only its own share of the shards.
            for batch in rows.iter(batch_size=HUB_BATCH):
                if corpus.text_column not in batch:
                    self._text_of(batch, f"row {number + 1}{part} of {corpus.source}")  # raises
                for value in batch[corpus.text_column]:
                    number += 1
                    if number <= begin:
                        continue
                    text = self._text_of({corpus.text_column: value}, f"row {number}{part} of {corpus.source}")
                    if text.strip():
                        self.place = Place(shard, number)
                        yield text

    def _text_of(self, row: Any, where: str) -> str:
        column = self.corpus.text_column
        if not isinstance(row, dict) or column not in row:
            found = f"has {', '.join(row)}" if isinstance(row, dict) else f"is {row!r:.60}"
            raise ValueError(f"text_column is {column!r}, but {where} {found}: choose another text_column")
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{column!r} in {where} is {text!r:.60}, expected text: choose another text_column")
        return text or ""

    def _bad(self, message: str, error: Exception) -> None:
        if self.corpus.on_bad_text == "stop":
            raise ValueError(
                f'{message}: correct the file, or pass on_bad_text="skip" to leave such lines out'
            ) from error
        self.num_skipped += 1
        logger.warning("left out: %s", message)


def _kind(path: Path) -> str:
    """`"text"`, `"json"` or `"parquet"`; empty for anything else."""
    suffix = (path.with_suffix("") if path.suffix.lower() in COMPRESSION else path).suffix.lower()
    if suffix in TEXT_SUFFIXES:
        return "text"
    if suffix in JSON_SUFFIXES:
        return "json"
    return "parquet" if path.suffix.lower() == ".parquet" else ""

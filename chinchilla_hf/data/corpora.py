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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow.parquet as pq  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
COMPRESSION: dict[str, Callable[[IO[bytes]], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DOCUMENT_SEPARATORS = ("blank_line", "line", "file")
BAD_TEXT_CHOICES = ("stop", "skip")


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
        if not self.files:
            builder = datasets.load_dataset_builder(self.source, self.config, revision=self.revision)
            digest.update(json.dumps([self.source, self.config, self.split, builder.hash]).encode())
        return digest.hexdigest()

    def documents(self) -> "Documents":
        """All documents, from the first one; texts without a visible character are left out."""
        return Documents(self)


class Documents(Iterator[str]):
    """
    The documents of a [`Corpus`], one by one.

    `bytes_read` says how far it is in the files, for a progress bar; `num_skipped` how many it could not read.

    Raises:
        ValueError: bytes or lines that cannot be read, with the file and the place; a column that is not there.
    """

    def __init__(self, corpus: Corpus):
        self.corpus = corpus
        self.bytes_read = 0
        self.num_skipped = 0
        self._texts = self._from_files() if corpus.files else self._from_hub()

    def __next__(self) -> str:
        return next(self._texts)

    def _from_files(self) -> Iterator[str]:
        finished = 0
        for path in self.corpus.files:
            reader = {"text": self._plain_text, "json": self._json_lines, "parquet": self._parquet}[_kind(path)]
            for text in reader(path, finished):
                if text.strip():
                    yield text
            finished += path.stat().st_size
            self.bytes_read = finished

    def _lines(self, path: Path, finished: int) -> Iterator[tuple[int, int, str]]:
        """Number, offset in the (decompressed) file and text of every line that can be decoded."""
        with open(path, "rb") as raw:
            opener = COMPRESSION.get(path.suffix.lower())
            stream: IO[bytes] = opener(raw) if opener else raw
            offset = 0
            try:
                for number, line in enumerate(stream, start=1):
                    self.bytes_read = finished + raw.tell()
                    try:
                        yield number, offset, line.decode("utf-8-sig" if offset == 0 else "utf-8")
                    except UnicodeDecodeError as error:
                        self._bad(
                            f"{path} is not UTF-8 at byte {offset + error.start} (line {number}): "
                            f"{line[error.start : error.start + 8]!r}",
                            error,
                        )
                    offset += len(line)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise ValueError(f"{path} cannot be read beyond byte {offset}: {error}. Is the file whole?") from error

    def _plain_text(self, path: Path, finished: int) -> Iterator[str]:
        separator = self.corpus.document_separator
        document: list[str] = []
        for _, _, line in self._lines(path, finished):
            if separator == "line":
                yield line.rstrip("\r\n")
            elif separator == "blank_line" and not line.strip():
                yield "".join(document).rstrip()
                document = []
            else:
                document.append(line)
        yield "".join(document).rstrip()

    def _json_lines(self, path: Path, finished: int) -> Iterator[str]:
        for number, _, line in self._lines(path, finished):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                self._bad(f"line {number} of {path} is not JSON ({error.msg})", error)
                continue
            yield self._text_of(row, f"line {number} of {path}")

    def _parquet(self, path: Path, finished: int) -> Iterator[str]:
        with pq.ParquetFile(path) as file:
            if self.corpus.text_column not in file.schema_arrow.names:
                raise ValueError(
                    f"text_column is {self.corpus.text_column!r}, but {path} has the columns "
                    f"{', '.join(file.schema_arrow.names)}: choose one of them"
                )
            size, rows = path.stat().st_size, 0
            for batch in file.iter_batches(batch_size=1000, columns=[self.corpus.text_column]):
                for text in batch.column(0).to_pylist():
                    rows += 1
                    yield self._text_of({self.corpus.text_column: text}, f"row {rows} of {path}")
                self.bytes_read = finished + size * rows // max(file.metadata.num_rows, 1)

    def _from_hub(self) -> Iterator[str]:
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
        for number, row in enumerate(stream, start=1):
            text = self._text_of(row, f"row {number} of {corpus.source}")
            if text.strip():
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

"""
Tables of text, from a file, a folder or the Hub: [`TableReader`] gives one `datasets.Dataset` a split.

Parquet and the Hub are read by `datasets`, but CSV and JSON are not: its CSV loader guesses the types anew for every
10,000 rows and takes the label "None" for a missing one; its JSON loader turns texts that look like dates into dates,
and ignores `encoding_errors`; and neither says in which line a file is broken. Here all columns of a CSV file are
strings.
"""

import codecs
import csv
import json
import logging
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import fsspec  # type: ignore[import-untyped]
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Dataset, DatasetDict, Features, Value
from datasets.exceptions import DatasetsError

logger = logging.getLogger(__name__)

# The names that `datasets` itself looks for in file names.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
COMPRESSION_SUFFIXES = (".gz", ".bz2", ".xz")
# aclImdb keeps its 50,000 reviews without a label in train/unsup, beside train/neg and train/pos.
UNLABELLED_FOLDERS = ("unsup", "unsupervised", "unlabelled", "unlabeled")


def check_reading_options(
    validation_share: float,
    test_share: float,
    max_rows: int | None,
    encoding: str,
    encoding_errors: str,
    unit: str = "rows",
) -> None:
    """
    Refuse options that all loaders have, before anything is read.

    Args:
        validation_share, test_share: of splits that have to be made.
        max_rows: of a split.
        encoding, encoding_errors: as for `open`.
        unit: what splits are drawn from, for the message.

    Raises:
        ValueError: one of them cannot be meant.
    """
    for name, share in (("validation_share", validation_share), ("test_share", test_share)):
        if not 0 < share < 1:
            raise ValueError(f"{name} is {share}, but must be between 0 and 1: 0.1 holds out a tenth of the {unit}")
    if validation_share + test_share >= 1:
        raise ValueError(f"validation_share {validation_share} and test_share {test_share} leave no rows: lower them")
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows is {max_rows}, but must be 1 or more: leave it out to keep all rows")
    try:
        codecs.lookup(encoding)
        codecs.lookup_error(encoding_errors)
    except LookupError as error:
        raise ValueError(f"{error}: pass an encoding that Python knows (utf-8), and strict or replace") from None


@dataclass(frozen=True)
class TableReader:
    """
    Reads whatever `chinchilla_hf.data.labelled.load_labelled` takes; the fields are arguments of it.

    Raises:
        FileNotFoundError: no such file, folder or Hub data set.
        ValueError: the file cannot be read; the message says why, and where in the file.
    """

    encoding: str
    encoding_errors: str
    delimiter: str | None
    quoting: bool

    def read(self, dataset: str, dataset_config: str | None = None) -> dict[str, Dataset]:
        """The tables of a file, folder or Hub data set by the names of its splits; a lone table is called `train`."""
        path = Path(dataset).expanduser()
        if path.is_file():
            return self._file(path)
        if path.is_dir():
            return self._folder(path, dataset_config)
        if path.is_absolute() or dataset.startswith((".", "~")) or dataset.count("/") > 1 or table_suffix(path):
            raise FileNotFoundError(f"there is no file or folder {dataset!r} (the current folder is {Path.cwd()})")
        return _from_hub(dataset, dataset_config)

    def _file(self, path: Path) -> dict[str, Dataset]:
        """One table, called `train`, unless the file is a JSON object of splits."""
        suffix = table_suffix(path)
        with self.explained(path):
            if suffix == ".parquet":
                # `datasets` cannot read a Parquet file without rows.
                num_rows = pq.read_metadata(path).num_rows
                tables = {"train": Dataset.from_parquet(str(path)) if num_rows else Dataset.from_dict({})}
            elif suffix in (".csv", ".tsv"):
                tables = {"train": self._csv(path, "," if suffix == ".csv" else "\t")}
            elif suffix:
                tables = _from_json(self.text(path), path)
            elif path.suffix == ".txt" and (self.delimiter or "\t" in self.text(path).split("\n", 1)[0]):
                tables = {"train": self._csv(path, "\t")}
            else:
                raise ValueError(
                    f"cannot tell how to read {path}: pass a {', '.join(TABLE_SUFFIXES)} file, a .txt with tabs "
                    "between its columns (or with delimiter), or a folder with texts as <label>/<name>.txt"
                )
        for name, table in tables.items():
            if len(table) == 0:
                raise ValueError(f"{path} has no rows (split {name!r}): pass a file with rows of text and label")
        return tables

    @contextmanager
    def explained(self, path: Path) -> Iterator[None]:
        """What can be wrong with the bytes of a file, as an error that names it."""
        try:
            yield
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not {self.encoding} text (byte {error.object[error.start]:#04x}): pass its encoding, such "
                'as encoding="latin-1", or encoding_errors="replace" to read past what cannot be decoded'
            ) from error
        except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowInvalid, DatasetsError) as error:
            reason = error.__cause__ or error
            raise ValueError(f"{path} cannot be read: {reason}. Is the file whole, and what its name says?") from error

    @property
    def _codec(self) -> str:
        # utf-8-sig is UTF-8 with or without the byte order mark that Windows programs put in front.
        return "utf-8-sig" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding

    def text(self, path: Path, newline: str | None = None) -> str:
        """All of a text file, also a compressed one; `newline` as for `open`."""
        options = {"encoding": self._codec, "errors": self.encoding_errors, "newline": newline}
        file = fsspec.open(str(path), "rt", compression="infer", **options)
        with file as stream:
            return stream.read()

    def _csv(self, path: Path, delimiter: str) -> Dataset:
        """All columns as strings; an empty cell is missing, and nothing else is."""
        delimiter = (self.delimiter or delimiter).replace("\\t", "\t")  # a shell hands on '\t' as two characters
        try:
            frame = pd.read_csv(
                path,
                sep=delimiter,
                dtype=str,
                keep_default_na=False,
                na_values=[""],
                quoting=csv.QUOTE_MINIMAL if self.quoting else csv.QUOTE_NONE,
                encoding=self._codec,
                encoding_errors=self.encoding_errors,
            )
        except pd.errors.EmptyDataError:
            raise ValueError(f"{path} is empty: pass a file with a header row and rows of text and label") from None
        except pd.errors.ParserError as error:
            raise ValueError(
                f"{path} is not a table with {delimiter!r} between its columns: {str(error).strip()}. Pass another "
                "delimiter, or quoting=False if quotation marks in it do not enclose texts"
            ) from error
        if not isinstance(frame.index, pd.RangeIndex):  # pandas takes the first of too many columns as row names
            raise ValueError(
                f"rows of {path} have more columns than its header row: enclose texts that hold {delimiter!r} in "
                "quotation marks, or pass another delimiter"
            )
        frame.columns = frame.columns.str.strip()
        for name in frame.columns if delimiter == "\t" else ():
            # An unpaired quotation mark, common in tables with tabs, joins rows into one text.
            if joined := int(frame[name].str.contains(r"\t[^\n]*\n", na=False).sum()):
                raise ValueError(
                    f"{joined} values of column {name!r} of {path} hold tabs and line breaks: a text that begins with "
                    'a " has swallowed the rows after it. Pass quoting=False'
                )
        strings = Features({name: Value("string") for name in frame.columns})  # not pandas' large_string
        return Dataset.from_pandas(frame, features=strings, preserve_index=False)

    def _folder(self, folder: Path, dataset_config: str | None) -> dict[str, Dataset]:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            saved = datasets.load_from_disk(str(folder))
            return dict(saved) if isinstance(saved, DatasetDict) else {"train": saved}
        card = folder / "README.md"
        if dataset_config or (card.is_file() and re.search(r"^configs:", card.read_text("utf-8", "replace"), re.M)):
            return _from_hub(str(folder), dataset_config)
        # {path: its parts inside the folder}, without hidden files and folders
        inside = {path: path.relative_to(folder).parts for path in sorted(folder.rglob("*")) if path.is_file()}
        inside = {path: parts for path, parts in inside.items() if not any(part.startswith(".") for part in parts)}
        tables = {path: parts for path, parts in inside.items() if table_suffix(path)}
        texts = {path: parts for path, parts in inside.items() if path.suffix == ".txt"}
        if not tables and any(len(parts) > 1 for parts in texts.values()):
            return self._text_folder(texts, folder)
        tables = tables or {path: parts for path, parts in texts.items() if split_in(parts)}
        if tables:
            return self._table_folder(tables, folder)
        if len(texts) > 1:
            return {"train": self._line_folder(list(texts))}
        raise ValueError(
            f"the folder {folder} holds no data: expected train.csv (or {', '.join(TABLE_SUFFIXES[1:])}), "
            "<label>/<name>.txt, <split>/<label>/<name>.txt, or <label>.txt with one text a line"
        )

    def _table_folder(self, files: dict[Path, tuple[str, ...]], folder: Path) -> dict[str, Dataset]:
        if len(files) == 1 and not any(map(split_in, files.values())):
            return self._file(next(iter(files)))
        shards: dict[str, list[Dataset]] = {}
        for path, parts in files.items():
            split = split_in(parts)
            if split:
                shards.setdefault(split, []).append(one_table(self._file(path), split, None, str(path)))
            else:
                logger.info("leaving out %s: no split is in its name", path)
        if not shards:
            raise ValueError(
                f"none of the {len(files)} files in {folder} is named by its split ({next(iter(files)).name}): rename "
                "them to train, validation, test, or pass one as dataset, others as validation_file and test_file"
            )
        return {split: datasets.concatenate_datasets(tables) for split, tables in shards.items()}

    def _text_folder(self, files: dict[Path, tuple[str, ...]], folder: Path) -> dict[str, Dataset]:
        """`<split>/<label>/*.txt` or `<label>/*.txt`, one text a file."""
        has_splits = any(parts[0].lower() in SPLIT_NAMES["train"] for parts in files.values())
        splits: dict[str, dict[str, list[str]]] = {}
        for path, parts in files.items():
            if len(parts) == 2 + has_splits and parts[-2].lower() not in UNLABELLED_FOLDERS:
                columns = splits.setdefault(parts[0] if has_splits else "train", {"text": [], "label": []})
                with self.explained(path):
                    columns["text"].append(self.text(path))
                columns["label"].append(parts[-2])
        used = sum(len(columns["text"]) for columns in splits.values())
        if not used:
            raise ValueError(f"no text file of {folder} is <label>/<name>.txt or <split>/<label>/<name>.txt: move them")
        if used < len(files):
            logger.info("leaving out %d text files of %s: not in the folder of a label", len(files) - used, folder)
        return {name: Dataset.from_dict(columns) for name, columns in splits.items()}

    def _line_folder(self, files: list[Path]) -> Dataset:
        """`<label>.txt`, one text a line."""
        columns: dict[str, list[str]] = {"text": [], "label": []}
        for path in files:
            with self.explained(path):
                lines = [line for line in self.text(path).split("\n") if line.strip()]
            columns["text"] += lines
            columns["label"] += [path.stem] * len(lines)
        return Dataset.from_dict(columns)


def table_suffix(path: Path) -> str:
    """`.csv` for `a.csv` and `a.csv.gz`; nothing for a file that is no table."""
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSION_SUFFIXES else path
    return name.suffix.lower() if name.suffix.lower() in TABLE_SUFFIXES else ""


def split_in(parts: tuple[str, ...]) -> str | None:
    """The split that a word of a file's name names, or else of its folders."""
    for part in reversed(parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            for split, names in SPLIT_NAMES.items():
                if word in names:
                    return split
    return None


def _from_hub(name: str, config: str | None) -> dict[str, Dataset]:
    try:
        return dict(datasets.load_dataset(name, config))
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"{name!r} is no file or folder in {Path.cwd()}, and the Hub gives out no data set of that name: {error}"
        ) from error
    except (ValueError, RuntimeError, DatasetsError) as error:
        raise ValueError(f"the data set {name!r} cannot be loaded: {error.__cause__ or error}") from error


def _from_json(text: str, path: Path) -> dict[str, Dataset]:
    """One JSON value, or a row a line."""
    if table_suffix(path) == ".json":
        try:
            return _from_json_value(json.loads(text), path)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):  # a second line, so one row a line
                raise ValueError(f"{path} is not JSON: {error}") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} of {path} is not JSON: {error.msg} in {line[:80]!r}") from error
    return {"train": _from_rows(rows, path)}


def _from_json_value(value: Any, path: Path) -> dict[str, Dataset]:
    if isinstance(value, list):
        return {"train": _from_rows(value, path)}
    columns = {key: item for key, item in value.items() if isinstance(item, list)} if isinstance(value, dict) else {}
    splits = {key: item for key, item in columns.items() if item and isinstance(item[0], list | dict)}
    # {"text": ["a", "b"], "labels": [["x"], ["y"]]} has a list of lists, too, but beside lists of strings.
    if len(splits) < len(columns) and len({len(column) for column in columns.values()}) == 1:
        return {"train": Dataset.from_dict({key: _of_one_type(column) for key, column in columns.items()})}
    if not splits:
        raise ValueError(
            f"{path} is a JSON {type(value).__name__} without rows: expected a list of rows, an object of columns of "
            "the same length, or an object of splits, each a list of rows"
        )
    return {key: _from_rows(rows, path) for key, rows in splits.items()}


def _from_rows(rows: list[Any], path: Path) -> Dataset:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, list | dict) or type(row) is not type(rows[0]):
            raise ValueError(f"row {number} of {path} is {row!r:.80}: expected {type(rows[0]).__name__}s throughout")
    dicts = [row if isinstance(row, dict) else {f"column_{i}": item for i, item in enumerate(row)} for row in rows]
    names = dict.fromkeys(name for row in dicts for name in row)
    return Dataset.from_dict({name: _of_one_type([row.get(name) for row in dicts]) for name in names})


def _of_one_type(column: list[Any]) -> list[Any]:
    """An Arrow column has one type, so a mixed one becomes strings."""
    try:
        pa.array(column)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return [None if item is None else str(item) for item in column]
    return column


def choose_splits(
    tables: dict[str, Dataset], wanted: dict[str, str | None], from_files: set[str], source: str
) -> dict[str, Dataset]:
    """`train` and, where they are, `validation` and `test`: by the names wanted, then by the usual ones."""
    names: dict[str, str] = {}
    for role, split in wanted.items():
        if split is None or role in from_files or (role == split == "train" and split not in tables):
            continue
        if split not in tables:
            raise ValueError(f"{role}_split is {split!r}, but {source} has the splits {', '.join(tables)}: choose one")
        if split in names.values():
            raise ValueError(f"{role}_split is {split!r}, which another split is made of: choose another one")
        names[role] = split
    for role, usual in SPLIT_NAMES.items():
        free = {name.lower(): name for name in tables if name not in names.values()}
        found = [free[name] for name in usual if name in free]
        if found and role not in names and role not in from_files:
            names[role] = found[0]
    if not names and len(tables) == 1:
        names["train"] = next(iter(tables))
    if "train" not in names:
        raise ValueError(f"{source} has the splits {', '.join(tables)}, none of them for training: pass train_split")
    left_out = [name for name in tables if name not in names.values()]
    if left_out:
        logger.info("leaving out the splits %s of %s", ", ".join(left_out), source)
    return {role: tables[name] for role, name in names.items()}


def one_table(tables: dict[str, Dataset], role: str, split: str | None, source: str) -> Dataset:
    """The table of a file that stands for one split."""
    if split is None and len(tables) == 1:
        return next(iter(tables.values()))
    found = [name for name in tables if name == split or (split is None and name.lower() in SPLIT_NAMES[role])]
    if not found:
        raise ValueError(f"{source} has the splits {', '.join(tables)}: name one of them as {role}_split")
    return tables[found[0]]

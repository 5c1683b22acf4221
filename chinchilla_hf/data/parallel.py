"""
Texts and their translations: two aligned files, a table, a folder or the Hub, as [`load_parallel`] finds them.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from .tables import COMPRESSION_SUFFIXES, SPLIT_NAMES, TableReader, choose_splits

logger = logging.getLogger(__name__)

ON_EMPTY = ("stop", "skip")
# Where a validation or test split has to be made of training pairs: so many, or this share if that is fewer.
HELD_OUT_PAIRS = 1000
HELD_OUT_SHARE = 0.05


@dataclass(frozen=True)
class ParallelData:
    """
    Pairs of texts, split.

    Args:
        splits: `train`, `validation` and `test`, each with the string columns `source` and `target`.
        num_empty: pairs left out because a side had no visible character.
        num_duplicates: training pairs left out because they occur again, before splits were made of them.
        fingerprint: a hash of all texts and how they are split.
    """

    splits: DatasetDict
    num_empty: int
    num_duplicates: int
    fingerprint: str

    def summary(self) -> str:
        """One line for the user."""
        rows = ", ".join(f"{name} {len(split):,}" for name, split in self.splits.items())
        left_out = [
            f"{count:,} {what}"
            for count, what in ((self.num_empty, "with an empty side"), (self.num_duplicates, "duplicates"))
            if count
        ]
        return f"pairs: {rows}" + (f" (left out: {', '.join(left_out)})" if left_out else "")


def load_parallel(
    dataset: str,
    source: str,
    target: str,
    *,
    dataset_config: str | None = None,
    target_file: str | None = None,
    validation_files: tuple[str, str] | None = None,
    test_files: tuple[str, str] | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    test_split: str | None = None,
    on_empty: str = "stop",
    max_rows: int | None = None,
    seed: int = 42,
    encoding: str = "utf-8",
    encoding_errors: str = "strict",
    delimiter: str | None = None,
    quoting: bool = True,
) -> ParallelData:
    """
    Load texts in one language and their translations to another.

    `dataset` is one of these; what is here on disk goes before the Hub:

    - a text file with one text a line, and `target_file` with the translations, line by line (also `.gz`, `.bz2`,
      `.xz`)
    - a folder of such files, named by split and language: `train.en`, `train.de`, `val.en.gz`, ...
    - a table with a column for each language (`.tsv`, `.csv`, `.json`, `.jsonl`, `.parquet`), or a folder of those
    - the name of a data set on the Hub

    A table has the columns `source` and `target` name, or a column `translation` whose values are objects with these
    keys, as many data sets on the Hub have.

    A missing validation or test split is taken from the training pairs, after those that repeat an earlier one are
    dropped. Splits that are given stay as they are.

    Args:
        dataset: see above.
        source, target: language codes, which are endings of file names, columns, or keys.
        dataset_config: which configuration of a Hub data set.
        target_file: see above.
        validation_files, test_files: two aligned files of their own for that split.
        train_split, validation_split, test_split: names of splits, where they are not the usual ones.
        on_empty: at a pair of which one side is empty, `"stop"`, or `"skip"` and count it. Pairs of two empty sides
            are always left out.
        max_rows: at most so many pairs a split, the first ones: for a quick trial.
        seed: of the splits made.
        encoding, encoding_errors: of text files; `encoding_errors="replace"` reads past undecodable bytes.
        delimiter: of CSV and text tables, where it is not a comma (`.csv`) or a tab (`.tsv`).
        quoting: False for tables in which `"` is an ordinary character.

    Raises:
        FileNotFoundError: no such file, folder or Hub data set.
        ValueError: files of different lengths, an empty side, columns that are not there, or nothing to train on. The
            message says what to do.
    """
    if on_empty not in ON_EMPTY:
        raise ValueError(f"on_empty is {on_empty!r}, but must be one of {', '.join(ON_EMPTY)}: choose one")
    if source == target:
        raise ValueError(f"source and target are both {source!r}: name two languages")
    reader = TableReader(encoding, encoding_errors, delimiter, quoting)
    path = Path(dataset).expanduser()
    own_files = {"validation": validation_files, "test": test_files}
    aligned = {} if not path.is_dir() else _aligned_files(path, source, target)
    pairs: dict[str, tuple[list[Any], list[Any]]] = {}
    if target_file is not None:
        pairs["train"] = _read_aligned((dataset, target_file), reader)
    elif aligned:
        names = {"train": train_split, "validation": validation_split, "test": test_split}
        for role, files in _choose_files(aligned, names, path).items():
            pairs[role] = _read_aligned(files, reader)
    else:
        wanted = {"train": train_split, "validation": validation_split, "test": test_split}
        given = {role for role, own in own_files.items() if own is not None}
        try:
            tables = choose_splits(reader.read(dataset, dataset_config), wanted, given, dataset)
        except ValueError as error:
            if not path.is_dir():
                raise
            raise ValueError(
                f"the folder {dataset} has no two files that differ in their endings .{source} and .{target} only, nor "
                f"tables: {error}"
            ) from error
        pairs |= {role: _sides(table, source, target, dataset) for role, table in tables.items()}
    for role, own in own_files.items():
        if own is not None:
            pairs[role] = _read_aligned(own, reader)

    num_empty = 0
    for role, (sources, targets) in pairs.items():
        kept = list(_whole_pairs(role, sources, targets, on_empty))
        num_empty += len(sources) - len(kept)
        if not kept:
            raise ValueError(f"the {role} split of {dataset} has no pair with text on both sides: check the files")
        pairs[role] = tuple(map(list, zip(*kept, strict=True)))  # type: ignore[assignment]

    num_duplicates = 0
    missing = [role for role in ("validation", "test") if role not in pairs]
    if missing:
        num_pairs = len(pairs["train"][0])
        pairs["train"] = tuple(map(list, zip(*dict.fromkeys(zip(*pairs["train"], strict=True)), strict=True)))  # type: ignore[assignment]
        num_duplicates = num_pairs - len(pairs["train"][0])
        _hold_out(pairs, missing, seed)
    splits = DatasetDict(
        {
            role: Dataset.from_dict({"source": pairs[role][0][:max_rows], "target": pairs[role][1][:max_rows]})
            for role in ("train", "validation", "test")
        }
    )
    return ParallelData(splits, num_empty, num_duplicates, _fingerprint(splits))


def _aligned_files(folder: Path, source: str, target: str) -> dict[str, tuple[str, str]]:
    """Files of `folder` whose names differ in the language only, by what the names have in common."""
    by_language: dict[str, dict[str, str]] = {source: {}, target: {}}
    for path in sorted(folder.iterdir()):
        name = path.name
        for suffix in COMPRESSION_SUFFIXES:
            name = name.removesuffix(suffix)
        stem, _, language = name.rpartition(".")
        if path.is_file() and stem and language in by_language:
            by_language[language][stem] = str(path)
    return {
        stem: (file, by_language[target][stem])
        for stem, file in by_language[source].items()
        if stem in by_language[target]
    }


def _choose_files(
    aligned: dict[str, tuple[str, str]], wanted: dict[str, str | None], folder: Path
) -> dict[str, tuple[str, str]]:
    """Those of the splits: of the names wanted, else the first that begins with a usual name of the split."""
    chosen = {}
    for role, usual in SPLIT_NAMES.items():
        name = wanted[role]
        found = [stem for stem in aligned if stem == name]
        if not found and (name is None or role == name == "train"):
            found = [stem for stem in aligned if stem.lower().split("_")[0].split("-")[0].split(".")[0] in usual]
        if found:
            chosen[role] = aligned[found[0]]
        elif name is not None and role != "train":
            raise ValueError(f"{role}_split is {name!r}, but {folder} has {', '.join(aligned)}: name one of them")
    if not chosen.get("train"):
        if len(aligned) == 1:
            return {"train": next(iter(aligned.values()))}
        raise ValueError(f"{folder} has {', '.join(aligned)}, none of them for training: pass train_split")
    return chosen


def _read_aligned(files: tuple[str, str], reader: TableReader) -> tuple[list[str], list[str]]:
    sources, targets = (_lines(file, reader) for file in files)
    if len(sources) != len(targets):
        raise ValueError(
            f"{files[0]} has {len(sources):,} lines, but {files[1]} has {len(targets):,}: line by line, one has to be "
            "the translation of the other"
        )
    return sources, targets


def _lines(file: str, reader: TableReader) -> list[str]:
    """The lines of a text file. Only a line feed ends one: some alignments have other separators inside texts."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {file!r} (the current folder is {Path.cwd()})")
    with reader.explained(path):
        text = reader.text(path, newline="\n")
    lines = text.split("\n")
    return [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


def _sides(table: Dataset, source: str, target: str, name: str) -> tuple[list[Any], list[Any]]:
    columns = table.column_names
    if source in columns and target in columns:
        return table[source][:], table[target][:]
    if "translation" in columns:
        translations = table["translation"][:]
        keys = list(translations[0]) if translations and isinstance(translations[0], dict) else []
        if source in keys and target in keys:
            return [row[source] for row in translations], [row[target] for row in translations]
        raise ValueError(
            f"the column 'translation' of {name} has {', '.join(keys) or 'no languages'}, but {source!r} and "
            f"{target!r} are wanted: name two of them as source and target"
        )
    raise ValueError(
        f"{name} has the columns {', '.join(columns)}, but {source!r} and {target!r} are wanted: name two of them as "
        "source and target, or give two aligned files"
    )


def _whole_pairs(role: str, sources: list[Any], targets: list[Any], on_empty: str) -> Iterator[tuple[str, str]]:
    for number, sides in enumerate(zip(sources, targets, strict=True), start=1):
        for side, text in zip(("source", "target"), sides, strict=True):
            if text is not None and not isinstance(text, str):
                raise ValueError(
                    f"the {side} of pair {number:,} of the {role} split is {text!r:.60}, but must be a text: name "
                    "columns of texts"
                )
        empty = [side for side, text in zip(("source", "target"), sides, strict=True) if not (text or "").strip()]
        if not empty:
            yield sides
        elif len(empty) == 1 and on_empty == "stop":
            raise ValueError(
                f"the {empty[0]} of pair {number:,} of the {role} split is empty, so the sides may not be aligned: "
                "check them, or pass on_empty='skip' to leave out such pairs"
            )


def _hold_out(pairs: dict[str, tuple[list[str], list[str]]], roles: list[str], seed: int) -> None:
    """Take the splits `roles` from the training pairs, at random."""
    sources, targets = pairs["train"]
    count = min(HELD_OUT_PAIRS, int(HELD_OUT_SHARE * len(sources)))
    if count < 1:
        raise ValueError(
            f"there are {len(sources)} different training pairs, too few to take {' and '.join(roles)} from: give "
            "more, or files for these splits"
        )
    order = np.random.default_rng(seed).permutation(len(sources)).tolist()
    for role in roles:
        taken, order = order[:count], order[count:]
        pairs[role] = [sources[i] for i in taken], [targets[i] for i in taken]
    order.sort()
    pairs["train"] = [sources[i] for i in order], [targets[i] for i in order]


def _fingerprint(splits: DatasetDict) -> str:
    digest = hashlib.sha256()
    for name, split in splits.items():
        digest.update(name.encode())
        for column in ("source", "target"):
            for text in split[column]:
                digest.update(text.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()[:16]

"""
Labelled text, from wherever it is to train, validation and test splits.

    data = load_labelled("reviews.csv")  # or a folder, a .jsonl.gz, a Hub name
    print(data.summary())
    data.splits["train"][0]  # {"text": "...", "labels": 2}

[`load_labelled`] reads a Hub data set or local files, finds the columns, the kind of problem and the splits, makes the
splits that are missing, and checks what would otherwise go wrong late or silently: rows without text or label, classes
without a training row, labels that training never saw, texts on both sides of a split.
"""

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Sequence as ListOf

from .columns import Columns, as_number, choose_columns, described, is_text, type_name
from .tables import SPLIT_NAMES, TableReader, check_reading_options, choose_splits, one_table

logger = logging.getLogger(__name__)

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@dataclass(frozen=True)
class LabelledData:
    """
    Three splits, ready to be tokenized.

    Args:
        splits: `train`, `validation`, `test`; columns `text`, for pairs `text_pair`, and `labels`: a `ClassLabel`, a
            list of 0.0 and 1.0 (one a class) for multi-label, a float (or a list of them) for regression.
        problem_type: as in `config.problem_type` of Transformers.
        label_names: class names, by id; for regression one name a target.
        text_columns: the one or two columns that the texts come from.
        label_column: the column, or the columns with commas between, that the labels come from.
        num_missing_removed: rows without text or label, over all splits.
        num_duplicates_removed: training rows that repeated the text of an earlier one.
        num_conflicts_removed: how many of those had another label than the row that was kept.
        num_seen_in_train: split -> rows whose text is in `train`, too.
        fingerprint: SHA-256 over all texts and labels, for the run record.
    """

    splits: DatasetDict
    problem_type: str
    label_names: list[str]
    text_columns: tuple[str, ...]
    label_column: str
    num_missing_removed: int
    num_duplicates_removed: int
    num_conflicts_removed: int
    num_seen_in_train: dict[str, int]
    fingerprint: str

    def summary(self) -> str:
        """Rows and class balance (or range of the targets) for people to read: one line a split."""
        head = f"{self.problem_type}: {' + '.join(self.text_columns)} -> {self.label_column}"
        if self.problem_type != REGRESSION:
            head += f", {len(self.label_names)} classes"
        lines = [
            f"  {name:<10} {len(split):>9,} rows   {self._balance(split['labels'][:])}"
            for name, split in self.splits.items()
        ]
        tail = (
            f"  removed: {self.num_missing_removed:,} rows without text or label, {self.num_duplicates_removed:,} "
            f"duplicates ({self.num_conflicts_removed:,} of them with another label)"
        )
        return "\n".join([head, *lines, tail])

    def _balance(self, labels: list[Any]) -> str:
        if self.problem_type == REGRESSION:
            targets = np.array(labels, dtype=float).reshape(len(labels), -1).T  # (targets, rows)
            return "; ".join(
                f"{name} {column.min():.4g} to {column.max():.4g}, mean {column.mean():.4g}, std {column.std():.4g}"
                for name, column in zip(self.label_names, targets, strict=True)
            )
        counts = Counter(i for label in labels for i in _class_ids(label))
        shares = sorted((counts[i] / len(labels), name) for i, name in enumerate(self.label_names))
        if len(shares) <= 8:
            return ", ".join(f"{name} {share:.1%}" for share, name in reversed(shares))
        return f"{shares[-1][1]} {shares[-1][0]:.2%} (most frequent) to {shares[0][1]} {shares[0][0]:.2%} (rarest)"


@dataclass
class _Rows:
    """Rows of one split, cleaned: texts `(text,)` or `(text, text_pair)`, and a label each."""

    texts: list[tuple[str, ...]]
    labels: list[Any]

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Iterable[int]) -> "_Rows":
        indices = list(indices)
        return _Rows([self.texts[i] for i in indices], [self.labels[i] for i in indices])


def load_labelled(
    dataset: str,
    *,
    dataset_config: str | None = None,
    validation_file: str | None = None,
    test_file: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    test_split: str | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    label_separator: str | None = None,
    class_names: Sequence[str] | None = None,
    problem_type: str | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    seed: int = 42,
    drop_duplicates: bool = True,
    max_rows: int | None = None,
    encoding: str = "utf-8",
    encoding_errors: str = "strict",
    delimiter: str | None = None,
    quoting: bool = True,
) -> LabelledData:
    """
    Load labelled texts or text pairs, and split them.

    `dataset` is one of these; what is here on disk goes before the Hub:

    - a file: `.csv`, `.tsv`, `.json`, `.jsonl`, `.parquet` (all but Parquet also with `.gz`, `.bz2`, `.xz`), or a
      `.txt` that is a table with tabs. JSON is a list of rows, an object of columns, or an object of splits whose
      values are lists of rows. A row is an object, or a list: its columns are `column_0`, `column_1`, ...
    - a folder of such files, named by split (`train.csv`, `dev.csv`, `data/train-00000-of-00002.parquet`)
    - a folder of texts: `<split>/<label>/*.txt` or `<label>/*.txt` (one text a file), or `<label>.txt` (one a line)
    - a folder written by `save_to_disk`, or laid out as a data set repository with `configs` in its README.md
    - the name of a data set on the Hub

    Columns are found by their names, then by what they hold. The problem is regression if the labels are numbers and
    not all whole, multi-label if they are lists or several 0/1 columns, and single-label otherwise. Class ids follow
    the order of `class_names` or of a `ClassLabel`, else of the numbers, else of the alphabet.

    A missing validation or test split is taken from the training rows: for single-label, from every class in
    proportion. One row of every class always stays in training. Before that, rows that repeat an earlier text are
    dropped, so that no text is on both sides. Splits that are given stay as they are.

    Args:
        dataset: see above.
        dataset_config: which configuration of a Hub data set.
        validation_file, test_file: a file or folder of its own for that split.
        train_split, validation_split, test_split: names of splits, where they are not the usual ones.
        text_column, text_pair_column, label_column: columns, where they are not found. Several label columns are
            the 0/1 columns of multi-label data or the targets of a regression.
        label_separator: splits a label string into several: `"|"` for `joy|love`.
        class_names: all classes, in the order of their ids; not for regression.
        problem_type: `single_label_classification`, `multi_label_classification` or `regression`, against the guess.
        validation_share, test_share: share of the training rows for a split that has to be made.
        seed: of the splits made, and of `max_rows`.
        drop_duplicates: False keeps rows with the same text, which may then end up on both sides of a split.
        max_rows: at most so many rows a split, drawn at random after all checks: for a quick trial.
        encoding, encoding_errors: of text files; `encoding_errors="replace"` reads past undecodable bytes.
        delimiter: of CSV and text tables, where it is not a comma (`.csv`) or a tab (`.tsv`, `.txt`).
        quoting: False for tables in which `"` is an ordinary character.

    Raises:
        FileNotFoundError: no such file, folder or Hub data set.
        ValueError: the data cannot be read, are ambiguous, or cannot be trained on. The message says what to do.
    """
    known = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
    if problem_type is not None and problem_type not in known:
        raise ValueError(f"problem_type is {problem_type!r}, but must be one of {', '.join(known)}: choose one")
    check_reading_options(validation_share, test_share, max_rows, encoding, encoding_errors)
    reader = TableReader(encoding, encoding_errors, delimiter, quoting)
    wanted = {"train": train_split, "validation": validation_split, "test": test_split}
    files = {name: file for name, file in (("validation", validation_file), ("test", test_file)) if file is not None}
    tables = choose_splits(reader.read(dataset, dataset_config), wanted, set(files), dataset)
    for name, file in files.items():
        tables[name] = one_table(reader.read(file), name, wanted[name], file)

    columns = choose_columns(tables["train"], text_column, text_pair_column, label_column)
    demanded = {"train", *files, *(name for name, split in wanted.items() if split is not None)}
    rows, num_missing = _clean_rows(tables, columns, demanded, label_separator)
    classes = list(class_names or _declared_classes(tables["train"], columns))
    problem_type, names = _encode_labels(rows, columns, problem_type, classes)
    if class_names and problem_type == REGRESSION:
        raise ValueError(f"class_names are {_listed(list(class_names))}, but regression has no classes: leave them out")

    num_duplicates = num_conflicts = 0
    shares = {"validation": validation_share, "test": test_share}
    shares = {name: share for name, share in shares.items() if name not in rows}
    if shares and drop_duplicates:
        rows["train"], num_duplicates, num_conflicts = _drop_duplicates(rows["train"])
    _make_splits(rows, shares, problem_type, seed)
    num_seen = _count_seen(rows)
    if max_rows is not None:
        rows = {name: _sample(split, max_rows, seed) for name, split in rows.items()}

    data = LabelledData(
        splits=_build_splits(rows, problem_type, names),
        problem_type=problem_type,
        label_names=names,
        text_columns=columns.texts,
        label_column=",".join(columns.labels),
        num_missing_removed=num_missing,
        num_duplicates_removed=num_duplicates,
        num_conflicts_removed=num_conflicts,
        num_seen_in_train=num_seen,
        fingerprint=_fingerprint(rows, problem_type, names),
    )
    logger.info("%s", data.summary())
    return data


# ---- Labels ----


def _clean_rows(
    tables: dict[str, Dataset], columns: Columns, demanded: set[str], separator: str | None
) -> tuple[dict[str, _Rows], int]:
    """Rows with text and label, and how many others there were. A found split without labels is as good as none."""
    rows, total = {}, 0
    for name, table in tables.items():
        labels = _read_labels(name, table, columns, separator, demanded)
        if name not in demanded and all(label is None for label in labels):
            logger.warning("the split %s has no labels: leaving it out", name)
            continue
        texts = list(zip(*(_read_texts(name, table, column) for column in columns.texts), strict=True))
        kept = [i for i, text in enumerate(texts) if labels[i] is not None and all(part.strip() for part in text)]
        rows[name] = _Rows(texts, labels).select(kept)
        missing = len(texts) - len(kept)
        if not kept:
            raise ValueError(
                f"no row of split {name!r} has both text ({', '.join(columns.texts)}) and label "
                f"({', '.join(columns.labels)}): pass other columns as text_column and label_column"
            )
        if missing:
            logger.warning("dropping %d of the %d rows of %s, which lack text or label", missing, len(texts), name)
        total += missing
    return rows, total


def _read_texts(split: str, table: Dataset, column: str) -> list[str]:
    if column not in table.column_names:
        raise ValueError(f"split {split!r} lacks the text column {column!r}; its columns are {described(table)}")
    feature = table.features[column]
    if not is_text(feature) and not (isinstance(feature, Value) and feature.dtype == "null"):
        raise ValueError(
            f"text column {column!r} of split {split!r} holds {type_name(feature)}, not text; the columns are "
            f"{described(table)}: choose another with text_column"
        )
    return [value or "" for value in table[column][:]]


def _read_labels(split: str, table: Dataset, columns: Columns, separator: str | None, demanded: set[str]) -> list[Any]:
    """One label a row: a value, a list, or None. Class ids of a `ClassLabel` become names."""
    absent = [column for column in columns.labels if column not in table.column_names]
    if absent and split in demanded:
        raise ValueError(f"split {split!r} lacks the label column {absent[0]!r}; its columns are {described(table)}")
    if absent:
        return [None] * len(table)
    if len(columns.labels) > 1:
        values = [_read_label_column(table, column, None) for column in columns.labels]
        return [None if None in row else list(row) for row in zip(*values, strict=True)]
    return _read_label_column(table, columns.labels[0], separator)


def _read_label_column(table: Dataset, column: str, separator: str | None) -> list[Any]:
    feature, values = table.features[column], table[column][:]
    items = getattr(feature, "feature", None)
    if isinstance(feature, ClassLabel):  # -1 is how the Hub marks a hidden label
        return [None if value is None or value < 0 else feature.names[value] for value in values]
    if isinstance(items, ClassLabel):
        return [None if value is None else [items.names[i] for i in value] for value in values]
    values = [(value.strip() or None) if isinstance(value, str) else value for value in values]
    if separator is None:
        return values
    if not is_text(feature):
        raise ValueError(f"label_separator is {separator!r}, but {column!r} holds {type_name(feature)}: leave it out")
    return [value and [item.strip() for item in value.split(separator) if item.strip()] for value in values]


def _declared_classes(train: Dataset, columns: Columns) -> list[str]:
    feature = train.features[columns.labels[0]]
    feature = getattr(feature, "feature", feature)
    return feature.names if len(columns.labels) == 1 and isinstance(feature, ClassLabel) else []


def _items(label: Any) -> list[Any]:
    return label if isinstance(label, list) else [label]


def _guess_problem(labels: list[Any], columns: Columns) -> str:
    where = f"label column {', '.join(columns.labels)}"
    items = [item for label in labels for item in _items(label)]
    numbers = [number for number in map(as_number, items) if number is not None]
    numeric = len(numbers) == len(items)
    whole = numeric and all(number.is_integer() for number in numbers)
    for item in items:
        if not isinstance(item, str | int | float):
            raise ValueError(f"{where} holds {type(item).__name__} ({item!r:.80}): choose another with label_column")
    if len(columns.labels) > 1:
        if not numeric:
            raise ValueError(f"{where}: several label columns must hold numbers (0 and 1, or targets): choose one")
        return MULTI_LABEL if set(numbers) <= {0.0, 1.0} else REGRESSION
    if any(isinstance(label, list) for label in labels):
        if numeric and not whole:
            raise ValueError(f'{where} holds lists of fractions: pass problem_type="regression" if they are targets')
        return MULTI_LABEL
    return REGRESSION if numeric and not whole else SINGLE_LABEL


def _encode_labels(
    rows: dict[str, _Rows], columns: Columns, problem_type: str | None, classes: list[str]
) -> tuple[str, list[str]]:
    """Replace the labels of `rows` by ids, multi-hot vectors or targets; give the problem type and the names."""
    train = rows["train"].labels
    guessed = None if problem_type else _guess_problem(train, columns)
    problem_type = problem_type or str(guessed)
    if problem_type == REGRESSION:
        return REGRESSION, _encode_targets(rows, columns)
    named, classes = _name_labels(rows, columns, problem_type == MULTI_LABEL, classes)
    names = classes or _sorted_names(named["train"])
    where = f"label column {', '.join(columns.labels)}"
    _check_classes(named, names, where)
    if problem_type == SINGLE_LABEL and len(names) == 1:
        raise ValueError(f"{where} holds one class only, {names[0]!r}: training needs two or more classes")
    if guessed == SINGLE_LABEL and len(names) > max(20, len(train) / 2):
        raise ValueError(
            f"{where} holds {len(names)} different values in {len(train)} rows, such as {names[0]!r}: choose another "
            'with label_column, pass problem_type="regression" if they are numbers to predict, or '
            f'problem_type="{SINGLE_LABEL}" if they are classes'
        )
    ids = {name: i for i, name in enumerate(names)}
    for split, labels in named.items():
        if problem_type == SINGLE_LABEL:
            rows[split].labels = [ids[label[0]] for label in labels]
        else:
            rows[split].labels = [[float(name in label) for name in names] for label in labels]
    return problem_type, names


def _encode_targets(rows: dict[str, _Rows], columns: Columns) -> list[str]:
    where = f"label column {', '.join(columns.labels)}"
    first = rows["train"].labels[0]
    width = len(_items(first))
    for split, part in rows.items():
        targets = [[as_number(item) for item in _items(label)] for label in part.labels]
        bad = [i for i, target in enumerate(targets) if not all(n is not None and math.isfinite(n) for n in target)]
        if bad:
            raise ValueError(
                f"{len(bad)} targets of split {split!r} are no finite numbers, such as {part.labels[bad[0]]!r} in "
                f"{where} for the text {part.texts[bad[0]][0]!r:.60}: correct or remove these rows"
            )
        if any(len(target) != width for target in targets):
            raise ValueError(f"{where}: every row must have as many targets as the first, {width}")
        part.labels = targets if isinstance(first, list) else [target[0] for target in targets]
    if len(columns.labels) == width:
        return list(columns.labels)
    return [f"{columns.labels[0]}_{i}" for i in range(width)]


def _name_labels(
    rows: dict[str, _Rows], columns: Columns, multi_label: bool, classes: list[str]
) -> tuple[dict[str, list[list[str]]], list[str]]:
    """Class names of every row, for each split; and all classes, if that is known beforehand."""
    where = f"label column {', '.join(columns.labels)}"
    train = rows["train"].labels
    for split, part in rows.items():
        for label in part.labels:
            if isinstance(label, list) != multi_label:
                raise ValueError(
                    f"{where} of split {split!r} holds {label!r:.80}: multi-label data need lists (or label_separator "
                    "to split strings, or several label columns), single-label data one value a row"
                )
    several = len(columns.labels) > 1
    if multi_label and (several or _is_multi_hot(train)):
        classes = classes or (list(columns.labels) if several else [str(i) for i in range(len(train[0]))])
        return {
            split: [_hot_names(label, classes, where) for label in part.labels] for split, part in rows.items()
        }, classes
    items = [item for label in train for item in _items(label)]
    numeric = all(not isinstance(item, bool) and as_number(item) is not None for item in items)
    return {
        split: [[_class_name(item, numeric) for item in _items(label)] for label in part.labels]
        for split, part in rows.items()
    }, classes


def _is_multi_hot(labels: list[list[Any]]) -> bool:
    """Rows of 0 and 1 of one width: lists of class ids would differ in length, or hold no value twice."""
    width = len(labels[0])
    return width > 1 and all(
        len(label) == width and {as_number(item) for item in label} <= {0.0, 1.0} for label in labels
    )


def _hot_names(label: list[Any], classes: list[str], where: str) -> list[str]:
    numbers = [as_number(item) for item in label]
    if len(numbers) != len(classes) or not set(numbers) <= {0.0, 1.0}:
        raise ValueError(
            f"{where} holds {label!r:.80}, but every row must have {len(classes)} values, 0 or 1, as others do"
        )
    return [name for name, number in zip(classes, numbers, strict=True) if number == 1.0]


def _class_name(item: Any, numeric: bool) -> str:
    """`1`, `1.0` (a column of whole numbers in which one was missing) and `"1"` are one class."""
    number = as_number(item)
    if not numeric or number is None or isinstance(item, int) or not math.isfinite(number):
        return str(item)
    if isinstance(item, str) and item.isdigit():  # "007" keeps its zeros
        return item
    return str(int(number)) if number.is_integer() else str(number)


def _sorted_names(labels: list[list[str]]) -> list[str]:
    names = sorted({name for label in labels for name in label})
    return sorted(names, key=float) if all(as_number(name) is not None for name in names) else names


def _check_classes(named: dict[str, list[list[str]]], names: list[str], where: str) -> None:
    """Every class must be in training, and nothing else anywhere."""
    known = set(names)
    seen = {name for label in named["train"] for name in label}
    unused = [name for name in names if name not in seen]
    if unused or not names:
        raise ValueError(
            f"{len(unused) or 'all'} of the {len(names)} classes of {where} have no training row: {_listed(unused)}. "
            "Add rows for them, or pass class_names without them"
        )
    for split, labels in named.items():
        unknown = Counter(name for label in labels for name in label if name not in known)
        if unknown:
            num_rows = sum(any(name in unknown for name in label) for label in labels)
            lacking = "class_names lacks" if split == "train" else "training never saw"
            raise ValueError(
                f"{num_rows} of the {len(labels)} rows of split {split!r} have labels that {lacking}: "
                f"{_listed(list(unknown))}; the classes are {_listed(names)}. Correct the labels or remove these rows"
            )


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


# ---- Making the splits ----


def _drop_duplicates(rows: _Rows) -> tuple[_Rows, int, int]:
    """The first row of every text, the number of rows dropped, and of those with another label than the first."""
    first: dict[tuple[str, ...], int] = {}
    conflicts = 0
    for i, text in enumerate(rows.texts):
        conflicts += rows.labels[first.setdefault(text, i)] != rows.labels[i]
    dropped = len(rows) - len(first)
    if dropped:
        logger.info("dropping %d training rows with the text of another, %d with another label", dropped, conflicts)
    return rows.select(first.values()), dropped, conflicts


def _class_ids(label: Any) -> list[int]:
    if isinstance(label, list):
        return [i for i, value in enumerate(label) if value]
    return [label]


def _make_splits(rows: dict[str, _Rows], shares: dict[str, float], problem_type: str, seed: int) -> None:
    """Move a share of the training rows to each split in `shares`."""
    total = len(rows["train"])
    for number, (name, share) in enumerate(shares.items()):
        train = rows["train"]
        count = max(1, round(share * total))
        held_out = _hold_out(train.labels, count, problem_type, np.random.default_rng((seed, number)))
        if len(held_out) < count:
            raise ValueError(
                f"there are too few rows to make the split {name!r}: it needs {count} of {len(train)}, and one row of "
                f"every class must stay to train on. Pass {name}_file, a smaller {name}_share, or more rows"
            )
        logger.info("taking %d of %d training rows as the split %s (seed %d)", count, total, name, seed)
        rows[name] = train.select(held_out)
        rows["train"] = train.select(sorted(set(range(len(train))) - set(held_out)))


def _hold_out(labels: list[Any], count: int, problem_type: str, rng: np.random.Generator) -> list[int]:
    """
    `count` rows, at random (fewer, if there are not so many): all but one random row of every class are candidates.

    For single-label by systematic sampling: the candidates in order of their class and in random order within it, and
    every n-th taken. So each class gives its share to within one row, also where scikit-learn's stratified split
    refuses: classes with one row, more classes than rows to take.
    """
    seen: set[int] = set()
    candidates: list[int] = []
    order = rng.permutation(len(labels)).tolist()
    for i in order:
        classes = [] if problem_type == REGRESSION else _class_ids(labels[i])
        if i != order[0] and seen.issuperset(classes):
            candidates.append(i)
        seen.update(classes)
    if problem_type == SINGLE_LABEL:
        candidates.sort(key=lambda i: labels[i])  # stable: the random order stays within a class
    if len(candidates) <= count:
        return sorted(candidates)
    picks = (np.arange(count) + rng.random()) * (len(candidates) / count)
    return sorted(candidates[int(pick)] for pick in picks)


def _count_seen(rows: dict[str, _Rows]) -> dict[str, int]:
    train = set(rows["train"].texts)
    counts = {name: sum(text in train for text in rows[name].texts) for name in ("validation", "test")}
    for name, count in counts.items():
        if count:
            logger.warning(
                "%d of the %d rows of %s have a text of train: scores on it flatter", count, len(rows[name]), name
            )
    return counts


def _sample(rows: _Rows, count: int, seed: int) -> _Rows:
    return rows.select(sorted(np.random.default_rng(seed).permutation(len(rows))[:count].tolist()))


def _build_splits(rows: dict[str, _Rows], problem_type: str, names: list[str]) -> DatasetDict:
    vector: Any = ListOf(Value("float32"), length=len(names))
    feature = {
        SINGLE_LABEL: ClassLabel(names=names),
        MULTI_LABEL: vector,
        REGRESSION: vector if isinstance(rows["train"].labels[0], list) else Value("float32"),
    }[problem_type]
    splits = DatasetDict()
    for name in SPLIT_NAMES:
        part = rows[name]
        columns = dict(zip(("text", "text_pair"), map(list, zip(*part.texts, strict=True)), strict=False))
        features = Features({**{column: Value("string") for column in columns}, "labels": feature})
        splits[name] = Dataset.from_dict({**columns, "labels": part.labels}, features=features)
    return splits


def _fingerprint(rows: dict[str, _Rows], problem_type: str, names: list[str]) -> str:
    digest = hashlib.sha256(json.dumps([problem_type, names]).encode())
    for name in SPLIT_NAMES:
        digest.update(json.dumps([name, len(rows[name])]).encode())
        for row in zip(rows[name].texts, rows[name].labels, strict=True):
            digest.update(json.dumps(row).encode())
    return digest.hexdigest()

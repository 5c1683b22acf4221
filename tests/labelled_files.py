"""What the tests of labelled data share: files to read, and the rows that were read."""

import json
from pathlib import Path

from chinchilla_hf.data.labelled import LabelledData

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
TEXTS = [f"some words {i}" for i in range(20)]
MORE = [f"other words {i}" for i in range(20)]
YES_NO = ["yes", "no"] * 10


def rows_of(data: LabelledData, split: str) -> list[tuple]:
    """(text[, text_pair], label) with class names for ids."""
    part = data.splits[split]
    labels = part["labels"][:]
    if data.problem_type == SINGLE:
        labels = [data.label_names[label] for label in labels]
    texts = [part[name][:] for name in part.column_names if name != "labels"]
    return list(zip(*texts, labels, strict=True))


def all_rows(data: LabelledData) -> list[tuple]:
    return [row for split in data.splits for row in rows_of(data, split)]


def write_jsonl(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_columns(path: Path, **columns: list) -> str:
    names = list(columns)
    return write_jsonl(path, [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)])


def reviews(count: int = 40, classes: tuple = ("bad", "good")) -> list[dict]:
    return [{"text": f"review number {i}, ümlaut", "label": classes[i % len(classes)]} for i in range(count)]


def table(rows: list[dict], delimiter: str) -> bytes:
    cells = [list(rows[0]), *(['"' + str(cell).replace('"', '""') + '"' for cell in row.values()] for row in rows)]
    return "".join(delimiter.join(row) + "\n" for row in cells).encode()


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()

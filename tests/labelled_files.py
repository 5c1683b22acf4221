"""What the tests of labelled data share: files to read, the rows that were read, and a task that is quickly learned."""

import json
import random
from pathlib import Path

import pandas as pd

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


# ---- A task that a tiny model learns in seconds: one word of a sentence gives its label away ----

# Options of training/classify.py: the shape of a model from scratch, and how to train any.
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 100,
    "max_length": 24,
    "hidden_dropout": 0,
}
FAST = {"learning_rate": 5e-3, "num_train_epochs": 6, "per_device_train_batch_size": 8, "disable_tqdm": True}
NOUNS = ["film", "plot", "cast", "music", "ending", "story", "scene", "script"]
FILLERS = ["the", "whole", "really", "somehow", "today", "for me"]
MOODS = {"good": ["fine", "lovely", "great"], "bad": ["awful", "dull", "poor"], "mixed": ["uneven", "odd", "strange"]}


def sentences(count: int, seed: int = 0, moods: tuple[str, ...] = ("good", "bad")) -> list[tuple[str, str]]:
    """Different sentences, each with the word that gives its label away."""
    rng = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        mood = moods[len(rows) % len(moods)]
        words = [
            rng.choice(FILLERS),
            rng.choice(NOUNS),
            rng.choice(MOODS[mood]),
            rng.choice(NOUNS),
            rng.choice(FILLERS),
        ]
        rows.setdefault(" ".join(words), mood)
    return list(rows.items())


def write_csv(path: Path, rows: list[tuple], columns: tuple[str, ...] = ("text", "label")) -> Path:
    pd.DataFrame(rows, columns=list(columns)).to_csv(path, index=False)
    return path

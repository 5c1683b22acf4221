"""
IsoFLOP studies: for each of some budgets, models of several sizes, and the loss that each of them reached.

A study is a CSV file, one row a run (`StudyRun`); `training/study.py` makes it.
"""

import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..run_record import write_atomically
from .shapes import LADDER, Shape

# What the runs of a study have to share: losses of other texts, tokens or tasks cannot be compared.
SHARED = ("objective", "tokenizer", "data", "row_length", "vocab_size")


class StudyError(ValueError):
    """What is wrong with a study."""


@dataclass(frozen=True)
class StudyRun:
    """
    A run of a study.

    Args:
        objective: `"masked"` or `"causal"`.
        tokenizer, data: fingerprints.
        row_length: tokens of a packed row.
        vocab_size: of the tokenizer.
        budget: FLOPs that the run was given; those of one budget are compared.
        seed: of the run.
        hidden_size, num_hidden_layers, num_attention_heads: its shape.
        parameters, parameters_without_embeddings, parameters_with_head: see [`ParameterCounts`].
        learning_rate, rows, steps: how it was trained, `rows` in a step.
        tokens: that it was trained on, repeated ones counted again; `unique_tokens`: that there are.
        characters_per_token: of the text, with this tokenizer.
        flops: that were executed; `paper_flops`: as the paper counts them.
        loss, accuracy: on the same documents, which none was trained on.
        seconds: of training.
    """

    objective: str
    tokenizer: str
    data: str
    row_length: int
    vocab_size: int
    budget: float
    seed: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    parameters: int
    parameters_without_embeddings: int
    parameters_with_head: int
    learning_rate: float
    rows: int
    steps: int
    tokens: int
    unique_tokens: int
    characters_per_token: float
    flops: float
    paper_flops: float
    loss: float
    accuracy: float
    seconds: float

    @property
    def shape(self) -> Shape:
        """Width, depth and heads."""
        return Shape(self.hidden_size, self.num_hidden_layers, self.num_attention_heads)


COLUMNS = {field.name: field.type for field in dataclasses.fields(StudyRun)}


def in_order(runs: Iterable[StudyRun]) -> list[StudyRun]:
    """By budget, size and seed, in whatever order they ended."""
    return sorted(runs, key=lambda run: (run.budget, run.parameters, run.shape, run.seed))


def write_study(path: str | os.PathLike[str], runs: Iterable[StudyRun]) -> None:
    """Write `runs` as CSV, as a whole or not at all, by budget, size and seed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in in_order(runs):
        writer.writerow(dataclasses.asdict(run))
    write_atomically(path, text.getvalue().encode())


def read_study(*paths: str | os.PathLike[str]) -> list[StudyRun]:
    """
    The runs of one study, in one or several files.

    Raises:
        StudyError: a column or a value is missing, a value is no positive number, or the runs differ in what they have
            to share.
        OSError: a file cannot be read.
    """
    runs: list[StudyRun] = []
    for path in paths:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise StudyError(f"{os.fspath(path)} has no column {missing[0]!r}: it is no study of training/study.py")
            runs += [_read_run(row, f"{os.fspath(path)}, line {reader.line_num}") for row in reader]
    if not runs:
        names = " and ".join(os.fspath(path) for path in paths)
        raise StudyError(f"there is no run in {names}: let training/study.py end some")
    check_alike(runs)
    return runs


def _read_run(row: dict[str, str | None], where: str) -> StudyRun:
    values: dict[str, str | int | float] = {}
    for name, kind in COLUMNS.items():
        text = row[name]
        if text is None or not text.strip():
            raise StudyError(f"{where}: there is no {name}: leave the line out, or let the run end")
        if kind is str:
            values[name] = text
            continue
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or number < 0 or (number == 0 and name not in ("seed", "accuracy")):
            raise StudyError(
                f"{where}: {name} is {text}, expected a number above 0: leave the line out, or run it anew"
            )
        values[name] = int(number) if kind is int else number
    return StudyRun(**values)  # type: ignore[arg-type]


def check_alike(runs: Sequence[StudyRun]) -> None:
    """
    Raises:
        StudyError: the runs differ in what they have to share.
    """
    for name in SHARED:
        found = sorted({getattr(run, name) for run in runs})
        if len(found) > 1:
            raise StudyError(
                f"the runs have different values of {name}, {' and '.join(map(str, found))}: their losses cannot be "
                "compared, so fit them apart"
            )


def shapes_around(centre: Shape, count: int) -> list[Shape]:
    """`count` neighbours on the ladder with `centre` in their middle, as far as there are as many on both sides."""
    place = min(range(len(LADDER)), key=lambda i: abs(LADDER[i].hidden_size - centre.hidden_size))
    begin = min(max(0, place - count // 2), len(LADDER) - count)
    return list(LADDER[begin : begin + count])


def best_run(runs: Sequence[StudyRun]) -> StudyRun:
    """The run with the lowest loss."""
    return min(runs, key=lambda run: run.loss)


def next_shape(runs: Sequence[StudyRun], most: int) -> Shape | None:
    """
    The shape to run next of a budget whose lowest loss is at the end of its sizes; `None` where it is between them, the
    ladder is at its end, or there are `most` sizes.
    """
    shapes = sorted({run.shape for run in runs})
    if len(shapes) >= most:
        return None
    best = best_run(runs).shape
    step = -1 if best == shapes[0] else 1 if best == shapes[-1] else 0
    place = LADDER.index(best) + step if best in LADDER else -1
    return LADDER[place] if step and 0 <= place < len(LADDER) else None

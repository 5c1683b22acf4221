"""
A budget in, the right model out: which shape, on how many tokens, with which settings.

    fit, machine = shipped_fit("masked"), machine_profile("masked", 8192, 128)
    plan = make_plan(fit, unique_tokens=1.5e7, seconds=3600, machine=machine)
    plan.chosen.shape, plan.chosen.tokens, plan.chosen.loss
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..run_record import write_atomically
from .flops import ParameterCounts
from .laws import LARGEST_EXTRAPOLATION, ExtrapolationError, Interval
from .machine import MachineProfile
from .shapes import LADDER, Settings, Shape, pretraining_options, training_settings
from .study_fit import StudyFit

# Of the speed of one device, what each of several adds where that was not measured: a stated assumption.
SCALING_FACTOR = 0.9
# Share of the memory that a plan may take.
MEMORY_SHARE = 0.9
# What is left of the worth of a token at so many times the half-life of a repetition is 5%.
SUPPORTED_REPEATS = 3
# Fewer are no training: the learning rate has to rise and fall.
FEWEST_STEPS = 100
# A machine may be slower than when it was measured, or faster: the loss is predicted of as many times the tokens, too.
OTHER_TOKENS = (0.25, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0)


class PlanError(ValueError):
    """A budget, a corpus or a machine that no plan can be made for."""


@dataclass(frozen=True)
class Candidate:
    """
    A shape, and what the budget makes of it.

    Args:
        shape: which.
        parameters: of it.
        settings: how it is trained.
        steps: of the optimizer.
        tokens: that it sees, repeated ones counted again; `epochs`: how often each.
        flops: that are executed.
        seconds: of training; `None` where the machine was not measured.
        memory_bytes: of a process that trains it; likewise.
        loss: that is predicted, on held-out documents, with a 90% interval.
    """

    shape: Shape
    parameters: ParameterCounts
    settings: Settings
    steps: int
    tokens: float
    epochs: float
    flops: float
    seconds: float | None
    memory_bytes: float | None
    loss: Interval


@dataclass(frozen=True)
class Plan:
    """
    What a budget is best spent on.

    Args:
        objective: `"masked"` or `"causal"`.
        vocab_size, row_length: of the runs that the law is of.
        seconds, flops: the budget, one of the two.
        devices: that train it.
        unique_tokens: of the text.
        candidates: all shapes that could be trained, by size.
        chosen: the one with the lowest loss among those that are allowed.
        reasons: why, and what the plan rests on, in sentences.
        losses: of the chosen one, for its tokens and for fewer and more of them, as (tokens, loss).
    """

    objective: str
    vocab_size: int
    row_length: int
    seconds: float | None
    flops: float | None
    devices: int
    unique_tokens: float
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    reasons: tuple[str, ...] = field(default=())
    losses: tuple[tuple[float, Interval], ...] = field(default=())

    def options(self) -> dict[str, Any]:
        """Options of `training/pretrain.py`: by time, it ends when the time does, else after the planned steps."""
        chosen = self.chosen
        rows = max(1, round(chosen.settings.rows / self.devices))
        settings = dataclasses.replace(chosen.settings, rows=rows)
        options = pretraining_options(self.objective, chosen.shape, settings, self.vocab_size, self.row_length)
        # Evaluations would be paid for with time that the plan gives to steps; there is one at the end.
        options |= {"eval_strategy": "no"}
        if self.seconds is not None:
            return options | {"max_minutes": self.seconds / 60}
        return options | {"max_steps": chosen.steps}

    def prediction(self) -> dict[str, Any]:
        """What `run.json` keeps of the plan, to be compared with what came out."""
        chosen = self.chosen
        return {
            "loss": chosen.loss.value,
            "loss_interval": [chosen.loss.low, chosen.loss.high],
            "losses": [[tokens, loss.value, loss.low, loss.high] for tokens, loss in self.losses],
            "seconds": chosen.seconds,
            "tokens": round(chosen.tokens),
            "flops": chosen.flops,
            "steps": chosen.steps,
            "memory_bytes": chosen.memory_bytes,
            "budget_seconds": self.seconds,
            "budget_flops": self.flops,
            **dataclasses.asdict(chosen.shape),
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write [`prediction`] as JSON, as a whole or not at all."""
        write_atomically(path, f"{json.dumps(self.prediction(), indent=2)}\n".encode())


def read_prediction(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    What [`Plan.write`] wrote.

    Raises:
        PlanError: the file is no plan.
        OSError: it cannot be read.
    """
    try:
        prediction = json.loads(Path(path).read_text(encoding="utf-8"))
        low, high = prediction["loss_interval"]
        if not low <= prediction["loss"] <= high:
            raise ValueError(f"loss is {prediction['loss']}, which is not between {low} and {high}")
    except (ValueError, TypeError, KeyError) as error:
        raise PlanError(f"{os.fspath(path)} is no plan ({error!r}): make one with training/plan.py") from None
    return prediction


def receipt(prediction: dict[str, Any], loss: float, training: dict[str, Any]) -> dict[str, Any]:
    """
    For `run.json`: what was predicted, and what came out; with `predicted_loss` for the tokens that were seen and its
    `predicted_loss_interval`, where the plan reaches as far.

    Args:
        prediction: of [`read_prediction`].
        loss: on held-out documents.
        training: of the run record.
    """
    names = ("seconds", "tokens", "flops", "steps", "peak_memory_bytes")
    low, high = prediction["loss_interval"]
    actual = {"loss": loss, "inside": low <= loss <= high} | {name: training[name] for name in names}
    losses = np.array(prediction.get("losses") or np.empty((0, 4)))
    if len(losses) and losses[0, 0] <= actual["tokens"] <= losses[-1, 0]:
        place, known = math.log(actual["tokens"]), np.log(losses[:, 0])
        value, *interval = (float(np.interp(place, known, losses[:, column])) for column in (1, 2, 3))
        actual |= {"predicted_loss": value, "predicted_loss_interval": interval}
    return {"predicted": prediction, "actual": actual}


def make_plan(
    fit: StudyFit,
    unique_tokens: float,
    *,
    seconds: float | None = None,
    flops: float | None = None,
    machine: MachineProfile | None = None,
    devices: int = 1,
    scaling_factor: float | None = None,
    max_parameters: float | None = None,
    allowed: Callable[[Shape], bool] | None = None,
    shapes: Sequence[Shape] = LADDER,
    extrapolate: bool = False,
    same_text: bool = True,
) -> Plan:
    """
    The shape of `shapes` with the lowest predicted loss, of those that the budget, the memory and the limits allow.

    A shape of too many parameters or that answers too slowly is left out, and the budget then trains a smaller one for
    longer (Sardana et al. 2023, arXiv 2401.00448).

    Args:
        fit: of a study, of this text at best.
        unique_tokens: of the text to train on.
        seconds: the budget, of training; needs `machine`.
        flops: the budget, FLOPs that are executed, of all devices together. One of the two.
        machine: what steps cost on one device.
        devices: that train it.
        scaling_factor: share of its speed that each of several devices adds; 0.9 is assumed if not given.
        max_parameters: of all the model.
        allowed: whether a shape may be taken, for other limits, such as the time of an answer.
        shapes: to choose from.
        extrapolate: also far beyond the runs of the study.
        same_text: whether the study is of this text; if not, the plan says that its losses are of another one.

    Raises:
        PlanError: no budget or two, one that is too small, a text that is too short for it, or limits that nothing
            meets; the message says what would do.
        ExtrapolationError: the budget is more than ten times the largest of the study.
    """
    if (seconds is None) == (flops is None):
        raise PlanError(f"seconds is {seconds} and flops {flops}: give one of them")
    budget = seconds if seconds is not None else flops
    if budget is None or not budget > 0 or math.isinf(budget):
        raise PlanError(f"the budget is {budget}, expected a number above 0")
    if seconds is not None and machine is None:
        raise PlanError("the budget is in time, but the machine was not measured: give `machine`, or a budget in FLOPs")
    if devices < 1:
        raise PlanError(f"devices is {devices}, expected at least 1")
    smallest_batch = training_settings(LADDER[0], 1, fit.row_length).rows * fit.row_length
    if unique_tokens < smallest_batch:
        raise PlanError(
            f"the text has {unique_tokens:.0f} tokens to train on, fewer than one batch of {smallest_batch}: give more"
        )
    speed = devices * ((SCALING_FACTOR if scaling_factor is None else scaling_factor) if devices > 1 else 1.0)

    candidates: list[Candidate] = []
    too_large = []
    for shape in shapes:
        candidate = _candidate(shape, fit, unique_tokens, seconds, flops, machine, devices, speed)
        if candidate is None:
            continue
        if machine is not None and (candidate.memory_bytes or 0) > MEMORY_SHARE * machine.memory_bytes:
            too_large.append(shape)
            continue
        candidates.append(candidate)
    spent = max((candidate.flops for candidate in candidates), default=0.0)
    if spent < 0.5 * fit.smallest_budget:
        raise PlanError(_too_small(fit, seconds, spent, machine, shapes[0], speed))
    meeting = [
        candidate
        for candidate in candidates
        if (max_parameters is None or candidate.parameters.total <= max_parameters)
        and (allowed is None or allowed(candidate.shape))
    ]
    if not meeting:
        least = min(candidates, key=lambda candidate: candidate.parameters.total)
        raise PlanError(
            f"no shape meets the limits: the smallest, {least.shape}, has {least.parameters.total:,} parameters; raise "
            "the limits, or take a smaller vocabulary"
        )
    chosen = min(meeting, key=lambda candidate: candidate.loss.value)
    if chosen.flops > LARGEST_EXTRAPOLATION * fit.largest_budget and not extrapolate:
        raise ExtrapolationError(
            f"{chosen.flops:.2g} FLOPs are {chosen.flops / fit.largest_budget:.0f} times the largest budget of the "
            f"study, {fit.largest_budget:.2g}, and nobody knows whether its law holds there: run a study with larger "
            "budgets, or say that it is to be believed (extrapolate)"
        )
    most = 1 + SUPPORTED_REPEATS * fit.law.law.repeats
    if chosen.epochs > most:
        enough = fit.law.law.loss(fit.parameters(chosen.parameters), chosen.tokens)
        raise PlanError(
            f"the budget would show every text {chosen.epochs:.0f} times, but what repeating is worth is known up to "
            f"{most:.0f} times: give a smaller budget, or more text; with {chosen.tokens:.3g} different tokens instead "
            f"of {unique_tokens:.3g} the loss would be {enough:.3f}"
        )
    reasons = _reasons(fit, chosen, meeting, candidates, too_large, devices, scaling_factor, unique_tokens)
    if not same_text:
        reasons.append(
            "The study is of another text: sizes and tokens are near, but expect another loss. A study of this text "
            "(training/study.py) tells it."
        )
    return Plan(
        fit.objective,
        fit.vocab_size,
        fit.row_length,
        seconds,
        flops,
        devices,
        unique_tokens,
        tuple(candidates),
        chosen,
        tuple(reasons),
        tuple(
            (share * chosen.tokens, _loss(fit, chosen.parameters, share * chosen.tokens, unique_tokens))
            for share in OTHER_TOKENS
        ),
    )


def _loss(fit: StudyFit, counts: ParameterCounts, tokens: float, unique_tokens: float) -> Interval:
    return fit.law.predict(fit.parameters(counts), tokens, unique_tokens, extrapolate=True)  # `make_plan` looks at that


def _candidate(
    shape: Shape,
    fit: StudyFit,
    unique_tokens: float,
    seconds: float | None,
    flops: float | None,
    machine: MachineProfile | None,
    devices: int,
    speed: float,
) -> Candidate | None:
    """What the budget makes of a shape; `None` if it is not enough for a training."""
    per_token = shape.flops_per_token(fit.objective, fit.vocab_size, fit.row_length)

    def step_seconds(settings: Settings) -> float | None:
        if machine is None:
            return None
        return machine.seconds(shape, max(1, round(settings.rows / devices))) * devices / speed

    tokens = flops / per_token if flops is not None else 1e5
    settings = training_settings(shape, tokens, fit.row_length)
    if seconds is not None:  # the batch depends on the tokens, and these on the batch
        for _ in range(20):
            took = step_seconds(settings)
            tokens = seconds / (took or math.inf) * settings.rows * fit.row_length
            settings = training_settings(shape, tokens, fit.row_length)
    steps = int(tokens / (settings.rows * fit.row_length))
    if steps < FEWEST_STEPS:
        return None
    took = step_seconds(settings)
    counts = shape.parameters(fit.objective, fit.vocab_size)
    return Candidate(
        shape=shape,
        parameters=counts,
        settings=settings,
        steps=steps,
        tokens=tokens,
        epochs=tokens / unique_tokens,
        flops=tokens * per_token,
        seconds=None if took is None else steps * took,
        memory_bytes=None if machine is None else machine.memory(shape, max(1, round(settings.rows / devices))),
        loss=_loss(fit, counts, tokens, unique_tokens),
    )


def _too_small(
    fit: StudyFit, seconds: float | None, spent: float, machine: MachineProfile | None, smallest: Shape, speed: float
) -> str:
    need = 0.5 * fit.smallest_budget
    text = (
        f"the budget is too small: {spent:.2g} FLOPs" if spent else "the budget is too small for 100 steps of any size"
    )
    text += f", and the smallest that the study tells anything about is {need:.2g}"
    if seconds is not None and machine is not None:
        per_token = smallest.flops_per_token(fit.objective, fit.vocab_size, fit.row_length)
        settings = training_settings(smallest, need / per_token, fit.row_length)
        took = machine.seconds(smallest, settings.rows) / speed
        text += f", about {need / per_token / (settings.rows * fit.row_length) * took:.0f} s on this machine"
    return text


def _reasons(
    fit: StudyFit,
    chosen: Candidate,
    meeting: Sequence[Candidate],
    candidates: Sequence[Candidate],
    too_large: Sequence[Shape],
    devices: int,
    scaling_factor: float | None,
    unique_tokens: float,
) -> list[str]:
    reasons = []
    place = meeting.index(chosen)
    others = [
        f"{other.shape} would have {other.loss.value:.3f} ({other.tokens:.2g} tokens)"
        for other in (*meeting[max(0, place - 1) : place], *meeting[place + 1 : place + 2])
    ]
    if others:
        reasons.append(
            f"{chosen.shape} has the lowest predicted loss, {chosen.loss.value:.3f}: {', and '.join(others)}."
        )
    free = min(candidates, key=lambda candidate: candidate.loss.value)
    if free != chosen:
        reasons.append(
            f"Without the limits it would be {free.shape}, with {free.loss.value:.3f}: the smaller one is trained on "
            f"{chosen.tokens / free.tokens:.1f} times the tokens."
        )
    if chosen == candidates[-1] and too_large:
        reasons.append(f"Larger shapes, from {too_large[0]} on, need more memory than there is.")
    if chosen.epochs > 1:
        enough = fit.law.law.loss(fit.parameters(chosen.parameters), chosen.tokens)
        reasons.append(
            f"Every text is seen {chosen.epochs:.1f} times; with {chosen.tokens:.2g} different tokens in place of "
            f"{unique_tokens:.2g} the loss would be {enough:.3f}."
        )
    reasons.append(
        f"The law is of {fit.runs} runs of {fit.smallest_budget:.2g} to {fit.largest_budget:.2g} FLOPs; this one has "
        f"{chosen.flops:.2g}, {chosen.flops / fit.largest_budget:.2g} times the largest."
    )
    if devices > 1 and scaling_factor is None:
        reasons.append(
            f"{devices} devices are assumed to be {devices * SCALING_FACTOR:.1f} times as fast as one "
            f"({SCALING_FACTOR} each), which nobody measured."
        )
    return reasons

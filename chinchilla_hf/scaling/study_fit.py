"""
What a study says: its law, its best sizes, and how they differ from the published ones.

    fit = fit_study(read_study("runs/study/study.csv"))
    fit.law.predict(parameters, tokens)         the loss, with an interval
    shipped_fit("masked")                       of the study that comes with this package
"""

import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..run_record import write_atomically
from .flops import ParameterCounts
from .laws import (
    FORMS,
    PUBLISHED,
    FittedLaw,
    Interval,
    IsoFlopFit,
    IsoFlopPoint,
    ParametricLaw,
    PowerLaw,
    fit_isoflop,
    fit_parametric,
)
from .shapes import check_objective
from .study import StudyError, StudyRun, check_alike, in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Column of a study -> what it counts.
COUNTS = {
    "total": "parameters",
    "without_embeddings": "parameters_without_embeddings",
    "with_head": "parameters_with_head",
}
# What a repeated token is worth (Muennighoff et al. 2023), found with causal models; masked ones, which see other masks
# each time, are said to bear more (Prabhudesai et al. 2025). What they find of surplus parameters is left out: it rests
# on the best size for so little text, which few runs tell.
REPEATS = 15.387756
CLEARLY = 0.9
FEWEST_RUNS = 8


@dataclass(frozen=True)
class StudyFit:
    """
    Laws of one study.

    Args:
        objective, tokenizer, data, row_length, vocab_size: which the runs share, see [`StudyRun`].
        characters_per_token: of its text.
        count: which parameters its law takes for N: `"total"`, as the papers do, unless the runs are clearly less off
            by `"without_embeddings"` or `"with_head"`.
        law: L(N, D).
        isoflop: the best sizes, by each of the three counts, from the budgets that have a lowest point.
        exponents: of the best size as a power of the budget, by L(N, D) of each of the three counts.
        residuals: how far the runs are off each of these laws.
        seed_noise: the standard deviation of the logarithm of the loss among seeds; 0 without any twice.
        held_out_error: the root mean square of what the logarithms of the losses of the largest budget are off, when
            it is left out of the fit; 0 of fewer than three budgets.
        smallest_budget, largest_budget: that the law is of: of the smallest ones, those are left out without which the
            largest is predicted better. A model that has learned little more than how frequent words are is on another
            curve. The form of the law, Hoffmann's or Kaplan's, is chosen likewise.
        runs: how many, of all budgets.
    """

    objective: str
    tokenizer: str
    data: str
    row_length: int
    vocab_size: int
    characters_per_token: float
    count: str
    law: FittedLaw
    isoflop: Mapping[str, IsoFlopFit]
    exponents: Mapping[str, Interval]
    residuals: Mapping[str, float]
    seed_noise: float
    held_out_error: float
    smallest_budget: float
    largest_budget: float
    runs: int

    def parameters(self, counts: ParameterCounts) -> int:
        """Those that the law takes for N."""
        return getattr(counts, self.count)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the fit as JSON, as a whole or not at all."""
        fields = _finite(dataclasses.asdict(self))
        write_atomically(path, f"{json.dumps(fields, indent=1, allow_nan=False)}\n".encode())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "StudyFit":
        """
        Raises:
            StudyError: the file is no fit.
            OSError: it cannot be read.
        """
        return cls.from_json(Path(path).read_text(encoding="utf-8"), os.fspath(path))

    @classmethod
    def from_json(cls, text: str, source: str) -> "StudyFit":
        """What [`write`] wrote; `source` is for the error."""
        try:
            fields = json.loads(text)
            law = fields["law"]
            fields["law"] = FittedLaw(
                **{
                    **law,
                    "law": ParametricLaw(**law["law"]),
                    "samples": tuple(ParametricLaw(**sample) for sample in law["samples"]),
                }
            )
            fields["isoflop"] = {
                name: IsoFlopFit(
                    tuple(IsoFlopPoint(**point) for point in fit["points"]),
                    PowerLaw(**fit["law"]),
                    Interval(**fit["exponent"]),
                )
                for name, fit in fields["isoflop"].items()
            }
            fields["exponents"] = {name: Interval(**value) for name, value in fields["exponents"].items()}
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StudyError(f"{source} is no fit of a study ({error}): run training/study.py") from None


def _finite(value: Any) -> Any:
    """Without infinite numbers, which JSON does not have: they are defaults."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items() if not _is_infinite(item)}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and math.isinf(value)


def fit_study(runs: Sequence[StudyRun], *, bootstrap: int = 100, seed: int = 0) -> StudyFit:
    """
    The laws of a study.

    Args:
        runs: of one study.
        bootstrap: how many fits to runs drawn with replacement.
        seed: of the drawing.

    Raises:
        StudyError: the runs differ in what they have to share, or are too few for a law (the message says what lacks).
    """
    check_alike(runs)
    runs = in_order(runs)  # what is drawn from them depends on their order
    try:
        begin, form, held_out_error = _best_prediction(runs)
        of_law = [run for run in runs if run.budget >= begin]
        laws = {name: _fit(of_law, column, form, bootstrap, seed) for name, column in COUNTS.items()}
    except ValueError as error:
        raise StudyError(f"the study is too small for a law: {error}") from None
    closest = min(laws, key=lambda name: laws[name].residual)
    # As the papers count, unless the runs clearly say otherwise.
    count = closest if laws[closest].residual < CLEARLY * laws["total"].residual else "total"
    law = laws[count].with_repeats(REPEATS)
    first = runs[0]
    return StudyFit(
        objective=first.objective,
        tokenizer=first.tokenizer,
        data=first.data,
        row_length=first.row_length,
        vocab_size=first.vocab_size,
        characters_per_token=first.characters_per_token,
        count=count,
        # A run beyond the others is off as the largest budget was when it was held out, or as the runs are.
        law=dataclasses.replace(law, residual=max(law.residual, held_out_error)),
        isoflop=_isoflop_fits(runs, seed),
        exponents={name: law.exponent() for name, law in laws.items()},
        residuals={name: law.residual for name, law in laws.items()},
        seed_noise=_seed_noise(runs),
        held_out_error=held_out_error,
        smallest_budget=begin,
        largest_budget=max(run.budget for run in runs),
        runs=len(runs),
    )


def _fit(runs: Sequence[StudyRun], column: str, form: str, bootstrap: int, seed: int) -> FittedLaw:
    sizes, tokens = [getattr(run, column) for run in runs], [run.tokens for run in runs]
    return fit_parametric(sizes, tokens, [run.loss for run in runs], form=form, bootstrap=bootstrap, seed=seed)


def _best_prediction(runs: Sequence[StudyRun]) -> tuple[float, str, float]:
    """
    From which budget on, and of which form, a law of all parameters predicts the largest budget best, and how far it is
    off then.
    """
    *budgets, largest = sorted({run.budget for run in runs})
    held_out = [run for run in runs if run.budget == largest]
    errors: dict[tuple[float, str], float] = {}
    for begin in budgets[:-1]:  # two budgets at least, for a law that is to go beyond them
        known = [run for run in runs if begin <= run.budget < largest]
        if len(known) < FEWEST_RUNS:
            continue
        for form in FORMS:
            law = _fit(known, "parameters", form, 0, 0).law
            off = [math.log(law.loss(run.parameters, run.tokens) / run.loss) for run in held_out]
            errors[begin, form] = math.sqrt(sum(value * value for value in off) / len(off))
    if not errors:
        return min([*budgets, largest]), "hoffmann", 0.0
    begin, form = min(errors, key=lambda key: errors[key])
    return begin, form, errors[begin, form]


def _isoflop_fits(runs: Sequence[StudyRun], seed: int) -> dict[str, IsoFlopFit]:
    """By each count, from the budgets whose losses have a lowest point among their sizes; none from fewer than two."""
    fits = {}
    for name, column in COUNTS.items():
        usable: list[StudyRun] = []
        for budget in sorted({run.budget for run in runs}):
            group = [run for run in runs if run.budget == budget]
            if has_bottom(group, column):
                usable += group
        if len({run.budget for run in usable}) >= 2:
            fits[name] = fit_isoflop(
                [run.budget for run in usable],
                [getattr(run, column) for run in usable],
                [run.loss for run in usable],
                seed=seed,
            )
    return fits


def has_bottom(runs: Sequence[StudyRun], column: str) -> bool:
    """Whether a parabola through the losses of one budget has its lowest point among the sizes."""
    sizes = np.log([getattr(run, column) for run in runs])
    if len(set(sizes.tolist())) < 3:
        return False
    square, slope, _ = np.polyfit(sizes, [run.loss for run in runs], 2)
    return bool(square > 0 and sizes.min() <= -slope / (2 * square) <= sizes.max())


def _seed_noise(runs: Sequence[StudyRun]) -> float:
    """Among runs that differ in their seed alone."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for run in runs:
        groups.setdefault((run.budget, run.shape), []).append(math.log(run.loss))
    several = [values for values in groups.values() if len(values) > 1]
    if not several:
        return 0.0
    return float(np.sqrt(np.mean([np.var(values, ddof=1) for values in several])))


def shipped_fit(objective: str) -> StudyFit:
    """The fit of the study of this objective that comes with the package; see `training/README.md`."""
    check_objective(objective)
    file = resources.files(__package__) / "studies" / f"{objective}.json"
    return StudyFit.from_json(file.read_text(encoding="utf-8"), str(file))


def describe(fit: StudyFit) -> str:
    """The laws in lines of text, beside the published ones."""
    law = fit.law.law
    lines = [
        f"{fit.runs} runs; the law is of {fit.smallest_budget:.2g} to {fit.largest_budget:.2g} FLOPs; seeds differ by "
        f"{fit.seed_noise:.2%}; the largest budget, held out, was predicted {fit.held_out_error:.2%} off",
        f"L(N, D) = {_law_text(law)}, N {fit.count.replace('_', ' ')}; runs are {fit.law.residual:.2%} off",
        "best size ~ C^a, a by L(N, D) and by the parabolas (90% interval):",
    ]
    for name, exponent in fit.exponents.items():
        parabolas = fit.isoflop.get(name)
        second = "no lowest points" if parabolas is None else _interval_text(parabolas.exponent)
        lines.append(
            f"  N {name.replace('_', ' ')}: {_interval_text(exponent)}; {second}; off by {fit.residuals[name]:.2%}"
        )
    published = ", ".join(f"{law.source} {law.exponent:.2f}" for law in PUBLISHED.values())
    lines.append(f"  published, N total: {published}")
    return "\n".join(lines)


def _law_text(law: ParametricLaw) -> str:
    size = f"{law.size_factor:.4g} / N^{law.size_exponent:.3f}"
    data = f"{law.data_factor:.4g} / D^{law.data_exponent:.3f}"
    if law.joint_exponent == 1:
        return f"{law.irreducible:.4g} + {size} + {data}"
    return f"({size} + {data})^{law.joint_exponent:.3f}"


def _interval_text(interval: Interval) -> str:
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def plot_study(runs: Sequence[StudyRun], fit: StudyFit, path: str | os.PathLike[str]) -> None:
    """Draw the losses of every budget by size, with the law's curves, and the best sizes by budget, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_isoflop(left, runs, fit)
    draw_best_sizes(right, runs, fit)
    save_figure(figure, path)


def plot_candidates(
    sizes: Sequence[float], losses: Sequence[Interval], chosen: int, title: str, path: str | os.PathLike[str]
) -> None:
    """
    Draw what is predicted of one budget by size, the chosen size marked, as PNG.

    Args:
        sizes: parameters.
        losses: that are predicted of them.
        chosen: which of them.
        title: over the picture.
        path: of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(sizes, [loss.value for loss in losses], "o-", markersize=4, linewidth=1.2)
    axes.fill_between(sizes, [loss.low for loss in losses], [loss.high for loss in losses], alpha=0.2)
    axes.plot(sizes[chosen], losses[chosen].value, "*", markersize=14, color="tab:red", label="chosen")
    axes.set_xscale("log")
    axes.set_xlabel("parameters (all)")
    axes.set_ylabel("predicted loss (nats a token)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def draw_isoflop(axes: "Axes", runs: Sequence[StudyRun], fit: StudyFit) -> None:
    """Losses by size, a colour a budget; lines are the law's."""
    from matplotlib import colormaps

    column = COUNTS[fit.count]
    budgets = sorted({run.budget for run in runs})
    for budget, colour in zip(budgets, colormaps["viridis"](np.linspace(0, 0.9, len(budgets))), strict=True):
        group = sorted((run for run in runs if run.budget == budget), key=lambda run: getattr(run, column))
        sizes = [getattr(run, column) for run in group]
        axes.plot(sizes, [run.loss for run in group], "o", color=colour, label=f"{budget:.1e} FLOPs", markersize=4)
        curve = [fit.law.law.loss(getattr(run, column), run.tokens, run.unique_tokens) for run in group]
        axes.plot(sizes, curve, color=colour, linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel(f"parameters ({fit.count.replace('_', ' ')})")
    axes.set_ylabel("validation loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def draw_best_sizes(axes: "Axes", runs: Sequence[StudyRun], fit: StudyFit) -> None:
    """The size with the lowest loss by budget: of the runs, of the parabolas, and the power law through those."""
    column = COUNTS[fit.count]
    budgets = sorted({run.budget for run in runs})
    best = [min((run for run in runs if run.budget == budget), key=lambda run: run.loss) for budget in budgets]
    axes.plot(budgets, [getattr(run, column) for run in best], "s", label="best run", markersize=4, color="tab:gray")
    parabolas = fit.isoflop.get(fit.count)
    if parabolas is not None:
        points = parabolas.points
        axes.plot(
            [p.flops for p in points], [p.parameters for p in points], "o", label="lowest point", color="tab:blue"
        )
        sizes = [parabolas.law.optimal(budget).parameters for budget in budgets]
        label = f"C^{_interval_text(parabolas.exponent)}"
        axes.plot(budgets, sizes, color="tab:blue", linewidth=1, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs of training")
    axes.set_ylabel(f"parameters ({fit.count.replace('_', ' ')})")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """As PNG, as a whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(path, content.getvalue())

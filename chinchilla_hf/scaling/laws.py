"""
Scaling laws: how low a loss so many parameters reach on so many tokens, and which of both a budget is best spent on.

    BESIROGLU.optimal(1e18)                     parameters and tokens for 1e18 FLOPs, by a published law
    fit = fit_parametric(parameters, tokens, losses)
    fit.predict(5e6, 1e8)                       by a law of one's own runs, with an interval

Budgets are C = 6 N D, as in the papers. Which parameters N counts changes the exponents (Pearce and Song 2024, arXiv
2406.12907): the published laws count all of them, embeddings too.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

FLOPS_PER_PARAMETER_AND_TOKEN = 6
LARGEST_EXTRAPOLATION = 10  # times the largest budget of the runs that a law was fitted to
HUBER_DELTA = 1e-3  # of the logarithm of the loss, as in Hoffmann et al. 2022


@dataclass(frozen=True)
class Optimum:
    """What a budget is best spent on."""

    parameters: float
    tokens: float


@dataclass(frozen=True)
class PowerLaw:
    """
    The best size for a budget is a power of it: N = `coefficient` * C ** `exponent`, and D = C / (6 N).

    Args:
        coefficient, exponent: of the size.
        source: where they are from.
    """

    coefficient: float
    exponent: float
    source: str = ""

    def optimal(self, flops: float) -> Optimum:
        """
        Raises:
            ValueError: no positive budget.
        """
        _check_positive(flops=flops)
        parameters = self.coefficient * flops**self.exponent
        return Optimum(parameters, flops / (FLOPS_PER_PARAMETER_AND_TOKEN * parameters))


@dataclass(frozen=True)
class ParametricLaw:
    """
    L(N, D) = E + (A / N ** alpha + B / D ** beta) ** gamma.

    With gamma = 1 it is the law of Hoffmann et al. 2022, equation 2. With E = 0 and beta = 1 it is that of Kaplan et
    al. 2020 (arXiv 2001.08361), equation 1.5, whose exponents of N and D are alpha gamma and gamma: there, what lacks
    in size and what lacks in text hide each other, where Hoffmann's add up. The best size for a budget is the same for
    every gamma.

    Where text is repeated, the repetitions count for less and less, and so do parameters beyond those that the text
    needs (Muennighoff et al. 2023, arXiv 2305.16264, equations 5 and 6): what counts of D tokens, U of them different,
    is U + U R (1 - exp(-(D / U - 1) / R)), with R = `repeats`; the same of parameters, with R = `surplus`.

    Args:
        irreducible: E.
        size_factor, size_exponent: A and alpha.
        data_factor, data_exponent: B and beta.
        joint_exponent: gamma.
        repeats: R of tokens; infinite where a repeated token is worth as much as a new one.
        surplus: R of parameters.
        source: where they are from.
    """

    irreducible: float
    size_factor: float
    size_exponent: float
    data_factor: float
    data_exponent: float
    joint_exponent: float = 1.0
    repeats: float = np.inf
    surplus: float = np.inf
    source: str = ""

    def loss(self, parameters: float, tokens: float, unique_tokens: float | None = None) -> float:
        """
        The loss of so many parameters after so many tokens.

        Args:
            parameters: of the model.
            tokens: that it was trained on, repeated ones counted again.
            unique_tokens: different ones among them; all if not given.

        Raises:
            ValueError: a number that is not positive.
        """
        _check_positive(parameters=parameters, tokens=tokens)
        if unique_tokens is not None and unique_tokens < tokens:
            _check_positive(unique_tokens=unique_tokens)
            needed = self._size_for(unique_tokens)
            tokens = _worth(tokens, unique_tokens, self.repeats)
            if parameters > needed:
                parameters = _worth(parameters, needed, self.surplus)
        lacking = self.size_factor / parameters**self.size_exponent + self.data_factor / tokens**self.data_exponent
        return self.irreducible + lacking**self.joint_exponent

    def optimal(self, flops: float) -> Optimum:
        """
        The size and the tokens with the least loss for a budget, where there is text enough (Hoffmann et al. 2022,
        equation 4).

        Raises:
            ValueError: no positive budget.
        """
        _check_positive(flops=flops)
        both = self.size_exponent + self.data_exponent
        share = flops / FLOPS_PER_PARAMETER_AND_TOKEN
        parameters = self._balance ** (1 / both) * share ** (self.data_exponent / both)
        return Optimum(parameters, share / parameters)

    @property
    def exponent(self) -> float:
        """Of the best size as a power of the budget."""
        return self.data_exponent / (self.size_exponent + self.data_exponent)

    @property
    def _balance(self) -> float:
        return self.size_exponent * self.size_factor / (self.data_exponent * self.data_factor)

    def _size_for(self, tokens: float) -> float:
        """The size for which so many tokens are the best number."""
        return (self._balance * tokens**self.data_exponent) ** (1 / self.size_exponent)


def _worth(amount: float, different: float, half_life: float) -> float:
    """What `amount` is worth of which only `different` is new."""
    if np.isinf(half_life):
        return amount
    return different * (1 + half_life * -np.expm1(-(amount / different - 1) / half_life))


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}, expected a number above 0")


# Approaches 1 and 2 by the nine rows of tables 3 and A3, as the paper does not print their constants: a regression on
# the logarithms, which gives the sizes back within 0.6%, but for the rows at 67B, 1.2% and 3.3% off, as no power law
# meets them all.
HOFFMANN_1 = PowerLaw(0.09915893, 0.49809869, "Hoffmann et al. 2022, approach 1, by table 3")
HOFFMANN_2 = PowerLaw(0.14487705, 0.48994161, "Hoffmann et al. 2022, approach 2, by table A3")
# Approach 3 by the paper's source, unrounded. Its own table A3 has other budgets, 2 to 15% less.
HOFFMANN_3 = ParametricLaw(
    1.69337368, 406.401018, 0.33917084, 410.722827, 0.2849083, source="Hoffmann et al. 2022, approach 3"
)
BESIROGLU = ParametricLaw(1.8172, 482.01, 0.3478, 2085.43, 0.3659, source="Besiroglu et al. 2024")
MUENNIGHOFF = ParametricLaw(
    np.exp(0.6254804),
    np.exp(6.255414),
    0.3526596,
    np.exp(7.3049974),
    0.3526596,
    repeats=15.387756,
    surplus=5.309743,
    source="Muennighoff et al. 2023",
)
PUBLISHED: dict[str, PowerLaw | ParametricLaw] = {
    "hoffmann_1": HOFFMANN_1,
    "hoffmann_2": HOFFMANN_2,
    "hoffmann_3": HOFFMANN_3,
    "besiroglu": BESIROGLU,
    "muennighoff": MUENNIGHOFF,
}


class ExtrapolationError(ValueError):
    """A law is asked for a budget far beyond those that it was fitted to."""


@dataclass(frozen=True)
class Interval:
    """A value, and the interval that the runs leave open for it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class FittedLaw:
    """
    A law of some runs.

    Args:
        law: the best fit to all.
        samples: fits to runs drawn from them with replacement.
        smallest_budget, largest_budget: of the runs, 6 N D.
        residual: the root mean square of what the logarithm of a run's loss is off.
    """

    law: ParametricLaw
    samples: tuple[ParametricLaw, ...]
    smallest_budget: float
    largest_budget: float
    residual: float

    def predict(
        self,
        parameters: float,
        tokens: float,
        unique_tokens: float | None = None,
        *,
        coverage: float = 0.9,
        extrapolate: bool = False,
    ) -> Interval:
        """
        The loss of a run, with an interval for it: what the fit leaves open, and what single runs are off.

        Args:
            parameters, tokens, unique_tokens: of the run, see [`ParametricLaw.loss`].
            coverage: of the interval.
            extrapolate: also far beyond the runs.

        Raises:
            ExtrapolationError: 6 N D is more than ten times the largest budget of the runs.
        """
        self._check_range(FLOPS_PER_PARAMETER_AND_TOKEN * parameters * tokens, extrapolate)
        rng = np.random.default_rng(0)
        noise = np.exp(rng.normal(0, self.residual, len(self.samples)))
        losses = np.array([law.loss(parameters, tokens, unique_tokens) for law in self.samples]) * noise
        return _interval(self.law.loss(parameters, tokens, unique_tokens), losses, coverage)

    def optimal_size(self, flops: float, *, coverage: float = 0.9, extrapolate: bool = False) -> Interval:
        """The best number of parameters for a budget; raises what [`FittedLaw.predict`] raises."""
        self._check_range(flops, extrapolate)
        sizes = np.array([law.optimal(flops).parameters for law in self.samples])
        return _interval(self.law.optimal(flops).parameters, sizes, coverage)

    def with_repeats(self, repeats: float) -> "FittedLaw":
        """The same, with a price of repeated text, see [`ParametricLaw`]."""
        law, *samples = (dataclasses.replace(law, repeats=repeats) for law in (self.law, *self.samples))
        return dataclasses.replace(self, law=law, samples=tuple(samples))

    def exponent(self, *, coverage: float = 0.9) -> Interval:
        """Of the best size as a power of the budget."""
        return _interval(self.law.exponent, np.array([law.exponent for law in self.samples]), coverage)

    def _check_range(self, flops: float, extrapolate: bool) -> None:
        if flops > LARGEST_EXTRAPOLATION * self.largest_budget and not extrapolate:
            raise ExtrapolationError(
                f"{flops:.2e} FLOPs are {flops / self.largest_budget:.0f} times the largest budget of the runs, "
                f"{self.largest_budget:.2e}: run some with more, or pass extrapolate=True"
            )


def _interval(value: float, samples: np.ndarray, coverage: float) -> Interval:
    # A law of few of the runs, drawn several times each, may be none at all.
    low, high = np.nanquantile(np.append(samples, value), [(1 - coverage) / 2, (1 + coverage) / 2])
    return Interval(float(value), float(min(low, value)), float(max(high, value)))


def fit_parametric(
    parameters: Sequence[float],
    tokens: Sequence[float],
    losses: Sequence[float],
    *,
    form: str = "hoffmann",
    bootstrap: int = 100,
    seed: int = 0,
) -> FittedLaw:
    """
    Fit L(N, D) to runs, as in Hoffmann et al. 2022, section 3.3: the Huber loss of the difference of logarithms, summed
    (a mean ends the search too early: Besiroglu et al. 2024), by L-BFGS from the best of many starts.

    Args:
        parameters, tokens, losses: of the runs, one each.
        form: `"hoffmann"`, with five constants, or `"kaplan"`, with four; see [`ParametricLaw`].
        bootstrap: how many fits to runs drawn with replacement.
        seed: of the drawing.

    Raises:
        ValueError: another form, fewer than six runs, numbers that are missing or not positive, or runs that differ in
            size or in tokens alone.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}, expected one of {', '.join(FORMS)}")
    kind = FORMS[form]
    columns = {"parameters": parameters, "tokens": tokens, "losses": losses}
    runs = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    count = len(runs["losses"])
    if any(values.shape != (count,) for values in runs.values()):
        raise ValueError(f"there are {', '.join(f'{len(v)} {name}' for name, v in runs.items())}: give one each a run")
    if count < 6:
        raise ValueError(f"there are {count} runs, but a law has up to five constants: give at least 6")
    for name, values in runs.items():
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise ValueError(f"run {bad[0]} has {values[bad[0]]} {name}: leave out what did not end, or run it again")
    for name in ("parameters", "tokens"):
        if np.ptp(runs[name]) == 0:
            raise ValueError(f"all runs have {runs[name][0]:g} {name}: vary both sizes and tokens")
    log_n, log_d, log_l = (np.log(runs[name]) for name in columns)
    best = _best_fit(kind, log_n, log_d, log_l)
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(bootstrap):
        drawn = rng.integers(count, size=count)
        samples.append(kind.law(_best_fit(kind, log_n[drawn], log_d[drawn], log_l[drawn], best)))
    off = kind.log_losses(best, log_n, log_d) - log_l
    budgets = FLOPS_PER_PARAMETER_AND_TOKEN * runs["parameters"] * runs["tokens"]
    freedom = max(1, count - len(best))
    residual = float(np.sqrt((off**2).sum() / freedom))
    return FittedLaw(kind.law(best), tuple(samples), float(budgets.min()), float(budgets.max()), residual)


class _Form:
    """
    A form of L(N, D): its constants are a vector that begins with log A and log B, the search for them with `grid`.

    Args:
        grid: where searches may begin, `(starts, constants)`.
        bounds: of the constants.
        size_place, data_place: of alpha and beta in the vector; `None` of beta where it is 1.
    """

    grid: np.ndarray
    bounds: Sequence[tuple[float, float]]
    size_place: int
    data_place: int | None

    def log_losses(self, theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
        """`(..., runs)` for `theta` of shape `(..., constants)`."""
        raise NotImplementedError

    def gradient(self, theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the losses, `(runs)`, and their gradient, `(constants, runs)`."""
        raise NotImplementedError

    def law(self, theta: np.ndarray) -> ParametricLaw:
        raise NotImplementedError

    def centred(self, theta: np.ndarray, log_n: float, log_d: float) -> np.ndarray:
        """The same laws, of sizes and tokens in units of these; `(..., constants)`."""
        moved = theta.copy()
        moved[..., 0] -= theta[..., self.size_place] * log_n
        moved[..., 1] -= (1.0 if self.data_place is None else theta[..., self.data_place]) * log_d
        return moved


class _Hoffmann(_Form):
    """log A, log B, log E, alpha, beta; the paper's grid."""

    grid = np.array(
        list(
            itertools.product(range(0, 30, 5), range(0, 30, 5), (-1, -0.5, 0, 0.5, 1), *[(0.0, 0.5, 1.0, 1.5, 2.0)] * 2)
        ),
        dtype=np.float64,
    )
    bounds = ((-100, 100),) * 3 + ((0.01, 5),) * 2
    size_place, data_place = 3, 4

    def _terms(self, theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
        a, b, e, alpha, beta = np.moveaxis(theta, -1, 0)[..., None]
        return np.stack(np.broadcast_arrays(a - alpha * log_n, b - beta * log_d, e))

    def log_losses(self, theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
        # scipy's logsumexp takes ten times as long.
        return np.logaddexp.reduce(self._terms(theta, log_n, log_d), axis=0)

    def gradient(self, theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        terms = self._terms(theta, log_n, log_d)
        total = np.logaddexp.reduce(terms, axis=0)
        of_size, of_data, of_rest = np.exp(terms - total)
        return total, np.stack([of_size, of_data, of_rest, -of_size * log_n, -of_data * log_d])

    def law(self, theta: np.ndarray) -> ParametricLaw:
        a, b, e, alpha, beta = theta.tolist()
        return ParametricLaw(float(np.exp(e)), float(np.exp(a)), alpha, float(np.exp(b)), beta, source="fitted")


class _Kaplan(_Form):
    """log A, log B, alpha, gamma."""

    grid = np.array(
        list(itertools.product(range(0, 60, 5), range(0, 60, 5), (0.25, 0.5, 1.0, 2.0), (0.05, 0.1, 0.2, 0.4, 0.8))),
        dtype=np.float64,
    )
    bounds = ((-300, 300),) * 2 + ((0.01, 20), (0.01, 5))
    size_place, data_place = 2, None

    def _lacking(self, theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b, alpha, gamma = np.moveaxis(theta, -1, 0)[..., None]
        return np.stack(np.broadcast_arrays(a - alpha * log_n, b - log_d)), gamma

    def log_losses(self, theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
        terms, gamma = self._lacking(theta, log_n, log_d)
        return gamma * np.logaddexp.reduce(terms, axis=0)

    def gradient(self, theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        terms, gamma = self._lacking(theta, log_n, log_d)
        total = np.logaddexp.reduce(terms, axis=0)
        of_size, of_data = np.exp(terms - total) * gamma
        return gamma * total, np.stack([of_size, of_data, -of_size * log_n, total])

    def law(self, theta: np.ndarray) -> ParametricLaw:
        a, b, alpha, gamma = theta.tolist()
        return ParametricLaw(0.0, float(np.exp(a)), alpha, float(np.exp(b)), 1.0, gamma, source="fitted")


FORMS: dict[str, _Form] = {"hoffmann": _Hoffmann(), "kaplan": _Kaplan()}


def _huber(off: np.ndarray) -> np.ndarray:
    return np.where(np.abs(off) <= 1, off**2 / 2, np.abs(off) - 0.5)


def _best_fit(
    form: _Form,
    log_n: np.ndarray,
    log_d: np.ndarray,
    log_l: np.ndarray,
    start: np.ndarray | None = None,
    tried: int = 24,
) -> np.ndarray:
    """The best end of searches from `start`, or from the most promising ones of the form's grid."""
    # Around the middle of the runs, factors and exponents are told apart far better.
    middle = log_n.mean(), log_d.mean()
    given = (log_n - middle[0], log_d - middle[1])

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The summed Huber loss, in units of its delta squared, and its gradient."""
        losses, gradient = form.gradient(theta, *given)
        off = (losses - log_l) / HUBER_DELTA
        return float(_huber(off).sum()), gradient @ (np.clip(off, -1, 1) / HUBER_DELTA)

    starts = form.centred(form.grid if start is None else start[None], *middle)
    values = _huber((form.log_losses(starts, *given) - log_l) / HUBER_DELTA).sum(axis=-1)
    found: list[tuple[float, np.ndarray]] = []
    for begin in starts[np.argsort(values)[:tried]]:
        result = minimize(
            objective,
            begin,
            jac=True,
            method="L-BFGS-B",
            bounds=form.bounds,
            options={"maxiter": 500, "ftol": 1e-11},
        )
        found.append((float(result.fun), result.x))
    best = min(found, key=lambda pair: pair[0])[1]
    return form.centred(best, -middle[0], -middle[1])


@dataclass(frozen=True)
class IsoFlopPoint:
    """Of one budget, the size at the bottom of the parabola of the losses, and that loss."""

    flops: float
    parameters: float
    loss: float


@dataclass(frozen=True)
class IsoFlopFit:
    """
    The best sizes of some budgets, and the power law through them.

    Args:
        points: one a budget.
        law: through the points.
        exponent: of the law, with an interval from the bootstrap.
    """

    points: tuple[IsoFlopPoint, ...]
    law: PowerLaw
    exponent: Interval


def fit_isoflop(
    flops: Sequence[float],
    parameters: Sequence[float],
    losses: Sequence[float],
    *,
    coverage: float = 0.9,
    bootstrap: int = 500,
    seed: int = 0,
) -> IsoFlopFit:
    """
    Hoffmann et al. 2022, section 3.2: of every budget, a parabola of the loss in the logarithm of the size, and a power
    law through its bottoms.

    Args:
        flops, parameters, losses: of the runs; runs of one budget have the same `flops`.
        coverage: of the interval.
        bootstrap: how often to draw the runs of every budget anew.
        seed: of the drawing.

    Raises:
        ValueError: fewer than two budgets, one with fewer than three sizes, or one whose losses have no lowest point
            among its sizes (the message says where it lies).
    """
    budgets = sorted(set(flops))
    if len(budgets) < 2:
        raise ValueError(f"there are {len(budgets)} budgets, expected at least 2")
    groups = []
    for budget in budgets:
        chosen = [i for i, value in enumerate(flops) if value == budget]
        log_n = np.log([parameters[i] for i in chosen])
        values = np.array([losses[i] for i in chosen], dtype=np.float64)
        if not np.isfinite(values).all() or not np.isfinite(log_n).all():
            raise ValueError(f"a run of {budget:.2e} FLOPs has no loss or size: leave it out, or run it again")
        if len(set(log_n.tolist())) < 3:
            raise ValueError(f"{budget:.2e} FLOPs have {len(set(log_n.tolist()))} sizes, expected at least 3")
        groups.append((log_n, values))

    points = []
    for budget, (log_n, values) in zip(budgets, groups, strict=True):
        bottom = _bottom(log_n, values)
        if bottom is None or not log_n.min() <= bottom[0] <= log_n.max():
            where = "is nowhere" if bottom is None else f"would be at {np.exp(bottom[0]):.3g} parameters"
            raise ValueError(
                f"the lowest loss of {budget:.2e} FLOPs {where}, but the sizes are {np.exp(log_n.min()):.3g} to "
                f"{np.exp(log_n.max()):.3g}: run sizes on both sides of it"
            )
        points.append(IsoFlopPoint(budget, float(np.exp(bottom[0])), bottom[1]))
    log_c = np.log(budgets)
    exponent, intercept = np.polyfit(log_c, np.log([point.parameters for point in points]), 1)

    rng = np.random.default_rng(seed)
    exponents: list[float] = []
    while len(exponents) < bootstrap:
        drawn = [_drawn_bottom(log_n, values, rng) for log_n, values in groups]
        exponents.append(float(np.polyfit(log_c, drawn, 1)[0]))
    law = PowerLaw(float(np.exp(intercept)), float(exponent), "fitted")
    return IsoFlopFit(tuple(points), law, _interval(float(exponent), np.array(exponents), coverage))


def _bottom(log_n: np.ndarray, values: np.ndarray) -> tuple[float, float] | None:
    """Where the parabola through the losses is lowest, and how low; `None` if it opens downwards."""
    middle = log_n.mean()
    square, slope, constant = np.polyfit(log_n - middle, values, 2)
    if square <= 0:
        return None
    place = -slope / (2 * square)
    return float(middle + place), float(constant - slope**2 / (4 * square))


def _drawn_bottom(log_n: np.ndarray, values: np.ndarray, rng: np.random.Generator) -> float:
    """The bottom with the residuals of the parabola dealt out anew."""
    middle = log_n.mean()
    curve = np.polyval(np.polyfit(log_n - middle, values, 2), log_n - middle)
    off = (values - curve) * np.sqrt(len(values) / max(1, len(values) - 3))
    while True:
        bottom = _bottom(log_n, curve + rng.choice(off, len(off)))
        if bottom is not None:
            return float(np.clip(bottom[0], log_n.min() - 2, log_n.max() + 2))

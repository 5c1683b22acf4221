"""Published laws give the numbers of their papers, and fits find the laws that runs were made by."""

import numpy as np
import pytest

from chinchilla_hf.scaling.laws import (
    BESIROGLU,
    HOFFMANN_1,
    HOFFMANN_2,
    HOFFMANN_3,
    MUENNIGHOFF,
    PUBLISHED,
    ExtrapolationError,
    ParametricLaw,
    fit_isoflop,
    fit_parametric,
)

# Hoffmann et al. 2022, tables 3 and A3: parameters -> FLOPs and tokens of approaches 1 and 2.
TABLE = {
    400e6: ((1.92e19, 8.0e9), (1.84e19, 7.7e9)),
    1e9: ((1.21e20, 20.2e9), (1.20e20, 20.0e9)),
    10e9: ((1.23e22, 205.1e9), (1.32e22, 219.5e9)),
    175e9: ((3.85e24, 3.7e12), (4.54e24, 4.3e12)),
    280e9: ((9.90e24, 5.9e12), (1.18e25, 7.1e12)),
    520e9: ((3.43e25, 11.0e12), (4.19e25, 13.4e12)),
    1e12: ((1.27e26, 21.2e12), (1.59e26, 26.5e12)),
    10e12: ((1.30e28, 216.2e12), (1.75e28, 292.0e12)),
}


@pytest.mark.parametrize("parameters", TABLE)
@pytest.mark.parametrize(("law", "column"), [(HOFFMANN_1, 0), (HOFFMANN_2, 1)])
def test_the_rows_of_the_papers_tables(parameters, law, column):
    flops, tokens = TABLE[parameters][column]
    optimum = law.optimal(flops)
    assert optimum.parameters == pytest.approx(parameters, rel=0.01)
    assert optimum.tokens == pytest.approx(tokens, rel=0.015)  # tokens are rounded to two digits, some of them


def test_chinchillas_own_row_is_near():
    """67 billion parameters for 5.76e23 FLOPs, Gopher's budget: the budget that Chinchilla was trained with."""
    assert HOFFMANN_1.optimal(5.76e23).parameters == pytest.approx(67e9, rel=0.02)


def test_parametric_laws_by_their_closed_form():
    """What the unrounded constants give at Gopher's budget, where the rounded ones give 32.2 billion."""
    assert HOFFMANN_3.optimal(5.76e23).parameters == pytest.approx(40.4e9, rel=0.01)
    rounded = ParametricLaw(1.69, 406.4, 0.34, 410.7, 0.28)
    assert rounded.optimal(5.76e23).parameters == pytest.approx(32.2e9, rel=0.01)
    besiroglu = BESIROGLU.optimal(5.76e23)
    assert besiroglu.parameters == pytest.approx(72.5e9, rel=0.01)
    assert besiroglu.tokens / besiroglu.parameters == pytest.approx(18.3, rel=0.01)
    assert HOFFMANN_3.exponent == pytest.approx(0.46, abs=0.005) and BESIROGLU.exponent == pytest.approx(
        0.513, abs=0.001
    )


@pytest.mark.parametrize("law", [law for law in PUBLISHED.values() if isinstance(law, ParametricLaw)])
@pytest.mark.parametrize("flops", [1e15, 1e21])
def test_no_other_split_of_a_budget_has_a_lower_loss(law, flops):
    best = law.optimal(flops)
    assert 6 * best.parameters * best.tokens == pytest.approx(flops)
    lowest = law.loss(best.parameters, best.tokens)
    for factor in (0.5, 0.9, 1.1, 2):
        assert law.loss(factor * best.parameters, best.tokens / factor) > lowest


def test_repeated_text_is_worth_less_and_less():
    unique = 1e9
    size = MUENNIGHOFF._size_for(unique) / 2
    losses = [MUENNIGHOFF.loss(size, epochs * unique, unique) for epochs in (1, 4, 40, 400)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(MUENNIGHOFF.loss(size, unique))
    # four epochs are about as good as new text, forty are not (Muennighoff et al. 2023, figure 1)
    fresh = [MUENNIGHOFF.loss(size, epochs * unique) for epochs in (1, 4, 40, 400)]
    pairs = zip(losses[1:], fresh[1:], strict=True)
    gained = [(losses[0] - of_repeats) / (losses[0] - of_new) for of_repeats, of_new in pairs]
    assert gained[0] > 0.93 and gained[1] < 0.9 and gained[2] < 0.85
    # at most U (1 + R) of the tokens count
    assert losses[-1] == pytest.approx(MUENNIGHOFF.loss(size, unique * (1 + MUENNIGHOFF.repeats)), rel=1e-3)
    # and parameters beyond what the text needs count for less, too
    large = 30 * size
    assert MUENNIGHOFF.loss(large, unique, unique * 0.99) > MUENNIGHOFF.loss(large, unique)
    assert BESIROGLU.loss(size, 4 * unique, unique) == BESIROGLU.loss(size, 4 * unique)


def make_runs(law, noise=0.0, seed=0, budgets=(1e18, 3e18, 1e19, 3e19, 1e20), sizes=7):
    rng = np.random.default_rng(seed)
    rows = []
    for flops in budgets:
        middle = law.optimal(flops).parameters
        for factor in np.geomspace(1 / 6, 6, sizes):
            size = factor * middle
            tokens = flops / (6 * size)
            rows.append((flops, size, tokens, law.loss(size, tokens) * np.exp(rng.normal(0, noise))))
    return [np.array(column) for column in zip(*rows, strict=True)]


PLANTED = [
    HOFFMANN_3,
    BESIROGLU,
    ParametricLaw(0.9, 60.0, 0.25, 900.0, 0.42),
]


@pytest.mark.parametrize("law", PLANTED)
def test_a_fit_finds_the_law_of_runs_without_noise(law):
    _, sizes, tokens, losses = make_runs(law)
    fit = fit_parametric(sizes, tokens, losses, bootstrap=2)
    assert fit.law.size_exponent == pytest.approx(law.size_exponent, rel=0.03)
    assert fit.law.data_exponent == pytest.approx(law.data_exponent, rel=0.03)
    assert fit.law.irreducible == pytest.approx(law.irreducible, rel=0.02)
    assert fit.law.optimal(1e20).parameters == pytest.approx(law.optimal(1e20).parameters, rel=0.03)
    assert fit.residual < 1e-3


# Kaplan et al. 2020, table 2 (exponents 0.076 and 0.103), and one of smaller models.
KAPLANS = [
    ParametricLaw(0.0, 6.4e13 ** (0.076 / 0.103), 0.076 / 0.103, 1.8e13, 1.0, 0.103),
    ParametricLaw(0.0, 2e9, 0.89, 3e10, 1.0, 0.155),
]


@pytest.mark.parametrize("law", KAPLANS)
def test_a_fit_of_the_other_form(law):
    size, tokens = 1e8, 2e9
    assert KAPLANS[0].loss(size, tokens) == pytest.approx(
        ((6.4e13 / size) ** (0.076 / 0.103) + 1.8e13 / tokens) ** 0.103
    )
    best = law.optimal(1e19)
    for factor in (0.8, 1.25):
        assert law.loss(best.parameters * factor, best.tokens / factor) > law.loss(best.parameters, best.tokens)
    _, sizes, tokens, losses = make_runs(law)
    fit = fit_parametric(sizes, tokens, losses, form="kaplan", bootstrap=2)
    assert fit.law.size_exponent == pytest.approx(law.size_exponent, rel=0.01)
    assert fit.law.joint_exponent == pytest.approx(law.joint_exponent, rel=0.01)
    assert fit.law.optimal(1e20).parameters == pytest.approx(law.optimal(1e20).parameters, rel=0.02)
    assert fit.residual < 1e-3
    assert fit_parametric(sizes, tokens, losses, bootstrap=2).residual > fit.residual
    with pytest.raises(ValueError, match="form is 'power', expected one of hoffmann, kaplan"):
        fit_parametric(sizes, tokens, losses, form="power")


@pytest.mark.parametrize(("law", "form"), [(BESIROGLU, "hoffmann"), (KAPLANS[1], "kaplan")])
def test_intervals_cover_the_truth_as_often_as_they_say(law, form):
    """Of 30 studies with noise, 90% of the intervals of 90%: 27, and by chance 23 to 30 (binomial, 99%)."""
    best = law.optimal(4e20)
    truth = law.exponent, law.loss(best.parameters, best.tokens)
    covered = np.zeros(2, dtype=int)
    for seed in range(30):
        _, sizes, tokens, losses = make_runs(law, noise=0.004, seed=seed)
        fit = fit_parametric(sizes, tokens, losses, form=form, bootstrap=30)
        intervals = fit.exponent(), fit.predict(best.parameters, best.tokens)
        covered += [interval.low <= value <= interval.high for interval, value in zip(intervals, truth, strict=True)]
    assert (covered >= 23).all(), covered


def test_far_beyond_the_runs_it_says_so():
    _, sizes, tokens, losses = make_runs(BESIROGLU)
    fit = fit_parametric(sizes, tokens, losses, bootstrap=3)
    assert fit.largest_budget == pytest.approx(1e20)
    assert fit.optimal_size(9e20).value == pytest.approx(BESIROGLU.optimal(9e20).parameters, rel=0.1)
    for ask in (lambda: fit.optimal_size(1.1e21), lambda: fit.predict(1e11, 1e12)):
        with pytest.raises(ExtrapolationError, match=r"times the largest budget of the runs, 1\.00e\+20"):
            ask()
    assert fit.predict(1e11, 1e12, extrapolate=True).value > 1.8


@pytest.mark.parametrize("law", PLANTED)
def test_parabolas_find_the_exponent(law):
    flops, sizes, _, losses = make_runs(law, sizes=9)
    fit = fit_isoflop(flops, sizes, losses, bootstrap=20)
    assert fit.exponent.value == pytest.approx(law.exponent, abs=0.02)
    for point in fit.points:
        assert point.parameters == pytest.approx(law.optimal(point.flops).parameters, rel=0.25)  # no parabola it is
    assert fit.law.optimal(1e19).parameters == pytest.approx(law.optimal(1e19).parameters, rel=0.25)
    noisy = make_runs(law, noise=0.004, sizes=9)
    fit = fit_isoflop(noisy[0], noisy[1], noisy[3])
    assert fit.exponent.low < fit.exponent.value < fit.exponent.high


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, d, loss: (n[:5], d[:5], loss[:5]), "there are 5 runs, but a law has up to five constants"),
        (lambda n, d, loss: (n[:9], d, loss), "there are 9 parameters, 35 tokens, 35 losses: give one each a run"),
        (lambda n, d, loss: (n, d, np.where(loss == loss[3], np.nan, loss)), "run 3 has nan losses: leave out"),
        (lambda n, d, loss: (-n, d, loss), "run 0 has -.* parameters"),
        (lambda n, d, loss: (np.full_like(n, 1e6), d, loss), r"all runs have 1e\+06 parameters: vary both"),
    ],
)
def test_runs_that_make_no_law(change, message):
    _, sizes, tokens, losses = make_runs(BESIROGLU)
    with pytest.raises(ValueError, match=message):
        fit_parametric(*change(sizes, tokens, losses))


def test_budgets_that_have_no_bottom():
    flops, sizes, _, losses = make_runs(BESIROGLU)
    with pytest.raises(ValueError, match="there are 1 budgets, expected at least 2"):
        fit_isoflop(flops[:7], sizes[:7], losses[:7])
    with pytest.raises(ValueError, match=r"1\.00e\+18 FLOPs have 2 sizes, expected at least 3"):
        fit_isoflop(flops[5:], sizes[5:], losses[5:])
    cut = sizes <= BESIROGLU.optimal(1e20).parameters / 1.1
    cut[flops < 1e20] = True
    with pytest.raises(ValueError, match=r"the lowest loss of 1\.00e\+20 FLOPs .* run sizes on both sides of it"):
        fit_isoflop(flops[cut], sizes[cut], losses[cut])
    losses[0] = np.nan
    with pytest.raises(ValueError, match=r"a run of 1\.00e\+18 FLOPs has no loss or size"):
        fit_isoflop(flops, sizes, losses)


@pytest.mark.parametrize("law", PUBLISHED.values())
def test_budgets_that_are_none(law):
    with pytest.raises(ValueError, match="flops is 0, expected a number above 0"):
        law.optimal(0)

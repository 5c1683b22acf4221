"""Studies: their files, which runs they make, and the laws they give."""

import csv
import dataclasses
import itertools
import math
from importlib import resources
from pathlib import Path

import pytest
from planted_study import LAW, planted_study

from chinchilla_hf.scaling.laws import ParametricLaw
from chinchilla_hf.scaling.shapes import LADDER, Shape, training_settings
from chinchilla_hf.scaling.study import (
    StudyError,
    best_run,
    next_shape,
    read_study,
    shapes_around,
    write_study,
)
from chinchilla_hf.scaling.study_fit import StudyFit, describe, fit_study, plot_candidates, plot_study, shipped_fit


@pytest.fixture(scope="module")
def runs():
    return planted_study()


@pytest.fixture(scope="module")
def fit(runs):
    return fit_study(runs, bootstrap=20)


# Shapes


def test_the_ladder_grows_in_every_way():
    for smaller, larger in itertools.pairwise(LADDER):
        assert smaller.hidden_size < larger.hidden_size and smaller.num_hidden_layers <= larger.num_hidden_layers
        flops = [shape.flops_per_token("causal", 1000, 128) for shape in (smaller, larger)]
        assert flops[0] < flops[1]
    for shape in LADDER:
        assert shape.hidden_size % shape.num_attention_heads == 0
        assert (shape.hidden_size // shape.num_attention_heads) % 2 == 0  # rotary positions turn pairs


def test_a_shape_makes_the_config_of_its_objective():
    shape = Shape.of_width(64)
    assert str(shape) == "64 x 3"
    assert shape.config("masked", 300).model_type == "chinchilla"
    config = shape.config("causal", 300, max_position_embeddings=64)
    assert (config.model_type, config.max_position_embeddings) == ("chinchilla_decoder", 64)
    with pytest.raises(ValueError, match="objective is 'seq2seq', expected one of masked, causal"):
        shape.config("seq2seq", 300)


def test_longer_runs_have_larger_batches():
    rows = [training_settings(Shape.of_width(64), tokens, 128).rows for tokens in (1, 4e5, 1.6e6, 1e8)]
    assert rows[0] == rows[1] == 4 and rows[2] == pytest.approx(2 * rows[1], abs=1) and rows[3] > 50
    assert training_settings(Shape.of_width(64), 1, 4096).rows == 1


# Files


def test_a_study_comes_back_as_it_was_written(runs, tmp_path):
    write_study(tmp_path / "a.csv", reversed(runs[:20]))
    write_study(tmp_path / "b.csv", runs[20:])
    found = read_study(tmp_path / "a.csv", tmp_path / "b.csv")
    assert sorted(found, key=str) == sorted(runs, key=str)
    budgets = [run.budget for run in read_study(tmp_path / "a.csv")]
    assert budgets == sorted(budgets)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("loss", "nan", "line 3: loss is nan, expected a number above 0: leave the line out, or run it anew"),
        ("loss", "", "line 3: there is no loss: leave the line out, or let the run end"),
        ("tokens", "-5", "line 3: tokens is -5, expected a number above 0"),
        ("seconds", "long", "line 3: seconds is long, expected a number"),
        ("objective", "causal", "different values of objective, causal and masked: .* fit them apart"),
        ("tokenizer", "cc", "different values of tokenizer, aa and cc"),
        ("vocab_size", "600", "different values of vocab_size, 500 and 600"),
    ],
)
def test_a_study_with_something_wrong_in_it(runs, tmp_path, column, value, message):
    path = tmp_path / "study.csv"
    write_study(path, runs)
    rows = list(csv.DictReader(path.open()))
    rows[1][column] = value
    with path.open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(StudyError, match=message):
        read_study(path)


def test_files_that_are_no_study(runs, tmp_path):
    path = tmp_path / "study.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(StudyError, match="has no column 'objective': it is no study"):
        read_study(path)
    write_study(path, [])
    with pytest.raises(StudyError, match=r"there is no run in .*study\.csv"):
        read_study(path)
    with path.open("a") as file:  # a line that ends too early, as of a full disk
        file.write("masked,aa,bb,128\n")
    with pytest.raises(StudyError, match="line 2: there is no vocab_size"):
        read_study(path)


# Which runs


def test_sizes_are_around_the_best_one():
    assert [shape.hidden_size for shape in shapes_around(Shape.of_width(64), 5)] == [32, 48, 64, 96, 128]
    assert shapes_around(LADDER[0], 5) == list(LADDER[:5])
    assert shapes_around(LADDER[-1], 5) == list(LADDER[-5:])


def test_a_budget_gets_more_sizes_until_the_best_is_between_them(runs):
    group = [run for run in runs if run.budget == 1e13 and run.seed == 1]
    shapes = sorted({run.shape for run in group})
    best = best_run(group).shape
    assert shapes[0] < best < shapes[-1] and next_shape(group, most=9) is None
    cut = [run for run in group if run.shape <= best]
    assert next_shape(cut, most=9) == LADDER[LADDER.index(best) + 1]
    assert next_shape(cut, most=len(cut)) is None
    smallest = [dataclasses.replace(run, loss=run.hidden_size) for run in group]
    assert next_shape(smallest, most=9) == LADDER[LADDER.index(shapes[0]) - 1]
    at_the_end = [dataclasses.replace(run, hidden_size=LADDER[0].hidden_size, loss=1.0) for run in group[:1]]
    at_the_end = [dataclasses.replace(at_the_end[0], **vars(LADDER[0])), *group]
    assert next_shape(at_the_end, most=9) is None  # the ladder has no smaller one


# Laws


def test_the_law_of_the_runs_is_found(fit):
    assert fit.count == "total"  # the runs were made by those with the head, which are nearly as many
    assert fit.law.law.size_exponent == pytest.approx(LAW.size_exponent, abs=0.06)
    assert fit.law.law.data_exponent == pytest.approx(LAW.data_exponent, abs=0.06)
    assert fit.seed_noise == pytest.approx(0.003, rel=0.8)
    assert fit.smallest_budget in (1e12, 3e12, 1e13) and (fit.largest_budget, fit.runs) == (1e14, 35)
    assert 0 < fit.held_out_error < 0.02 and fit.law.residual >= fit.held_out_error
    best = LAW.optimal(4e14)
    found = fit.law.predict(best.parameters, best.tokens)
    assert found.low <= LAW.loss(best.parameters, best.tokens) <= found.high
    assert found.value == pytest.approx(LAW.loss(best.parameters, best.tokens), rel=0.02)


def test_how_parameters_are_counted_changes_the_exponent(fit):
    """Embeddings are most of a small model, and grow slower than its blocks."""
    exponents = {name: interval.value for name, interval in fit.exponents.items()}
    assert exponents["without_embeddings"] > exponents["total"]
    assert set(fit.isoflop) == {"total", "without_embeddings", "with_head"}


def test_a_fit_comes_back_as_it_was_written(fit, tmp_path):
    fit.write(tmp_path / "fit.json")
    assert StudyFit.read(tmp_path / "fit.json") == fit
    (tmp_path / "fit.json").write_text('{"law": 3}')
    with pytest.raises(StudyError, match=r"fit\.json is no fit of a study"):
        StudyFit.read(tmp_path / "fit.json")


def test_a_study_that_is_too_small(runs):
    with pytest.raises(StudyError, match="the study is too small for a law: there are 4 runs"):
        fit_study(runs[:4])
    one_size = [run for run in runs if run.shape == runs[3].shape] * 3
    with pytest.raises(StudyError, match="vary both sizes and tokens"):
        fit_study(one_size)


def test_budgets_that_are_on_another_curve_are_left_out_of_the_law(runs):
    """As of models that have learned no more than how frequent words are."""
    stuck = [dataclasses.replace(run, loss=7.0 + 0.01 * run.seed) if run.budget < 1e13 else run for run in runs]
    fit = fit_study(stuck, bootstrap=5)
    assert fit.smallest_budget == 1e13 and fit.runs == 35
    best = LAW.optimal(4e14)
    assert fit.law.law.loss(best.parameters, best.tokens) == pytest.approx(
        LAW.loss(best.parameters, best.tokens), rel=0.05
    )
    whole = fit_study(runs, bootstrap=5)
    assert whole.held_out_error < fit.held_out_error + 0.02


def test_budgets_without_a_lowest_point_are_left_out_of_the_parabolas(runs):
    rising = [dataclasses.replace(run, loss=run.hidden_size / 100) if run.budget == 1e12 else run for run in runs]
    fit = fit_study(rising, bootstrap=2)
    assert [point.flops for point in fit.isoflop["total"].points] == [3e12, 1e13, 3e13, 1e14]


def test_words_and_pictures(runs, fit, tmp_path):
    text = describe(fit)
    assert (
        "35 runs; the law is of" in text
        and "the largest budget, held out, was predicted" in text
        and "Besiroglu et al. 2024 0.51" in text
    )
    plot_study(runs, fit, tmp_path / "study.png")
    candidates = [fit.law.predict(n, 1e7) for n in (1e5, 1e6, 1e7)]
    plot_candidates([1e5, 1e6, 1e7], candidates, 1, "a title", tmp_path / "plan.png")
    for name in ("study.png", "plan.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "law",
    [
        ParametricLaw(2.0, 900.0, 0.45, 40.0, 0.2),
        ParametricLaw(1.0, 100.0, 0.3, 200.0, 0.35),
        ParametricLaw(0.0, 2e9, 0.89, 3e10, 1.0, 0.155),
    ],
)
def test_other_laws_are_found_too(law):
    fit = fit_study(planted_study(law, noise=0.001, seed=3), bootstrap=2)
    assert (fit.law.law.joint_exponent == 1) is (law.joint_exponent == 1)  # of two forms, the right one
    assert (")^0." in describe(fit)) is (law.joint_exponent != 1)
    best = law.optimal(4e14)
    assert fit.law.law.loss(best.parameters, best.tokens) == pytest.approx(
        law.loss(best.parameters, best.tokens), rel=0.02
    )
    assert fit.law.law.exponent == pytest.approx(law.exponent, abs=0.05)
    assert math.isfinite(fit.law.law.repeats)


# The studies that are shipped


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_the_shipped_fit_is_that_of_the_shipped_runs(objective):
    folder = Path(str(resources.files("chinchilla_hf.scaling") / "studies"))
    runs, fit = read_study(folder / f"{objective}.csv"), shipped_fit(objective)
    assert fit.objective == objective and fit.runs == len(runs)
    again = fit_study(runs, bootstrap=2)
    assert (again.smallest_budget, again.largest_budget, again.count) == (
        fit.smallest_budget,
        fit.largest_budget,
        fit.count,
    )
    for shape, tokens in ((LADDER[4], 5e6), (LADDER[7], 1e7)):
        size = fit.parameters(shape.parameters(objective, fit.vocab_size))
        assert again.law.law.loss(size, tokens) == pytest.approx(fit.law.law.loss(size, tokens), rel=1e-3)
    assert (folder / f"{objective}.png").is_file()


def test_there_is_no_fit_of_another_objective():
    with pytest.raises(ValueError, match="objective is 'seq2seq', expected one of masked, causal"):
        shipped_fit("seq2seq")

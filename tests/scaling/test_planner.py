"""Plans: the lowest predicted loss that budget, memory and limits allow, and what they refuse."""

import dataclasses
import json
import math

import pytest
from planted_study import LAW, planted_study

from chinchilla_hf.scaling.laws import ExtrapolationError
from chinchilla_hf.scaling.machine import MachineProfile, Measured
from chinchilla_hf.scaling.planner import PlanError, make_plan, read_prediction, receipt
from chinchilla_hf.scaling.shapes import LADDER
from chinchilla_hf.scaling.study_fit import fit_study

PLENTY = 1e12


@pytest.fixture(scope="module")
def fit():
    return fit_study(planted_study(), bootstrap=10)


@pytest.fixture(scope="module")
def machine(fit):
    """1e11 FLOP/s, and 20 ms a step besides."""
    measured = [
        Measured(
            shape=shape,
            fixed_seconds=0.02,
            row_seconds=shape.flops_per_token("masked", fit.vocab_size, 128) * 128 / 1e11,
            fixed_bytes=16e3 * shape.hidden_size**2,
            row_bytes=1e5 * shape.hidden_size,
        )
        for shape in LADDER
    ]
    return MachineProfile({}, "masked", fit.vocab_size, 128, tuple(measured), 8e9, 1e9)


def test_a_budget_of_flops_goes_to_the_shape_that_the_law_says(fit):
    plan = make_plan(fit, PLENTY, flops=1e13)
    assert plan.chosen.flops == pytest.approx(1e13)
    losses = {candidate.shape: candidate.loss.value for candidate in plan.candidates}
    assert plan.chosen.shape == min(losses, key=losses.get)
    truth = {
        candidate.shape: LAW.loss(candidate.parameters.with_head, candidate.tokens) for candidate in plan.candidates
    }
    assert truth[plan.chosen.shape] <= 1.005 * min(truth.values())
    assert plan.chosen.loss.low <= plan.chosen.loss.value <= plan.chosen.loss.high
    assert plan.chosen.seconds is None and plan.chosen.memory_bytes is None
    assert plan.options()["max_steps"] == plan.chosen.steps and "max_minutes" not in plan.options()


def test_a_larger_budget_has_a_larger_model_and_a_lower_loss(fit):
    small, large = (make_plan(fit, PLENTY, flops=flops).chosen for flops in (3e12, 3e14))
    assert large.parameters.total > small.parameters.total and large.tokens > small.tokens
    assert large.loss.value < small.loss.value and large.settings.rows > small.settings.rows


def test_a_budget_of_time_is_used_up(fit, machine):
    plan = make_plan(fit, PLENTY, seconds=300, machine=machine)
    for candidate in plan.candidates:
        assert candidate.seconds == pytest.approx(300, rel=0.02)
        assert candidate.steps * candidate.settings.rows * 128 == pytest.approx(candidate.tokens, rel=0.02)
    assert plan.options()["max_minutes"] == 5
    # The fixed cost of a step makes small shapes dearer than their FLOPs say.
    by_flops = make_plan(fit, PLENTY, flops=plan.chosen.flops)
    assert by_flops.chosen.parameters.total <= plan.chosen.parameters.total


def test_several_devices_share_the_batch(fit, machine):
    one = make_plan(fit, PLENTY, seconds=600, machine=machine)
    four = make_plan(fit, PLENTY, seconds=600, machine=machine, devices=4)
    assert four.chosen.flops > one.chosen.flops and four.chosen.loss.value < one.chosen.loss.value
    rows = four.options()["per_device_train_batch_size"]
    assert 4 * rows == pytest.approx(four.chosen.settings.rows, abs=2)
    assert any("assumed to be 3.6 times as fast" in reason for reason in four.reasons)
    measured = make_plan(fit, PLENTY, seconds=600, machine=machine, devices=4, scaling_factor=0.5)
    assert measured.chosen.flops < four.chosen.flops
    assert not any("assumed" in reason for reason in measured.reasons)


def test_limits_leave_a_smaller_model_that_is_trained_for_longer(fit):
    free = make_plan(fit, PLENTY, flops=1e14).chosen
    for limits in (
        {"max_parameters": free.parameters.total / 2},
        {"allowed": lambda shape: shape.hidden_size <= free.shape.hidden_size / 2},
    ):
        plan = make_plan(fit, PLENTY, flops=1e14, **limits)
        assert plan.chosen.parameters.total < free.parameters.total and plan.chosen.tokens > free.tokens
        assert plan.chosen.loss.value > free.loss.value
        assert any(f"Without the limits it would be {free.shape}" in reason for reason in plan.reasons)
    with pytest.raises(PlanError, match="no shape meets the limits: the smallest, 8 x 2, has"):
        make_plan(fit, PLENTY, flops=1e14, max_parameters=1000)


def test_a_plan_never_needs_more_memory_than_there_is(fit, machine):
    free = make_plan(fit, PLENTY, seconds=2000, machine=machine)
    need = free.chosen.memory_bytes
    tight = dataclasses.replace(machine, memory_bytes=0.95 * need / 0.9)
    plan = make_plan(fit, PLENTY, seconds=2000, machine=tight)
    assert plan.chosen.memory_bytes < need and plan.chosen.shape < free.chosen.shape
    assert any("need more memory than there is" in reason for reason in plan.reasons)


def test_repeated_text_has_its_price(fit):
    fresh = make_plan(fit, PLENTY, flops=1e14).chosen
    unique = fresh.tokens / 10
    plan = make_plan(fit, unique, flops=1e14)
    assert plan.chosen.epochs == pytest.approx(plan.chosen.tokens / unique)
    assert plan.chosen.loss.value > fresh.loss.value
    assert any("Every text is seen" in reason and "different tokens" in reason for reason in plan.reasons)


def test_more_epochs_than_the_law_knows_are_refused(fit):
    with pytest.raises(
        PlanError, match=r"show every text \d+ times, but .* up to 47 times: .* the loss would be \d\.\d+"
    ):
        make_plan(fit, 1e4, flops=1e14)


def test_budgets_that_are_too_small_name_the_smallest(fit, machine):
    with pytest.raises(PlanError, match=r"too small: .* FLOPs, and the smallest .* 5e\+11$"):
        make_plan(fit, PLENTY, flops=2e11)
    with pytest.raises(PlanError, match=r"smallest .* 5e\+11, about \d+ s on this machine"):
        make_plan(fit, PLENTY, seconds=2, machine=machine)
    with pytest.raises(PlanError, match="too small for 100 steps of any size"):
        make_plan(fit, PLENTY, flops=1)


def test_far_beyond_the_study_only_when_told(fit):
    with pytest.raises(ExtrapolationError, match="FLOPs are 1000 times the largest budget of the study"):
        make_plan(fit, PLENTY, flops=1e17)
    assert make_plan(fit, 1e15, flops=1e17, extrapolate=True).chosen.loss.value < 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of them"),
        ({"flops": 1e13, "seconds": 60}, "give one of them"),
        ({"flops": 0}, "the budget is 0, expected a number above 0"),
        ({"flops": math.nan}, "the budget is nan"),
        ({"flops": math.inf}, "the budget is inf"),
        ({"seconds": 60}, "the machine was not measured"),
        ({"flops": 1e13, "devices": 0}, "devices is 0"),
        ({"flops": 1e13, "unique_tokens": 500}, "the text has 500 tokens to train on, fewer than one batch of 512"),
    ],
)
def test_what_cannot_be_planned(fit, options, message):
    with pytest.raises(PlanError, match=message):
        make_plan(fit, **{"unique_tokens": PLENTY, **options})


def test_a_plan_comes_back_and_is_compared_with_what_came_out(fit, tmp_path):
    plan = make_plan(fit, PLENTY, flops=1e13)
    plan.write(tmp_path / "plan.json")
    prediction = read_prediction(tmp_path / "plan.json")
    assert prediction == json.loads(json.dumps(plan.prediction()))
    training = {"seconds": 60.0, "tokens": 10, "flops": 9.9e12, "steps": 3, "peak_memory_bytes": 5, "seed": 1}
    for loss, inside in ((plan.chosen.loss.value, True), (plan.chosen.loss.high + 1, False)):
        found = receipt(prediction, loss, training)
        assert found["predicted"] == prediction
        assert found["actual"]["loss"] == loss and found["actual"]["inside"] is inside
        assert found["actual"]["flops"] == 9.9e12 and "seed" not in found["actual"]
        assert "predicted_loss" not in found["actual"]  # far fewer tokens than planned


@pytest.mark.parametrize("share", [0.3, 0.79, 1, 1.9])
def test_a_machine_that_was_slower_or_faster_is_no_fault_of_the_law(fit, share):
    plan = make_plan(fit, PLENTY, flops=1e13)
    tokens = round(share * plan.chosen.tokens)
    training = {"seconds": 60.0, "tokens": tokens, "flops": 1e13, "steps": 3, "peak_memory_bytes": 5}
    found = receipt(json.loads(json.dumps(plan.prediction())), 3.0, training)["actual"]
    expected = fit.law.predict(fit.parameters(plan.chosen.parameters), tokens, PLENTY)
    assert found["predicted_loss"] == pytest.approx(expected.value, rel=2e-3)
    assert found["predicted_loss_interval"] == pytest.approx([expected.low, expected.high], rel=2e-3)


@pytest.mark.parametrize("text", ["no json", "[1]", '{"loss": 2.0}', '{"loss": 2.0, "loss_interval": [2.1, 2.2]}'])
def test_files_that_are_no_plan(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PlanError, match=r"plan\.json is no plan .* make one with training/plan\.py"):
        read_prediction(tmp_path / "plan.json")

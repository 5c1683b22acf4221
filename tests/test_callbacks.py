"""The clock of a time budget, termination by a signal, and the time that steps take."""

import os
import signal
import time

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from chinchilla_hf.callbacks import BudgetClock, SaveOnTermination, SkippedSteps, StepTimer


@pytest.fixture
def arguments(tmp_path) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), use_cpu=True)


def test_a_clock_stops_the_run_when_its_time_is_used(arguments):
    clock, control = BudgetClock(max_minutes=0.1 / 60), TrainerControl()
    assert clock.progress() == 0 and clock.seconds == 0
    clock.on_train_begin(arguments, TrainerState(), control)
    clock.on_step_end(arguments, TrainerState(), control)
    assert 0 < clock.progress() < 1 and not control.should_training_stop
    time.sleep(0.12)
    assert clock.progress() < 1  # read at the end of a step only
    clock.on_step_end(arguments, TrainerState(), control)
    assert clock.progress() == 1 and control.should_training_stop


def test_time_used_before_an_interruption_counts(arguments):
    state = TrainerState(global_step=7, stateful_callbacks={})
    state.stateful_callbacks["BudgetClock"] = {"args": {}, "attributes": {"seconds_used": 30.0}}
    clock = BudgetClock(max_minutes=1)
    clock.on_train_begin(arguments, state, TrainerControl())
    assert clock.progress() == pytest.approx(0.5, abs=0.01)
    assert clock.state()["attributes"]["seconds_used"] >= 30
    fresh = BudgetClock(max_minutes=1)
    fresh.on_train_begin(arguments, TrainerState(stateful_callbacks={}), TrainerControl())
    assert fresh.progress() < 0.01


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_a_budget_that_is_none_raises(minutes):
    with pytest.raises(ValueError, match="max_minutes is"):
        BudgetClock(minutes)


def test_a_signal_saves_and_stops_at_the_end_of_the_step(arguments):
    before = signal.getsignal(signal.SIGTERM)
    callback, control, state = SaveOnTermination(), TrainerControl(), TrainerState(global_step=3)
    callback.on_train_begin(arguments, state, control)
    callback.on_step_end(arguments, state, control)
    assert not control.should_save and not callback.stopped
    os.kill(os.getpid(), signal.SIGTERM)
    callback.on_step_end(arguments, state, control)
    assert control.should_save and control.should_training_stop and callback.stopped
    callback.on_train_end(arguments, state, control)
    assert signal.getsignal(signal.SIGTERM) == before


def test_skipped_steps_before_an_interruption_count(arguments):
    skipped = SkippedSteps()
    skipped.total, skipped.in_a_row = 3, 2
    state = TrainerState(global_step=7, stateful_callbacks={"SkippedSteps": skipped.state()})
    again = SkippedSteps()
    again.on_train_begin(arguments, state, TrainerControl())
    assert (again.total, again.in_a_row) == (3, 2)
    again.on_train_begin(arguments, TrainerState(stateful_callbacks={}), TrainerControl())
    assert (again.total, again.in_a_row) == (0, 0)


def test_the_timer_counts_steps_and_not_what_is_between_them(arguments):
    timer, state, control = StepTimer(), TrainerState(), TrainerControl()
    timer.on_train_begin(arguments, state, control)
    time.sleep(0.02)
    timer.on_step_end(arguments, state, control)
    time.sleep(0.2)  # an evaluation
    timer.on_evaluate(arguments, state, control)
    time.sleep(0.02)
    timer.on_step_end(arguments, state, control)
    assert timer.steps == 2 and 0.04 <= timer.seconds < 0.2

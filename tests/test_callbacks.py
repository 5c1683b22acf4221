"""The clock of a time budget, termination by a signal, and the time that steps take."""

import os
import signal
import time

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from chinchilla_hf.callbacks import (
    BudgetClock,
    BudgetProgress,
    SaveOnTermination,
    SkippedSteps,
    StepTimer,
    processor_seconds,
)


@pytest.fixture
def arguments(tmp_path) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), use_cpu=True)


class Hand:
    """A clock that tests move."""

    def __init__(self, seconds: float = 1000.0):
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


def test_a_clock_stops_the_run_when_its_time_is_used(arguments):
    hand, control = Hand(), TrainerControl()
    clock = BudgetClock(max_minutes=2, now=hand)
    assert clock.progress() == 0 and clock.seconds == 0
    clock.on_train_begin(arguments, TrainerState(), control)
    assert clock.progress() == 0
    hand.seconds += 30
    clock.on_step_end(arguments, TrainerState(), control)
    assert clock.progress() == 0.25 and clock.seconds == 30 and not control.should_training_stop
    hand.seconds += 100
    assert clock.progress() == 0.25 and clock.seconds == 130  # read at the end of a step only
    clock.on_step_end(arguments, TrainerState(), control)
    assert clock.progress() == 1 and control.should_training_stop


def test_the_bar_of_a_budget_shows_its_minutes(arguments, capsys):
    hand, control, state = Hand(), TrainerControl(), TrainerState(global_step=7, is_world_process_zero=True)
    clock = BudgetClock(max_minutes=2, now=hand)
    bar = BudgetProgress(clock)
    clock.on_train_begin(arguments, state, control)
    bar.on_train_begin(arguments, state, control)
    for seconds in (30, 120):  # beyond the end, too
        hand.seconds += seconds
        bar.on_step_end(arguments, state, control)
        bar.training_bar.refresh()
    bar.on_train_end(arguments, state, control)
    shown = capsys.readouterr().err
    assert "0.0/2 minutes" in shown and "0.5/2 minutes, step 7" in shown and "2.0/2 minutes, step 7" in shown


def test_processor_seconds_do_not_pass_while_nothing_is_done():
    first = processor_seconds()
    time.sleep(0.5)
    slept = processor_seconds() - first
    while processor_seconds() < first + 2 * slept + 0.01:
        pass
    assert slept < 0.25


def test_a_clock_goes_by_itself(arguments):
    clock, control = BudgetClock(max_minutes=1e-6), TrainerControl()
    clock.on_train_begin(arguments, TrainerState(), control)
    while not control.should_training_stop:
        clock.on_step_end(arguments, TrainerState(), control)
    assert clock.seconds >= 60e-6


def test_time_used_before_an_interruption_counts(arguments):
    state = TrainerState(global_step=7, stateful_callbacks={})
    state.stateful_callbacks["BudgetClock"] = {"args": {}, "attributes": {"seconds_used": 30.0}}
    hand = Hand()
    clock = BudgetClock(max_minutes=1, now=hand)
    clock.on_train_begin(arguments, state, TrainerControl())
    assert clock.progress() == 0.5
    hand.seconds += 6
    assert clock.state()["attributes"]["seconds_used"] == 36
    fresh = BudgetClock(max_minutes=1, now=hand)
    fresh.on_train_begin(arguments, TrainerState(stateful_callbacks={}), TrainerControl())
    assert fresh.progress() == 0


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
    hand, state, control = Hand(), TrainerState(), TrainerControl()
    timer = StepTimer(hand)
    timer.on_train_begin(arguments, state, control)
    hand.seconds += 2
    timer.on_step_end(arguments, state, control)
    hand.seconds += 20  # an evaluation
    timer.on_evaluate(arguments, state, control)
    hand.seconds += 3
    timer.on_step_end(arguments, state, control)
    assert timer.steps == 2 and timer.seconds == 5

"""Callbacks of a long training run: the clock of a time budget, and what to do when the process is told to end."""

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, ProgressCallback

if TYPE_CHECKING:
    from .data.streaming import StreamedRows

logger = logging.getLogger(__name__)


def processor_seconds() -> float:
    """The time that the CPU has worked for this process, divided by the threads that torch works with."""
    return time.process_time() / torch.get_num_threads()


class BudgetClock(TrainerCallback, ExportableState):
    """
    Ends the training when its time is used up, evaluations and checkpoints included.

    The time that a run has used before it was interrupted is in its checkpoints, and counts. In a distributed run all
    processes go by the clock of the main one, read at the end of every step: they have to agree on learning rates and
    on the last step.

    Args:
        max_minutes: the budget, over all continuations of the run.
        now: seconds, from any beginning; by [`processor_seconds`], a CPU's work is counted in place of time.

    Raises:
        ValueError: a budget that is not above 0.
    """

    def __init__(self, max_minutes: float, now: Callable[[], float] = time.monotonic):
        if not max_minutes > 0:
            raise ValueError(f"max_minutes is {max_minutes}, but must be above 0: leave it out to go by steps")
        self.max_minutes = max_minutes
        self._now = now
        self._used_before = 0.0
        self._started: float | None = None
        self._progress = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._used_before + (0.0 if self._started is None else self._now() - self._started)

    def progress(self) -> float:
        """The share of the budget that was used at the end of the last step, 0 to 1."""
        return self._progress

    def _read(self, args: TrainingArguments) -> None:
        used = torch.tensor(min(self.seconds / (60 * self.max_minutes), 1.0), device=args.device)
        if args.world_size > 1:
            torch.distributed.broadcast(used, src=0)
        self._progress = used.item()

    def state(self) -> dict[str, Any]:
        """For Trainer, which writes it into `trainer_state.json`."""
        return {"args": {"max_minutes": self.max_minutes}, "attributes": {"seconds_used": self.seconds}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._used_before = _saved_attributes(self, state).get("seconds_used", 0.0)
        self._started = self._now()
        self._read(args)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._read(args)
        if self._progress >= 1:
            control.should_training_stop = True


def _saved_attributes(callback: TrainerCallback, state: TrainerState) -> dict[str, Any]:
    """What the checkpoint that the run goes on from holds of an `ExportableState`; empty in a new run."""
    saved = state.stateful_callbacks.get(type(callback).__name__, {}) if state.global_step else {}
    return saved.get("attributes", {})


class BudgetProgress(ProgressCallback):
    """
    Trainer's progress bar, for a run that ends by time: it shows the minutes of the budget, where the one that goes by
    steps would wait for a last step that nobody knows.

    Args:
        clock: of the budget, registered before this.
    """

    def __init__(self, clock: BudgetClock):
        super().__init__()
        self._clock = clock

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=self._clock.max_minutes,
                initial=min(self._clock.seconds / 60, self._clock.max_minutes),
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {n:.1f}/{total:g} minutes{postfix}",
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.training_bar.set_postfix_str(f"step {state.global_step:,}", refresh=False)
            self.training_bar.update(min(self._clock.seconds / 60, self._clock.max_minutes) - self.training_bar.n)


class SkippedSteps(TrainerCallback, ExportableState):
    """
    Counts steps that were skipped, over all continuations of a run.

    Attributes:
        total: all of them.
        in_a_row: those since the last step that was not skipped.
    """

    def __init__(self) -> None:
        self.total = 0
        self.in_a_row = 0

    def state(self) -> dict[str, Any]:
        """For Trainer, which writes it into `trainer_state.json`."""
        return {"args": {}, "attributes": {"total": self.total, "in_a_row": self.in_a_row}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        saved = _saved_attributes(self, state)
        self.total, self.in_a_row = saved.get("total", 0), saved.get("in_a_row", 0)


class StreamState(TrainerCallback, ExportableState):
    """
    Keeps how far every process is in a stream, in `trainer_state.json`: Trainer writes this file last, so a checkpoint
    that has it is whole, and one file holds the states of all processes.

    Args:
        rows: what this process trains on.

    Attributes:
        states: `rows.state_dict()` of every process, at the last [`gather`].
    """

    def __init__(self, rows: "StreamedRows"):
        self.rows = rows
        self.states: list[dict[str, Any]] = []

    def gather(self) -> None:
        """Bring `states` up to date. All processes have a part in it."""
        self.states = [self.rows.state_dict()]
        if self.rows.processes > 1:
            self.states *= self.rows.processes
            torch.distributed.all_gather_object(self.states, self.rows.state_dict())

    def state(self) -> dict[str, Any]:
        """For Trainer, which writes it into `trainer_state.json`."""
        return {"args": {}, "attributes": {"states": self.states}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        states = _saved_attributes(self, state).get("states")
        if states:
            # Where there are more processes than states, the first one's says so.
            self.rows.load_state_dict(states[self.rows.process if self.rows.process < len(states) else 0])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        state.epoch = state.global_step / state.max_steps  # Trainer counts from the last continuation

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.gather()


class SaveOnTermination(TrainerCallback):
    """
    At SIGTERM, as a batch system sends it before it takes the machine away: finish the step, save a checkpoint, stop.

    `stopped` is then true. Trainer's own `enable_jit_checkpoint` saves in the middle of a step, after which a continued
    run draws other random numbers than one that was not interrupted.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._requested = False
        self._handler_before: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():  # only there Python can set handlers
            self._handler_before = signal.signal(signal.SIGTERM, self._request)

    def _request(self, signal_number: int, frame: Any) -> None:
        self._requested = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        requested = torch.tensor(float(self._requested), device=args.device)
        if args.world_size > 1:  # all stop at the same step, whenever each of them was told
            torch.distributed.all_reduce(requested, op=torch.distributed.ReduceOp.MAX)
        if requested.item() and not self.stopped:
            logger.warning("told to end (SIGTERM): saving a checkpoint at step %d", state.global_step)
            control.should_save = control.should_training_stop = self.stopped = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._handler_before is not None:
            signal.signal(signal.SIGTERM, self._handler_before)
            self._handler_before = None


class StepTimer(TrainerCallback):
    """
    Time that goes into steps, their data included, but not into evaluations and checkpoints.

    Args:
        now: seconds, from any beginning.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self.seconds = 0.0
        self.steps = 0
        self._mark = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mark = self._now()

    on_evaluate = on_save = on_train_begin

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = self._now()
        self.seconds += now - self._mark
        self.steps += 1
        self._mark = now

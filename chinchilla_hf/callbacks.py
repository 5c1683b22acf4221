"""Callbacks of a long training run: the clock of a time budget, and what to do when the process is told to end."""

import logging
import signal
import threading
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

logger = logging.getLogger(__name__)


class BudgetClock(TrainerCallback, ExportableState):
    """
    Ends the training when its time is used up, evaluations and checkpoints included.

    The time that a run has used before it was interrupted is in its checkpoints, and counts. In a distributed run all
    processes go by the clock of the main one, read at the end of every step: they have to agree on learning rates and
    on the last step.

    Args:
        max_minutes: the budget, over all continuations of the run.

    Raises:
        ValueError: a budget that is not above 0.
    """

    def __init__(self, max_minutes: float):
        if not max_minutes > 0:
            raise ValueError(f"max_minutes is {max_minutes}, but must be above 0: leave it out to go by steps")
        self.max_minutes = max_minutes
        self._used_before = 0.0
        self._started: float | None = None
        self._progress = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self._used_before + (0.0 if self._started is None else time.monotonic() - self._started)

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
        saved = state.stateful_callbacks.get(type(self).__name__, {}) if state.global_step else {}
        self._used_before = saved.get("attributes", {}).get("seconds_used", 0.0)
        self._started = time.monotonic()
        self._read(args)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._read(args)
        if self._progress >= 1:
            control.should_training_stop = True


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
    """Time that goes into steps, their data included, but not into evaluations and checkpoints."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.steps = 0
        self._mark = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mark = time.perf_counter()

    on_evaluate = on_save = on_train_begin

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.seconds += now - self._mark
        self.steps += 1
        self._mark = now

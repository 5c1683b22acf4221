"""
Contestants that take turns, each in a process of its own: what the benchmarks of training speed share.

A slow moment of the machine hits all of them, and the memory of each is its own. What counts is the median of the
ratios within a turn.
"""

import atexit
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

ENDLESS = 1_000_000_000  # steps of a Trainer that goes on as long as it is given turns


class Worker:
    """
    A process that works when it is its turn, and waits otherwise.

    Args:
        serve: a function of a module; in the process it is called with a connection and `arguments`. Of every turn it
            receives the amount of work, and sends what came of it.
        arguments: what `serve` needs, to be pickled.
    """

    def __init__(self, serve: Callable[..., None], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *arguments))
        self.process.start()
        atexit.register(self.process.terminate)  # no daemon: those may have no data loader with workers
        theirs.close()  # or the end of a process that fails would not be seen here

    def turn(self, amount: float) -> Any:
        """What comes of so much work."""
        self.connection.send(amount)
        return self.connection.recv()

    def end(self) -> None:
        self.process.terminate()
        self.process.join()


class TurnsOfTrainer(TrainerCallback):
    """
    Lets a Trainer train in turns of so many seconds, and sends its useful tokens and seconds after each.

    A turn ends with the step that is under way, so a step is counted whole, with its batch, gradient and optimizer.

    Args:
        connection: of the process that this Trainer is in.
        useful_tokens: counts them in the inputs of a step.
    """

    def __init__(self, connection: Connection, useful_tokens: Callable[[dict[str, torch.Tensor]], int]):
        self.connection = connection
        self.useful_tokens = useful_tokens
        self.tokens = 0
        self.began: float | None = None
        self.seconds = 0.0

    def count(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, torch.Tensor]) -> None:
        """Before every forward of the model."""
        self.tokens += self.useful_tokens(kwargs)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.began is not None:
            if time.perf_counter() - self.began < self.seconds:
                return
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            self.connection.send((self.tokens, time.perf_counter() - self.began))
        self.seconds = self.connection.recv()
        self.tokens, self.began = 0, time.perf_counter()


def train_in_turns(connection: Connection, trainer: Trainer, useful_tokens: Callable[..., int]) -> None:
    """Be the process of a `trainer`, which is to go on for `ENDLESS` steps: for `Worker`."""
    turns = TurnsOfTrainer(connection, useful_tokens)
    trainer.add_callback(turns)
    trainer.model.register_forward_pre_hook(turns.count, with_kwargs=True)
    trainer.train()


def rates_in_turns(workers: dict[str, Worker], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Useful tokens a second of each, in every round; a first turn is for warming up."""
    for worker in workers.values():
        worker.turn(seconds / 4)
    rates: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            tokens, taken = worker.turn(seconds)
            rates[name].append(tokens / taken)
    for worker in workers.values():
        worker.end()
    return rates


def print_rates(rates: dict[str, list[float]], ours: str) -> None:
    """A line for each: its median rate, and how many times as fast `ours` is."""
    for name, values in rates.items():
        ratio = median(our / their for our, their in zip(rates[ours], values, strict=True))
        print(f"{name:<44} {median(values):10,.0f} useful tokens/s   ours is {ratio:.2f} times as fast")


def device_name(device_type: str) -> str:
    """What a figure was measured on."""
    return f"{torch.get_num_threads()} threads" if device_type == "cpu" else torch.cuda.get_device_name()

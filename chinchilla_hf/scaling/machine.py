"""
What this machine can do, measured: how long a step of a shape takes, and how much memory.

    profile = machine_profile("masked", vocab_size=8192, row_length=128)      from the cache, or measured now
    profile.seconds(Shape(128, 4, 4), rows=16), profile.memory(Shape(128, 4, 4), rows=16)
"""

import ctypes
import dataclasses
import gc
import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from huggingface_hub.constants import HF_HOME
from scipy.optimize import isotonic_regression
from tokenizers import Tokenizer, models
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..callbacks import StepTimer
from ..data.objectives import MaskedTokens, MaskingSchedule, tokens_to_continue
from ..data.packing import PackedRows, SpecialTokens, collate_rows, cut_documents, pack
from ..modeling_chinchilla import ChinchillaForMaskedLM, ChinchillaModel
from ..modeling_chinchilla_decoder import ChinchillaForCausalLM
from ..processes import keep_freed_memory
from ..run_record import describe_machine, package_versions, write_atomically
from ..trainer import PretrainingTrainer
from ..training_arguments import PretrainingArguments, choose_attention
from .shapes import LADDER, MASKING_RATE, Shape, check_objective

logger = logging.getLogger(__name__)

DEFAULT_CACHE = Path(HF_HOME) / "chinchilla_hf" / "machines"
# Part of the name of every profile: raise it when what is measured changes.
FORMAT = 2
ROWS = (4, 32)
SECONDS = 45.0
# What decides the speed; another version of anything else does not.
DECISIVE = ("torch", "transformers", "chinchilla_hf")
DOCUMENT_LENGTH = 50
WARM_UP_STEPS = 3


class MachineError(ValueError):
    """A profile of another machine."""


def matmul_flops_per_second(
    device: torch.device | str, dtype: torch.dtype, size: int | None = None, seconds: float = 1.0
) -> float:
    """
    FLOP/s of the product of two square matrices: the ceiling that a training run is compared with.

    Args:
        device: where.
        dtype: of the matrices.
        size: rows and columns of the matrices: 2,048 on a CPU if not given, and 8,192 elsewhere, whose products end
            too soon to be measured otherwise.
        seconds: how long to measure. The best of the products counts, others may have been disturbed.
    """
    device = torch.device(device)
    size = size or (2048 if device.type == "cpu" else 8192)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def product() -> float:
        start = time.perf_counter()
        torch.mm(left, right)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - start

    product()
    end = time.perf_counter() + seconds
    best = product()
    while time.perf_counter() < end:
        best = min(best, product())
    return 2 * size**3 / best


@dataclass(frozen=True)
class Measured:
    """
    Steps of one shape.

    Args:
        shape: which.
        fixed_seconds: of a step, whatever its rows: the optimizer, and calls.
        row_seconds: of every row.
        fixed_bytes, row_bytes: as much memory.
    """

    shape: Shape
    fixed_seconds: float
    row_seconds: float
    fixed_bytes: float
    row_bytes: float


@dataclass(frozen=True)
class MachineProfile:
    """
    What steps cost on a machine, in training as `training/pretrain.py` does it.

    Args:
        hardware: what it is, see [`hardware_of`].
        objective, vocab_size, row_length: of the models that were measured.
        measured: shapes, by size.
        memory_bytes: that the machine has for training.
        base_bytes: that a process takes before it has a model.
    """

    hardware: dict[str, Any]
    objective: str
    vocab_size: int
    row_length: int
    measured: tuple[Measured, ...]
    memory_bytes: float
    base_bytes: float

    def seconds(self, shape: Shape, rows: int) -> float:
        """
        Seconds of a step: measured, or between measured shapes by their FLOPs; beyond the largest, as fast in FLOP/s.
        """
        return self._between(shape, "fixed_seconds") + rows * self._between(shape, "row_seconds")

    def memory(self, shape: Shape, rows: int) -> float:
        """Bytes of a process that trains the shape."""
        return self.base_bytes + self._between(shape, "fixed_bytes") + rows * self._between(shape, "row_bytes")

    def _between(self, shape: Shape, name: str) -> float:
        """The quantity for `shape`: a power of the size between two measured ones."""
        # What comes with every row grows as the FLOPs do, the rest as the parameters.
        size = self._flops if name.startswith("row_") else self._parameters
        known = sorted((size(point.shape), getattr(point, name)) for point in self.measured)
        sizes, values = np.log([pair[0] for pair in known]), np.log([max(pair[1], 1e-9) for pair in known])
        place = math.log(size(shape))
        beyond = max(0.0, place - sizes[-1]) + min(0.0, place - sizes[0])
        return float(np.exp(np.interp(place, sizes, values) + beyond))

    def _flops(self, shape: Shape) -> float:
        return shape.flops_per_token(self.objective, self.vocab_size, self.row_length)

    def _parameters(self, shape: Shape) -> float:
        return shape.parameters(self.objective, self.vocab_size).total

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as JSON, as a whole or not at all."""
        write_atomically(path, f"{json.dumps(dataclasses.asdict(self), indent=2)}\n".encode())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "MachineProfile":
        """
        Raises:
            MachineError: the file is no profile.
            OSError: it cannot be read.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            points = [Measured(**{**point, "shape": Shape(**point["shape"])}) for point in fields["measured"]]
            return cls(**{**fields, "measured": tuple(points)})
        except (ValueError, TypeError, KeyError) as error:
            raise MachineError(f"{os.fspath(path)} is no machine profile ({error}): measure the machine anew") from None

    def check(self, objective: str, vocab_size: int, row_length: int, device: torch.device | str = "cpu") -> None:
        """
        Raises:
            MachineError: the profile is of other hardware, or of other models.
        """
        here = hardware_of(device)
        wanted = {**here, "objective": objective, "vocab_size": vocab_size, "row_length": row_length}
        found = {**self.hardware, **{name: getattr(self, name) for name in ("objective", "vocab_size", "row_length")}}
        other = [f"{name} {found.get(name)}, here {wanted[name]}" for name in wanted if found.get(name) != wanted[name]]
        if other:
            raise MachineError(
                f"the machine profile was measured elsewhere or for other models ({'; '.join(other)}): measure this "
                "machine"
            )


def hardware_of(device: torch.device | str) -> dict[str, Any]:
    """What decides how fast training is on `device`: processor, threads, instruction sets, versions."""
    machine = describe_machine(device)
    versions = package_versions()
    return machine | {name: versions[name] for name in DECISIVE if name in versions}


def available_memory() -> float:
    """Bytes that this process may take: of the machine, or of the control group that it is in."""
    available = psutil.virtual_memory().available
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        used = Path("/sys/fs/cgroup/memory.current")
        available = min(available, int(text) - (int(used.read_text()) if used.is_file() else 0))
    return float(available + psutil.Process().memory_info().rss)  # which the process that trains takes for its own


def machine_profile(
    objective: str,
    vocab_size: int,
    row_length: int,
    *,
    seconds: float | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    anew: bool = False,
) -> MachineProfile:
    """
    The profile of this machine: from the cache, where it is by hardware and versions, or measured now.

    Args:
        objective: `"masked"` or `"causal"`.
        vocab_size: of the models.
        row_length: tokens of a packed row.
        seconds: to measure for, about; 45 if not given.
        cache_dir: `chinchilla_hf/machines` in the cache of Hugging Face if not given.
        anew: measure even where there is a profile.
    """
    check_objective(objective)
    with tempfile.TemporaryDirectory() as folder:
        arguments = measuring_arguments(folder)
        hardware = hardware_of(arguments.device)
        key = json.dumps([FORMAT, hardware, objective, vocab_size, row_length], sort_keys=True)
        path = Path(cache_dir or DEFAULT_CACHE) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
        if path.is_file() and not anew:
            return MachineProfile.read(path)
        seconds = SECONDS if seconds is None else seconds
        logger.info("measuring this machine, about %d s: it is not to do anything else meanwhile", seconds)
        rows = random_rows(objective, vocab_size, row_length)
        measured = larger_takes_longer(measure_shapes(rows, objective, vocab_size, row_length, arguments, seconds))
    counter = _memory_counter(arguments.device)
    if counter is None:
        memory, base = available_memory(), float(psutil.Process().memory_info().rss)
    else:
        memory, base = float(counter.mem_get_info()[1]), 0.0
    profile = MachineProfile(hardware, objective, vocab_size, row_length, measured, memory, base)
    profile.write(path)
    return profile


def measuring_arguments(folder: str) -> PretrainingArguments:
    """Those of a run that leaves nothing."""
    return PretrainingArguments(
        output_dir=folder,
        disable_tqdm=True,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        log_level="error",
    )


def random_rows(objective: str, vocab_size: int, row_length: int) -> PackedRows:
    """Packed rows of documents of random tokens: what they say plays no part in how long a step takes."""
    special = {"[PAD]": 0, "[MASK]": 1}
    vocabulary = special | {f"w{i}": i for i in range(len(special), vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]")),
        pad_token="[PAD]",
        mask_token="[MASK]",
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(len(special), vocab_size, 64 * row_length, dtype=np.int64)
    edges = np.arange(0, len(tokens) + 1, min(DOCUMENT_LENGTH, row_length))
    packing = pack(*cut_documents(edges, row_length), row_length, 0, seed=0)
    schedule = MaskingSchedule(MASKING_RATE, MASKING_RATE)
    learned = MaskedTokens(tokenizer, schedule) if objective == "masked" else tokens_to_continue
    return PackedRows(tokens, packing, SpecialTokens((), (), 0), learned, num_items=1 << 30)


def measure_shapes(
    rows: PackedRows,
    objective: str,
    vocab_size: int,
    row_length: int,
    arguments: PretrainingArguments,
    seconds: float,
    shapes: Iterable[Shape] = LADDER[1::2],
) -> list[Measured]:
    """
    Steps of `shapes`, from the smallest on, two or more, as many as there is time for: of each with few rows and with
    many. None is begun that would need more time than is left.
    """
    if arguments.device.type == "cpu":
        keep_freed_memory()
    end = time.perf_counter() + seconds
    measured: list[Measured] = []
    progress = tqdm(desc="Measuring this machine", unit=" shapes", leave=False)
    measure_steps(LADDER[0], 1, rows, objective, vocab_size, arguments, 0.5)  # the first one is slow: libraries begin
    for shape in shapes:
        left = end - time.perf_counter()
        flops = shape.flops_per_token(objective, vocab_size, row_length) * row_length
        if len(measured) > 1:
            before = measured[-1]
            ratio = flops / (before.shape.flops_per_token(objective, vocab_size, row_length) * row_length)
            expected = ratio * (before.fixed_seconds + sum(ROWS) * before.row_seconds) * WARM_UP_STEPS * 2
            if expected > left:
                break
        share = min(left / 4, seconds / 20)
        few, many = (measure_steps(shape, count, rows, objective, vocab_size, arguments, share) for count in ROWS)
        per_row = [(many[i] - few[i]) / (ROWS[1] - ROWS[0]) for i in range(2)]
        # Noise may leave less than nothing for either part.
        per_row = [max(per_row[i], 0.5 * many[i] / ROWS[1]) for i in range(2)]
        fixed = [max(few[i] - ROWS[0] * per_row[i], 0.05 * few[i]) for i in range(2)]
        measured.append(Measured(shape, fixed[0], per_row[0], fixed[1], per_row[1]))
        progress.update()
    progress.close()
    return measured


def larger_takes_longer(measured: Sequence[Measured]) -> tuple[Measured, ...]:
    """
    `measured`, by size, without what only noise says: where a shape takes less time than a smaller one, isotonic
    regression gives both their geometric mean.
    """
    times = {
        name: np.exp(isotonic_regression(np.log([getattr(point, name) for point in measured])).x).tolist()
        for name in ("fixed_seconds", "row_seconds")
    }
    return tuple(
        dataclasses.replace(point, fixed_seconds=fixed, row_seconds=row)
        for point, fixed, row in zip(measured, times["fixed_seconds"], times["row_seconds"], strict=True)
    )


class LatencyLimit:
    """
    Whether a shape answers soon enough: forward on one text, in float32 by torch on one thread, measured here.

    Args:
        seconds: that it may take, in the median.
        objective, vocab_size: of the models.
        length: tokens of the text.
    """

    def __init__(self, seconds: float, objective: str, vocab_size: int, length: int = 32):
        if not seconds > 0:
            raise ValueError(f"the limit is {seconds} s, expected a number above 0")
        self.seconds = seconds
        self.objective = objective
        self.vocab_size = vocab_size
        self.length = length
        self._too_slow = math.inf  # FLOPs of the smallest shape that was

    def __call__(self, shape: Shape) -> bool:
        """A shape with more FLOPs than one that was too slow is not measured."""
        flops = shape.flops_per_token(self.objective, self.vocab_size, self.length)
        if flops < self._too_slow and self.measure(shape) > self.seconds:
            self._too_slow = flops
        return flops < self._too_slow

    def measure(self, shape: Shape, repeats: int = 15) -> float:
        """Seconds, the median."""
        config = shape.config(self.objective, self.vocab_size)
        model = (ChinchillaModel(config) if self.objective == "masked" else ChinchillaForCausalLM(config)).eval()
        ids = torch.randint(5, self.vocab_size, (1, self.length))
        threads = torch.get_num_threads()
        times = []
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                for _ in range(repeats):
                    began = time.perf_counter()
                    model(ids)
                    times.append(time.perf_counter() - began)
        finally:
            torch.set_num_threads(threads)
        return float(np.median(times[2:]))


class _Until(TrainerCallback):
    """Ends a run after so many seconds, and keeps how long its steps took, but the first ones."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.perf_counter):
        self.timer = StepTimer(now)
        self.limit = seconds
        self.steps: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.timer.on_train_begin(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.device.type != "cpu":
            torch.accelerator.synchronize(args.device)
        before = self.timer.seconds
        self.timer.on_step_end(args, state, control)
        if self.timer.steps > WARM_UP_STEPS:
            self.steps.append(self.timer.seconds - before)
        if self.steps and self.timer.seconds >= self.limit:
            control.should_training_stop = True


def measure_steps(
    shape: Shape,
    count: int,
    rows: PackedRows,
    objective: str,
    vocab_size: int,
    arguments: PretrainingArguments,
    seconds: float,
) -> tuple[float, float]:
    """The seconds of a step of `count` rows, the median, and the bytes that training takes."""
    arguments = dataclasses.replace(arguments, per_device_train_batch_size=count, max_steps=1_000_000)
    watch = MemoryWatch(arguments.device)
    config = shape.config(objective, vocab_size, hidden_dropout=0.0)  # as training/pretrain.py
    model: PreTrainedModel = (ChinchillaForMaskedLM if objective == "masked" else ChinchillaForCausalLM)(config)
    model.set_attn_implementation(choose_attention(arguments, rows.packing.row_length))
    until = _Until(seconds)
    trainer = PretrainingTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=collate_rows, callbacks=[until]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    del model, trainer
    return float(np.median(until.steps)), watch.bytes()


class MemoryWatch:
    """
    The most memory that was taken since it was made: on an accelerator by torch's count, elsewhere by Linux's, and
    where there is neither, 0.
    """

    def __init__(self, device: torch.device):
        gc.collect()
        self._counter = _memory_counter(device)
        if self._counter is not None:
            self._counter.reset_peak_memory_stats()
            self._begin = self._counter.memory_allocated()
        else:
            _give_back_memory()
            self._begin = _resident("VmRSS") if _forget_peak() else -1

    def bytes(self) -> float:
        """So far."""
        if self._counter is not None:
            return float(self._counter.max_memory_allocated() - self._begin)
        return 0.0 if self._begin < 0 else float(max(0, _resident("VmHWM") - self._begin))


def _memory_counter(device: torch.device) -> Any:
    """torch's module for `device` where that counts memory, as of CUDA."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    return module if hasattr(module, "max_memory_allocated") and hasattr(module, "mem_get_info") else None


def _give_back_memory() -> None:
    """Freed memory that glibc keeps would count as taken."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another libc
        return


def _forget_peak() -> bool:
    """Let Linux's VmHWM begin anew (proc_pid_clear_refs(5)); whether it does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(name: str) -> int:
    """A line of Linux's account of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0

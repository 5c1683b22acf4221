"""Thin layers over `transformers.Trainer`."""

import contextlib
import importlib.util
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedDataParallelKwargs
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from .callbacks import BudgetClock, SkippedSteps, StepTimer, StreamState
from .data.streaming import StreamedRows
from .optim import MuonWithAdamW, decaying_schedule, parameter_groups
from .output_folder import clear_save_errors
from .sharding import (
    check_fsdp,
    deepspeed_is_requested,
    fsdp_is_requested,
    gathered,
    in_its_own_class,
    prepare_sharding,
    scattered,
)

logger = logging.getLogger(__name__)


def bf16_is_fast() -> bool:
    """Whether this machine multiplies bfloat16 matrices in hardware: then mixed precision pays."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.mps.is_available():
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def choose_attention(arguments: TrainingArguments, mean_length: float) -> str:
    """
    The attention to train with, for texts of `mean_length` tokens: `"eager"` on a CPU in bfloat16, where the backward
    pass of torch's fused kernel is the slower one up to about 200 tokens (`tests/benchmarks/encoder_speed.py`), else
    `"sdpa"`. Outputs are the same up to rounding.
    """
    return "eager" if arguments.device.type == "cpu" and arguments.bf16 and mean_length < 200 else "sdpa"


@dataclass
class ScriptArguments(TrainingArguments):
    """`TrainingArguments` with what all training scripts add, and what they choose by the machine."""

    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches in a step of the optimizer."})
    bf16: bool | None = field(
        default=None,
        metadata={"help": "bfloat16 mixed precision. Default: where the CPU or GPU multiplies it in hardware."},
    )
    report_to: str = field(default="auto", metadata={"help": "Where to log to; auto: TensorBoard if it is installed."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Search for parameters without a gradient; our models have none."}
    )
    ddp_broadcast_buffers: bool | None = field(
        default=False, metadata={"help": "Send buffers from the main process in every step; ours never change."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Delete the run that output_dir holds, and start anew."})
    keep_checkpoints: bool = field(
        default=False, metadata={"help": "Keep Trainer's checkpoint folders when the run is finished."}
    )

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True  # TrainingArguments refuses bf16 on a CPU that it was not told to use
        if self.bf16 is None:
            self.bf16 = not self.fp16 and bf16_is_fast()
        if self.report_to == "auto":
            self.report_to = "tensorboard" if importlib.util.find_spec("tensorboard") else "none"
        if self.use_cpu and deepspeed_is_requested(self):
            raise ValueError(
                "DeepSpeed is asked for, but Trainer takes it on accelerators only, and would train without it on a "
                "CPU: leave it out, or use FSDP"
            )
        super().__post_init__()
        check_fsdp(self)


@dataclass
class FineTuningArguments(ScriptArguments):
    """`TrainingArguments` with the defaults of fine-tuning, and what the training scripts add."""

    _argument_group_name = "Training"

    output_dir: str | None = field(
        default="runs/latest", metadata={"help": "Folder of the run: checkpoints, then the model, its card, run.json."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of new weights, the order of the data, and dropout."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Highest learning rate of AdamW."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Texts in a step, on each device."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Texts in a step of an evaluation."})
    max_steps: int = field(default=-1, metadata={"help": "Stop after so many steps; -1: go by num_train_epochs."})
    num_train_epochs: float = field(default=5.0, metadata={"help": "How often every training text is seen."})
    warmup_steps: float = field(default=0.06, metadata={"help": "Steps of warm-up; below 1: share of all steps."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay, on matrices only."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "Texts of like length share a batch, so that little is padding; or random order.",
            "choices": ["random", "sequential", "group_by_length", "batch_rebalance"],
        },
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    save_total_limit: int | None = field(
        default=1, metadata={"help": "Checkpoints to keep while running; the best one always stays as well."}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint."})
    logging_steps: float = field(default=50, metadata={"help": "Log every so many steps; below 1: share of all."})
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the finished folder, code files included."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Name on the Hub, such as me/model. Default: the name of output_dir."}
    )
    hub_private_repo: bool | None = field(default=None, metadata={"help": "Make the repository a private one."})
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "What makes a checkpoint the best. Default: macro_f1; for regression r2."}
    )
    early_stopping_patience: int = field(
        default=3, metadata={"help": "Stop after so many evaluations without a better one; 0: never."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if fsdp_is_requested(self):
            raise ValueError(
                "FSDP is asked for, but fine-tuning does not shard models: leave it out, and every process holds all "
                "of the model"
            )


@dataclass
class PretrainingArguments(ScriptArguments):
    """`TrainingArguments` with the defaults of pretraining on packed rows, and what the training script adds."""

    _argument_group_name = "Training"

    output_dir: str | None = field(
        default="runs/pretraining",
        metadata={"help": "Folder of the run: checkpoints, then the model, run.json, loss.png."},
    )
    seed: int = field(default=42, metadata={"help": "Seed of the weights, the packing, the order and the masks."})
    max_minutes: float | None = field(
        default=None, metadata={"help": "Budget in minutes of training, over all continuations, instead of steps."}
    )
    max_steps: int = field(default=-1, metadata={"help": "Steps of the optimizer; -1: go by num_train_epochs."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "How often every row is seen."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Rows in a batch, on each device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows in a batch of an evaluation."})
    optimizer: str = field(
        default="muon",
        metadata={
            "help": "Muon for the matrices of the blocks and AdamW for the rest, or AdamW for all.",
            "choices": ["muon", "adamw"],
        },
    )
    learning_rate: float = field(default=2e-3, metadata={"help": "Highest learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay, on matrices only."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Decay of AdamW's second moment."})
    warmup_share: float = field(default=0.05, metadata={"help": "Share of the run for the warm-up."})
    decay: str = field(
        default="linear",
        metadata={"help": "How the learning rate falls to 0 at the end.", "choices": ["linear", "cosine", "sqrt"]},
    )
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: no, steps or epoch."})
    eval_steps: float | None = field(default=500, metadata={"help": "Evaluate every so many steps."})
    save_strategy: str = field(default="steps", metadata={"help": "When to save: no, steps or epoch."})
    save_steps: float = field(default=500, metadata={"help": "Save every so many steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep while running."})
    logging_steps: float = field(default=20, metadata={"help": "Log every so many steps; below 1: share of all."})
    max_skipped_steps: int = field(
        default=10, metadata={"help": "Stop after so many steps in a row whose loss or gradient is not finite."}
    )

    def __post_init__(self) -> None:
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes is {self.max_minutes}, but must be above 0: leave it out to go by steps")
        if self.max_steps == 0 or self.max_steps < -1 or not self.num_train_epochs > 0:
            raise ValueError(
                f"max_steps is {self.max_steps} and num_train_epochs {self.num_train_epochs}, which is no training: "
                "give one of them above 0"
            )
        if self.max_minutes is not None and self.dataloader_num_workers:
            raise ValueError(
                f"dataloader_num_workers is {self.dataloader_num_workers}, but with max_minutes the masking rate "
                "follows the clock, which workers do not see: leave it at 0 (packed rows are made in little time)"
            )
        if self.optimizer == "muon" and deepspeed_is_requested(self):
            raise ValueError(
                "optimizer is 'muon', but DeepSpeed joins the matrices that it would orthogonalise in one vector: add "
                "--optimizer adamw, or use FSDP, under which Muon works"
            )
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share is {self.warmup_share}, but must be a share from 0 up to 1")
        # The rows come in an order of their own, by their number, so that a run can be continued anywhere.
        self.train_sampling_strategy = "sequential"
        self.remove_unused_columns = False
        # A step that is not finite is skipped, and not hidden.
        self.logging_nan_inf_filter = False
        super().__post_init__()


class PretrainingTrainer(Trainer):
    """
    Trainer with our optimizer and schedule, that skips steps that are not finite, and logs what the machine achieves.

    `train_dataset` is [`PackedRows`] or, straight from a stream, [`StreamedRows`], whose state is in every checkpoint.

    Args:
        clock: ends the run by time; without it, the run ends by steps.
        flops_per_step: of all devices together, see `scaling.flops.pretraining_step`.
        tokens_per_step: all positions of a step; the logs give them a second.
        padding: share of the positions that is padding.
        peak_flops: what the devices multiply at best, in FLOP/s; the logs give the share of it.
        kwargs: as for `Trainer`; `args` are [`PretrainingArguments`].
    """

    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None

    def __init__(
        self,
        *,
        clock: BudgetClock | None = None,
        flops_per_step: float = 0.0,
        tokens_per_step: int = 0,
        padding: float = 0.0,
        peak_flops: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.clock = clock
        self.flops_per_step = flops_per_step
        self.tokens_per_step = tokens_per_step
        self.padding = padding
        self.peak_flops = peak_flops
        self.timer = StepTimer()
        self.skipped = SkippedSteps()
        self._logged = (0, 0.0)  # steps and seconds of the timer at the last log
        self.stream = StreamState(self.train_dataset) if isinstance(self.train_dataset, StreamedRows) else None
        if self.stream is not None:
            self.args.ignore_data_skip = True  # the rows themselves go on where they were
        for callback in (self.timer, clock, self.skipped, self.stream):
            if callback is not None:
                self.add_callback(callback)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        arguments = super()._build_accelerator_args(**kwargs)
        for handler in arguments["kwargs_handlers"]:
            if isinstance(handler, DistributedDataParallelKwargs):
                handler.gradient_as_bucket_view = True  # no second copy of the gradients
        return arguments

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = prepare_sharding(self.accelerator, self.args, self.model)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> contextlib.AbstractContextManager:
        """Accelerate puts models under autocast, but not those that are sharded."""
        if self.is_fsdp_enabled:
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(cache_enabled)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with in_its_own_class(self.model):
            super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Under FSDP, too, the files of a single process: a run goes on with or without FSDP, on any number of them."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = gathered(self.create_optimizer().state_dict())  # all processes have a part in it
        if self.args.should_save:
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))  # type: ignore[union-attr]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and not self.is_deepspeed_enabled and not Path(checkpoint, OPTIMIZER_NAME).exists():
            raise FileNotFoundError(
                f"{checkpoint} has no {OPTIMIZER_NAME}, as when it was saved under DeepSpeed: go on under DeepSpeed, "
                "with the same number of processes, or start from its weights with --model"
            )
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True)
        optimizer = self.create_optimizer()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        optimizer.load_state_dict(scattered(state, parameters))
        schedule = torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True)
        self.lr_scheduler.load_state_dict(schedule)  # type: ignore[union-attr]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        weights: dict[str, Any] = dict(load_file(Path(resume_from_checkpoint, SAFE_WEIGHTS_NAME)))
        # Not strict: of tied weights, the file has one name.
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.model if model is None else model, weights, options=options)

    @property
    def skipped_steps(self) -> int:
        """Steps that were skipped so far, before an interruption, too."""
        return self.skipped.total

    def get_train_dataloader(self) -> DataLoader:
        if self.stream is None:
            return super().get_train_dataloader()
        # Not prepared by Accelerate, which would deal out to the processes what each of them reads for itself.
        args = self.args
        return DataLoader(
            self.stream.rows,
            self._train_batch_size,
            collate_fn=self.stream.rows.collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type != "cpu",
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            generator=torch.Generator(),  # or making it would draw from the generator of dropout, at every resume
        )

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if self.stream is not None:
            self.stream.gather()
        with clear_save_errors(f"the checkpoint of step {self.state.global_step} in {self.args.output_dir}"):
            super()._save_checkpoint(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            args = self.args
            groups = parameter_groups(
                self.model if model is None else model, args.weight_decay, args.optimizer == "muon"
            )
            betas = (args.adam_beta1, args.adam_beta2)
            # As precise as the run. In one of float32, bfloat16 would part the curves of one and of several processes,
            # and it is slow on CPUs that do not multiply it in hardware.
            muon_dtype = torch.bfloat16 if args.bf16 else torch.float32
            self.optimizer = MuonWithAdamW(
                groups,
                lr=args.learning_rate,
                betas=betas,
                eps=args.adam_epsilon,
                muon_dtype=muon_dtype,
                replicated=args.world_size > 1 and not self.is_fsdp_enabled and not self.is_deepspeed_enabled,
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            args = self.args
            progress = None if self.clock is None else self.clock.progress
            self.lr_scheduler = decaying_schedule(
                optimizer or self.create_optimizer(), num_training_steps, args.warmup_share, args.decay, progress
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.clock is not None:
            self.train_dataset.progress = self.clock.progress()
        if self.stream is not None:
            self.stream.rows.consumed(inputs)
            self.padding = self.stream.rows.padding
        return super().training_step(model, inputs, *args, **kwargs)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Besides, leave no gradient where one is not finite: the optimizer then does nothing."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()  # that of all shards, as a plain number for the log
        if math.isfinite(float(grad_norm)):
            self.skipped.in_a_row = 0
            return grad_norm
        model.zero_grad()
        self.skipped.total += 1
        self.skipped.in_a_row += 1
        first = self.state.global_step * self.args.train_batch_size * self.args.gradient_accumulation_steps
        first *= self.args.world_size
        logger.warning("step %d skipped: its loss or gradient is not finite", self.state.global_step)
        if self.skipped.in_a_row >= self.args.max_skipped_steps:
            raise FloatingPointError(
                f"{self.skipped.in_a_row} steps in a row had a loss or gradient that is not finite, the last one step "
                f"{self.state.global_step} (its rows begin with item {first} of the data set): lower the learning "
                "rate, or go on from an earlier checkpoint"
            )
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        steps, seconds = self.timer.steps - self._logged[0], self.timer.seconds - self._logged[1]
        if "loss" in logs and steps and seconds:
            self._logged = (self.timer.steps, self.timer.seconds)
            logs["tokens_per_second"] = round(steps * self.tokens_per_step / seconds)
            logs["real_tokens_per_second"] = round(steps * self.tokens_per_step * (1 - self.padding) / seconds)
            logs["flops_per_second"] = steps * self.flops_per_step / seconds
            if self.peak_flops:
                logs["share_of_peak"] = round(logs["flops_per_second"] / self.peak_flops, 4)
            if self.skipped_steps:
                logs["skipped_steps"] = self.skipped_steps
        super().log(logs, start_time)


# Options that may differ between a run and its continuation: they change what is shown or kept, not the result.
RESULT_NEUTRAL_PREFIXES = ("ddp_", "fsdp", "hub_", "log_", "logging_")
RESULT_NEUTRAL_OPTIONS = frozenset(
    {
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "disable_tqdm",
        "keep_checkpoints",
        "output_dir",
        "overwrite",
        "per_device_eval_batch_size",
        "project",
        "push_to_hub",
        "report_to",
        "run_name",
        "save_total_limit",
    }
)


def result_neutral_options(names: list[str]) -> set[str]:
    """Those of `names` that do not change the result of a training run."""
    return {name for name in names if name in RESULT_NEUTRAL_OPTIONS or name.startswith(RESULT_NEUTRAL_PREFIXES)}

"""Options of the training scripts: `TrainingArguments` with our defaults, and what the machine decides."""

import importlib.util
import time
from dataclasses import dataclass, field

import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from .callbacks import BudgetClock, processor_seconds
from .sharding import check_fsdp, deepspeed_is_requested, fsdp_is_requested


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
    license: str | None = field(default=None, metadata={"help": "Licence for the model card, such as apache-2.0."})
    language: str | None = field(default=None, metadata={"help": "Language code for the model card, such as en."})
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
class TimedArguments(ScriptArguments):
    """Options of training from scratch: budgets in time, Muon, schedules that end with the run."""

    max_minutes: float | None = field(
        default=None, metadata={"help": "Budget in minutes of training, over all continuations, instead of steps."}
    )
    time_budget: str = field(
        default="wall",
        metadata={
            "help": "What the minutes are of: the clock on the wall, or the work of the CPU a thread, by which runs "
            "compare on a machine that does other things, too.",
            "choices": ["wall", "cpu"],
        },
    )
    max_steps: int = field(default=-1, metadata={"help": "Steps of the optimizer; -1: go by num_train_epochs."})
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
        metadata={
            "help": "How the learning rate falls to 0 at the end; inverse_sqrt ends above 0.",
            "choices": ["linear", "cosine", "sqrt", "inverse_sqrt"],
        },
    )
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: no, steps or epoch."})
    eval_steps: float | None = field(default=500, metadata={"help": "Evaluate every so many steps."})
    save_strategy: str = field(default="steps", metadata={"help": "When to save: no, steps or epoch."})
    save_steps: float = field(default=500, metadata={"help": "Save every so many steps."})
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
        if self.optimizer == "muon" and deepspeed_is_requested(self):
            raise ValueError(
                "optimizer is 'muon', but DeepSpeed joins the matrices that it would orthogonalise in one vector: add "
                "--optimizer adamw, or use FSDP, under which Muon works"
            )
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share is {self.warmup_share}, but must be a share from 0 up to 1")
        if self.decay == "inverse_sqrt" and not self.warmup_share > 0:
            raise ValueError("decay is 'inverse_sqrt', which falls from the end of the warm-up: raise warmup_share")
        if self.time_budget == "cpu" and torch.accelerator.is_available() and not self.use_cpu:
            raise ValueError("time_budget is 'cpu', but the training is on an accelerator: leave it at 'wall'")
        # The items come in an order of their own, by their number, so that a run can be continued anywhere.
        self.train_sampling_strategy = "sequential"
        self.remove_unused_columns = False
        # A step that is not finite is skipped, and not hidden.
        self.logging_nan_inf_filter = False
        super().__post_init__()

    def clock(self) -> BudgetClock | None:
        """The clock that ends the run; `None` where steps do."""
        if self.max_minutes is None:
            return None
        return BudgetClock(self.max_minutes, processor_seconds if self.time_budget == "cpu" else time.monotonic)


@dataclass
class PretrainingArguments(TimedArguments):
    """`TrainingArguments` with the defaults of pretraining on packed rows, and what the training script adds."""

    _argument_group_name = "Training"

    output_dir: str | None = field(
        default="runs/pretraining",
        metadata={"help": "Folder of the run: checkpoints, then the model, run.json, loss.png."},
    )
    seed: int = field(default=42, metadata={"help": "Seed of the weights, the packing, the order and the masks."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "How often every row is seen."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Rows in a batch, on each device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Rows in a batch of an evaluation."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep while running."})

    def __post_init__(self) -> None:
        if self.max_minutes is not None and self.dataloader_num_workers:
            raise ValueError(
                f"dataloader_num_workers is {self.dataloader_num_workers}, but with max_minutes the masking rate "
                "follows the clock, which workers do not see: leave it at 0 (packed rows are made in little time)"
            )
        super().__post_init__()


@dataclass
class TranslationArguments(TimedArguments, Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with the defaults of translation from scratch, and what the training script adds."""

    _argument_group_name = "Training"

    output_dir: str | None = field(
        default="runs/translation",
        metadata={"help": "Folder of the run: checkpoints, then the model, its card, run.json, curves."},
    )
    seed: int = field(default=42, metadata={"help": "Seed of the weights, the batches and their order, and dropout."})
    num_train_epochs: float = field(default=30.0, metadata={"help": "How often every pair is seen."})
    max_tokens: int = field(
        default=4096, metadata={"help": "Positions of a batch, sources and targets with their padding, on each device."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Pairs in a batch of an evaluation."})
    predict_with_generate: bool = field(
        default=True, metadata={"help": "Translate the validation texts at every evaluation, for a curve of BLEU."}
    )
    save_total_limit: int | None = field(
        default=None, metadata={"help": "Checkpoints to keep while running. Default: those that are averaged."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the finished folder, code files included."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Name on the Hub, such as me/model. Default: the name of output_dir."}
    )
    average_checkpoints: int = field(
        default=5,
        metadata={
            "help": "Average the weights of so many last checkpoints at the end, if that is better on the validation "
            "texts; 1: do not."
        },
    )

    def __post_init__(self) -> None:
        if self.average_checkpoints < 1:
            raise ValueError(f"average_checkpoints is {self.average_checkpoints}, expected at least 1")
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor is {self.label_smoothing_factor}, which Trainer gets wrong under gradient "
                "accumulation: give label_smoothing, which is the model's own"
            )
        if self.save_total_limit is None:
            self.save_total_limit = max(self.average_checkpoints, 2)
        if self.save_total_limit < self.average_checkpoints:
            raise ValueError(
                f"save_total_limit is {self.save_total_limit}, but average_checkpoints is {self.average_checkpoints}: "
                "keep as many as are averaged, or average fewer"
            )
        self.per_device_train_batch_size = 1  # an item is a whole batch
        super().__post_init__()


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
        "language",
        "license",
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

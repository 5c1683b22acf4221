"""Thin layers over `transformers.Trainer`."""

import importlib.util
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments


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
class FineTuningArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of fine-tuning, and what the training scripts add."""

    _argument_group_name = "Training"

    output_dir: str | None = field(
        default="runs/latest", metadata={"help": "Folder of the run: checkpoints, then the model, its card, run.json."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of new weights, the order of the data, and dropout."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Highest learning rate of AdamW."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Texts in a step, on each device."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Texts in a step of an evaluation."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches in a step of the optimizer."})
    max_steps: int = field(default=-1, metadata={"help": "Stop after so many steps; -1: go by num_train_epochs."})
    num_train_epochs: float = field(default=5.0, metadata={"help": "How often every training text is seen."})
    warmup_steps: float = field(default=0.06, metadata={"help": "Steps of warm-up; below 1: share of all steps."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay, on matrices only."})
    bf16: bool | None = field(
        default=None,
        metadata={"help": "bfloat16 mixed precision. Default: where the CPU or GPU multiplies it in hardware."},
    )
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
    report_to: str = field(default="auto", metadata={"help": "Where to log to; auto: TensorBoard if it is installed."})
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
        super().__post_init__()


# Options that may differ between a run and its continuation: they change what is shown or kept, not the result.
RESULT_NEUTRAL_PREFIXES = ("hub_", "log_", "logging_")
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

"""Thin layers over `transformers.Trainer`."""

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedDataParallelKwargs
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import PreTrainedTokenizerBase, Seq2SeqTrainer, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import ProgressCallback
from transformers.utils import SAFE_WEIGHTS_NAME

from .callbacks import BudgetClock, BudgetProgress, SkippedSteps, StepTimer, StreamState
from .data.streaming import StreamedRows
from .optim import MuonWithAdamW, decaying_schedule, parameter_groups
from .output_folder import clear_save_errors
from .sharding import gathered, in_its_own_class, prepare_sharding, scattered
from .transfer import layer_groups, merge_lora

logger = logging.getLogger(__name__)


class _TimedTraining:
    """
    What [`PretrainingTrainer`] and [`TranslationTrainer`] have of their own beside `Trainer`: our optimizer and
    schedule, budgets in time, steps that are skipped because they are not finite, and speeds in the logs.
    """

    # Of Trainer.
    args: Any
    model: Any
    state: Any
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool

    def _prepare_timing(self, clock: BudgetClock | None) -> None:
        self.clock = clock
        self.timer = StepTimer()
        self.skipped = SkippedSteps()
        self._logged = (0, 0.0)  # steps and seconds of the timer at the last log
        for callback in (self.timer, clock, self.skipped):
            if callback is not None:
                self.add_callback(callback)  # type: ignore[attr-defined]
        if clock is not None and self.pop_callback(ProgressCallback):  # type: ignore[attr-defined]
            self.add_callback(BudgetProgress(clock))  # type: ignore[attr-defined]

    @property
    def skipped_steps(self) -> int:
        """Steps that were skipped so far, before an interruption, too."""
        return self.skipped.total

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

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Besides, leave no gradient where one is not finite: the optimizer then does nothing."""
        grad_norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
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

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with clear_save_errors(f"the checkpoint of step {self.state.global_step} in {self.args.output_dir}"):
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

    def speeds(self, steps: int, seconds: float) -> dict[str, float]:
        """What to log of `steps` that took `seconds`."""
        raise NotImplementedError

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        steps, seconds = self.timer.steps - self._logged[0], self.timer.seconds - self._logged[1]
        if "loss" in logs and steps and seconds:
            self._logged = (self.timer.steps, self.timer.seconds)
            logs |= self.speeds(steps, seconds)
            if self.skipped_steps:
                logs["skipped_steps"] = self.skipped_steps
        super().log(logs, start_time)  # type: ignore[misc]


class PretrainingTrainer(_TimedTraining, Trainer):
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
        self._prepare_timing(clock)
        self.flops_per_step = flops_per_step
        self.tokens_per_step = tokens_per_step
        self.padding = padding
        self.peak_flops = peak_flops
        self.stream = StreamState(self.train_dataset) if isinstance(self.train_dataset, StreamedRows) else None
        if self.stream is not None:
            self.args.ignore_data_skip = True  # the rows themselves go on where they were
            self.add_callback(self.stream)

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
        super()._save_checkpoint(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.clock is not None:
            self.train_dataset.progress = self.clock.progress()
        if self.stream is not None:
            self.stream.rows.consumed(inputs)
            self.padding = self.stream.rows.padding
        return super().training_step(model, inputs, *args, **kwargs)

    def speeds(self, steps: int, seconds: float) -> dict[str, float]:
        tokens, flops = steps * self.tokens_per_step / seconds, steps * self.flops_per_step / seconds
        logs = {
            "tokens_per_second": round(tokens),
            "real_tokens_per_second": round(tokens * (1 - self.padding)),
            "flops_per_second": flops,
        }
        return logs | ({"share_of_peak": round(flops / self.peak_flops, 4)} if self.peak_flops else {})


class TranslationTrainer(_TimedTraining, Seq2SeqTrainer):
    """
    Seq2SeqTrainer with our optimizer and schedule, that skips steps that are not finite, and logs real tokens a second.

    `train_dataset` is [`TokenBatches`].

    Args:
        clock: ends the run by time; without it, the run ends by steps.
        kwargs: as for `Seq2SeqTrainer`; `args` are [`TranslationArguments`].
    """

    def __init__(self, *, clock: BudgetClock | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self._prepare_timing(clock)
        self.tokens_seen = 0  # sources and targets of this process, without padding, since the run began or went on
        self._tokens_logged = 0

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self.tokens_seen += int(inputs["attention_mask"].sum()) + int(inputs["labels"].ne(-100).sum())
        return super().training_step(model, inputs, *args, **kwargs)

    def speeds(self, steps: int, seconds: float) -> dict[str, float]:
        tokens, self._tokens_logged = self.tokens_seen - self._tokens_logged, self.tokens_seen
        return {"real_tokens_per_second": round(self.args.world_size * tokens / seconds)}


def hide_tokens(input_ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase, share: float) -> torch.Tensor:
    """
    `input_ids` with about `share` of the tokens behind the mask token, special ones excepted, by torch's generator.

    It is the word dropout of Iyyer et al. 2015, "Deep Unordered Composition Rivals Syntactic Methods for Text
    Classification", with a mask in the place of the word.
    """
    special = torch.tensor(tokenizer.all_special_ids, device=input_ids.device)
    hidden = (torch.rand(input_ids.shape, device=input_ids.device) < share) & ~torch.isin(input_ids, special)
    return input_ids.masked_fill(hidden, tokenizer.mask_token_id)


class FineTuningTrainer(Trainer):
    """
    Trainer for models of `chinchilla_hf.transfer`: rates that fall from layer to layer, tokens that are hidden, word
    embeddings that are changed against the model, and LoRA merged at the end.

    Args:
        args, kwargs: of Trainer.
        layer_decay: the learning rate of a layer is so many times that of the next one.
        token_dropout: share of the tokens that every step hides behind the mask token, special ones excepted;
            `processing_class` is then the tokenizer.
        adversarial_epsilon: every step moves the table of word embeddings in the direction that raises the loss most,
            learns there, and moves it back: the adversarial training of Miyato et al. 2017, "Adversarial Training
            Methods for Semi-Supervised Text Classification". The Euclidean norm of the whole change is so many times
            that of a token's vector (the root of the mean square over the table). The direction is taken from every
            second text of the batch, which is half a pass more. The training's losses in the logs are those of the
            moved table.

    Raises:
        ValueError: `token_dropout` without a tokenizer that has a mask token, or `adversarial_epsilon` where the table
            is frozen or in shards.
    """

    def __init__(
        self,
        *args: Any,
        layer_decay: float = 1.0,
        token_dropout: float = 0.0,
        adversarial_epsilon: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.layer_decay = layer_decay
        self.token_dropout = token_dropout
        self.adversarial_epsilon = adversarial_epsilon
        super().__init__(*args, **kwargs)
        if token_dropout and getattr(self.processing_class, "mask_token_id", None) is None:
            raise ValueError(
                f"token_dropout is {token_dropout}, but processing_class is {type(self.processing_class).__name__}: "
                "give a tokenizer that has a mask token"
            )
        if adversarial_epsilon:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError(
                    f"adversarial_epsilon is {adversarial_epsilon}, but FSDP and DeepSpeed hold the table of tokens in "
                    "shards: leave it out, or train without them"
                )
            if not self.model.get_input_embeddings().weight.requires_grad:
                raise ValueError(
                    f"adversarial_epsilon is {adversarial_epsilon}, but the table of tokens is frozen: leave one of "
                    "the two out"
                )

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.token_dropout:
            ids = hide_tokens(inputs["input_ids"], self.processing_class, self.token_dropout)
            inputs = {**inputs, "input_ids": ids}
        moved = self._moved_table(model, inputs) if self.adversarial_epsilon else contextlib.nullcontext()
        with moved:
            return super().training_step(model, inputs, *args, **kwargs)

    @contextlib.contextmanager
    def _moved_table(self, model: nn.Module, inputs: dict[str, Any]) -> Iterator[None]:
        """While it lasts, the word embeddings are where the loss of `inputs` is higher."""
        table = self.model.get_input_embeddings().weight
        model.train()
        half = {
            name: x[::2].contiguous() if torch.is_tensor(x) else x for name, x in self._prepare_inputs(inputs).items()
        }
        with self.compute_loss_context_manager():
            # Not the wrapped model: with DistributedDataParallel, every process has its own direction.
            loss = self.compute_loss(self.model, half)
        (gradient,) = torch.autograd.grad(loss, table)
        kept = table.detach().clone()
        length = self.adversarial_epsilon * kept.norm().item() / math.sqrt(len(kept))
        norm = gradient.norm().item()
        if math.isfinite(norm) and norm > 0:
            table.data.add_(gradient, alpha=length / norm)
        try:
            yield
        finally:
            table.data.copy_(kept)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.layer_decay < 1:
            args = self.args
            model = self.model if model is None else model
            groups = layer_groups(
                model, self.get_decay_parameter_names(model), args.learning_rate, self.layer_decay, args.weight_decay
            )
            optimizer, options = self.get_optimizer_cls_and_kwargs(args, model)
            self.optimizer_cls_and_kwargs = (optimizer, {**options, "params": groups})
        return super().create_optimizer(model)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; what is evaluated afterwards has the updates of LoRA merged, as what is saved."""
        result = super().train(*args, **kwargs)
        merge_lora(self.model)
        return result


class QuestionAnsweringTrainer(FineTuningTrainer):
    """
    A `FineTuningTrainer` whose predictions come in the order of the windows, which say what part of which context they
    are of.

    With batches grouped by length, Trainer would evaluate in another order. Give windows that are sorted by length.
    """

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        return SequentialSampler(eval_dataset)  # type: ignore[arg-type]

"""
Fine-tuning of a part: a head on the body of any checkpoint, frozen layers, rates that fall from layer to layer, LoRA.

    model, origin = load_for_task("runs/pretraining", ChinchillaForTokenClassification, num_labels=9)
    print(origin)  # from runs/pretraining: the body; fresh: classifier (2,313 parameters)
    options = TransferArguments(freeze_layers=2, lora_rank=8)
    check_transfer(model, options)
    model = prepare_transfer(model, options)
    FineTuningTrainer(model, ..., layer_decay=options.layer_decay).train()  # of chinchilla_hf.trainer
    model = plain_model(model)  # as it was before, with what LoRA has learned
"""

import functools
import importlib.util
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from .conversion import load_or_convert
from .modeling_chinchilla import ChinchillaPreTrainedModel


@dataclass
class TransferArguments:
    """How much of a checkpoint is trained, and how fast: options that the fine-tuning scripts share."""

    _argument_group_name = "Transfer"

    freeze_embeddings: bool = field(
        default=False,
        metadata={"help": "Do not train the checkpoint's table of tokens: faster, and rare words keep their meaning."},
    )
    freeze_layers: int = field(
        default=0,
        metadata={"help": "Do not train so many of the first layers, nor any embeddings: faster, and less to forget."},
    )
    layer_decay: float = field(
        default=1.0,
        metadata={
            "help": "The learning rate of a layer is this many times that of the next one: the head has the highest, "
            "the embeddings the lowest. 1: the same everywhere."
        },
    )
    token_dropout: float = field(
        default=0.0,
        metadata={
            "help": "Share of the tokens that the training hides behind the mask token, others in every step, so that "
            "few texts are not learned by heart in a long training."
        },
    )
    adversarial_epsilon: float = field(
        default=0.0,
        metadata={
            "help": "Adversarial training (Miyato et al. 2017): every step moves the table of tokens in the direction "
            "that raises the loss most, by so many times the length of a token's vector, and learns there; a step "
            "takes about a third longer. Try 0.25. 0: do not."
        },
    )
    lora_rank: int = field(
        default=0,
        metadata={
            "help": "Train updates of this rank in place of the layers' matrices (LoRA), by the package peft, and "
            "merge them at the end; 0: do not."
        },
    )
    lora_alpha: float | None = field(
        default=None, metadata={"help": "The updates of LoRA count lora_alpha / lora_rank times. Default: twice."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the updates of LoRA."})
    lora_targets: list[str] | None = field(
        default=None,
        metadata={"help": "Linear layers with such updates, such as q_proj v_proj. Default: all of every layer."},
    )

    def __post_init__(self) -> None:
        if self.freeze_layers < 0:
            raise ValueError(f"freeze_layers is {self.freeze_layers}, but must be a number of layers, from 0 on")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}, but must be above 0 and at most 1, which is no decay")
        if not 0 <= self.token_dropout < 1:
            raise ValueError(f"token_dropout is {self.token_dropout}, but must be a share from 0 up to 1")
        if not 0 <= self.adversarial_epsilon < math.inf:
            raise ValueError(
                f"adversarial_epsilon is {self.adversarial_epsilon}, but must be a number of lengths, from 0, which is "
                "none, on"
            )
        for name in ("freeze_embeddings", "freeze_layers", "lora_rank"):
            if self.adversarial_epsilon and getattr(self, name):
                raise ValueError(
                    f"adversarial_epsilon is {self.adversarial_epsilon}, which moves the table of tokens, but {name} "
                    f"is {getattr(self, name)}, which freezes it: leave one of the two out"
                )
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank is {self.lora_rank}, but must be at least 1, or 0 for no LoRA")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}, but must be a share from 0 up to 1")
        if self.lora_alpha is not None and not self.lora_alpha > 0:
            raise ValueError(f"lora_alpha is {self.lora_alpha}, but must be above 0: leave it out for twice lora_rank")
        for name, value in (("alpha", self.lora_alpha), ("dropout", self.lora_dropout), ("targets", self.lora_targets)):
            if value and not self.lora_rank:
                raise ValueError(f"lora_{name} is {value}, but without lora_rank there is no LoRA: give lora_rank, too")
        if self.lora_rank and importlib.util.find_spec("peft") is None:
            raise ValueError(
                f"lora_rank is {self.lora_rank}, but LoRA needs the package peft, which is not installed: "
                "pip install 'chinchilla-hf[lora]'"
            )

    def chosen(self) -> list[str]:
        """Names of the options that are not at their default."""
        return [name for name, option in self.__dataclass_fields__.items() if getattr(self, name) != option.default]


# ---- Where the weights come from ----


def load_for_task(
    name_or_path: str, model_class: type[ChinchillaPreTrainedModel], *, name: str | None = None, **config_fields: Any
) -> tuple[ChinchillaPreTrainedModel, str]:
    """
    A `model_class` with the body of any Chinchilla or BERT checkpoint, in float32, and a line on what comes from where.

    The head is fresh, unless the checkpoint has one of the same task with the same labels.

    Args:
        name_or_path: a folder or a Hub name.
        model_class: what to build.
        name: of the checkpoint in the line; `name_or_path` if not given.
        config_fields: to set, such as `id2label` and `hidden_dropout`.

    Raises:
        ValueError: the checkpoint is of another family.
        OSError: there is no such checkpoint, or its weights are damaged.
    """
    with _without_load_report():  # the line says it
        model, info = load_or_convert(name_or_path, model_class, output_loading_info=True, **config_fields)
    # Weights in half precision would lose small updates; mixed precision keeps them in float32.
    model = model.float()
    fresh = Counter[str]()
    parameters = dict(model.named_parameters())
    for missing in info["missing_keys"]:
        if missing in parameters:
            fresh[_part(missing, model)] += parameters[missing].numel()
    heads = [part for part, _ in head_modules(model) if part not in fresh]
    line = f"from {name or name_or_path}: the body"
    line += f" and the head ({', '.join(heads)})" if heads else ""
    listed = ", ".join(f"{part} ({count:,} parameters)" for part, count in sorted(fresh.items()))
    return model, f"{line}; fresh: {listed or 'nothing'}"


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Leave out the table of missing and mismatched weights that Transformers logs, and nothing else."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _part(name: str, model: ChinchillaPreTrainedModel) -> str:
    """`classifier` for `classifier.weight`; `pooler` for `model.pooler.dense.weight`."""
    return name.removeprefix(f"{model.base_model_prefix}.").split(".")[0]


def head_modules(model: ChinchillaPreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The modules with parameters that `model` has beside its body, by name."""
    return [
        (name, module)
        for name, module in model.named_children()
        if module is not model.base_model and any(True for _ in module.parameters())
    ]


# ---- What is trained ----


def check_transfer(
    model: ChinchillaPreTrainedModel, options: TransferArguments, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """
    Fail now, before any long work, where `options` do not fit `model` or its `tokenizer`.

    Raises:
        ValueError: there are fewer layers than to be frozen, a LoRA target that no layer matches, or no mask token for
            `token_dropout`.
    """
    if options.token_dropout and tokenizer is not None and tokenizer.mask_token_id is None:
        raise ValueError(
            f"token_dropout is {options.token_dropout}, but the tokenizer has no mask token: leave it out, or start "
            "from a checkpoint that has one"
        )
    layers = len(model.base_model.layers)
    if options.freeze_layers > layers:
        raise ValueError(
            f"freeze_layers is {options.freeze_layers}, but the model has {layers} layers: lower it; {layers} leave "
            "the head to train"
        )
    if options.lora_rank:
        if options.freeze_layers == layers:
            raise ValueError(
                f"freeze_layers is {options.freeze_layers}, all there are, which leaves no layer for LoRA: lower it, "
                "or leave lora_rank out"
            )
        _lora_targets(model, options)


def prepare_transfer(model: ChinchillaPreTrainedModel, options: TransferArguments) -> Any:
    """
    Freeze what `options` say, and put LoRA in. Called before the model is given to a Trainer or to DDP.

    With LoRA, the head, and a pooler, are trained as a whole, and the rest is frozen but for the updates.

    Returns:
        `model` itself; with LoRA a `peft.PeftModel` around it.

    Raises:
        ValueError: see [`check_transfer`].
    """
    check_transfer(model, options)
    body: Any = model.base_model
    if options.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    if options.freeze_layers:
        body.embeddings.requires_grad_(False)
        body.layers[: options.freeze_layers].requires_grad_(False)
    if not options.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model

    whole = [name for name, _ in head_modules(model)]
    whole += ["pooler"] if body.pooler is not None and any(True for _ in body.pooler.parameters()) else []
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha or 2 * options.lora_rank,  # a factor: no whole number needed
        lora_dropout=options.lora_dropout,
        target_modules=_lora_targets(model, options),
        modules_to_save=whole,
        layers_to_transform=list(range(options.freeze_layers, len(body.layers))),
        layers_pattern="layers",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a name in Transformers that peft still uses
        adapted = get_peft_model(model, config)
    # At every checkpoint, peft would look on the Hub whether the vocabulary has grown.
    adapted.save_pretrained = functools.partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def _lora_targets(model: ChinchillaPreTrainedModel, options: TransferArguments) -> list[str]:
    body: Any = model.base_model
    linear = {name.rpartition(".")[2] for name, module in body.layers.named_modules() if isinstance(module, nn.Linear)}
    for target in options.lora_targets or ():
        if target not in linear:
            raise ValueError(
                f"lora_targets has {target!r}, which matches no linear layer of the model: it has "
                f"{', '.join(sorted(linear))}"
            )
    return sorted(set(options.lora_targets or linear))


def count_trained(model: nn.Module) -> int:
    """Parameters that are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def describe_trained(model: nn.Module, options: TransferArguments) -> str:
    """One line on what is trained of a `model` that [`prepare_transfer`] gave."""
    added = (".lora_", ".modules_to_save.")
    total = sum(p.numel() for name, p in model.named_parameters() if not any(part in name for part in added))
    ways = []
    if options.lora_rank:
        ways.append(f"LoRA of rank {options.lora_rank}")
    if options.freeze_layers:
        ways.append(f"the embeddings and the first {options.freeze_layers} layers frozen")
    elif options.freeze_embeddings:
        ways.append("the table of tokens frozen")
    if options.layer_decay < 1:
        ways.append(f"rates {options.layer_decay:g} times those of the next layer")
    if options.token_dropout:
        ways.append(f"{options.token_dropout:g} of the tokens hidden")
    if options.adversarial_epsilon:
        ways.append(f"the table of tokens moved by {options.adversarial_epsilon:g} lengths against the model")
    return f"training {count_trained(model):,} of {total:,} parameters" + (f" ({'; '.join(ways)})" if ways else "")


# ---- LoRA at the end ----


def merge_lora(model: Any) -> None:
    """Add the updates of LoRA, where there are any, to the matrices that they are of. The model computes the same."""
    if hasattr(model, "merge_adapter") and not any(getattr(module, "merged", False) for module in model.modules()):
        model.merge_adapter()


def plain_model(model: Any) -> ChinchillaPreTrainedModel:
    """The model that `peft` was put around, with the updates merged; any other model comes back as it is."""
    merge_lora(model)
    return model.unload() if hasattr(model, "merge_adapter") else model


# ---- Learning rates ----


def layer_depths(model: ChinchillaPreTrainedModel) -> dict[nn.Parameter, int]:
    """
    How many layers are between a parameter and the head: 0 in the head, a pooler and a last LayerNorm, 1 in the last
    layer, and one more than the number of layers in the embeddings.
    """
    body: Any = model.base_model
    layers = len(body.layers)
    depths = dict.fromkeys(model.parameters(), 0)
    depths |= dict.fromkeys(body.embeddings.parameters(), layers + 1)
    for i, layer in enumerate(body.layers):
        depths |= dict.fromkeys(layer.parameters(), layers - i)
    return depths


def layer_groups(
    model: Any, decayed: Sequence[str], learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """
    Trainable parameters in groups for an optimizer, each with the rate `learning_rate * layer_decay ** depth` (Clark et
    al. 2020, ELECTRA; depths as in BEiT, Bao et al. 2022: the head has the whole rate). The highest rate stands first.

    Args:
        model: of ours, or a `peft.PeftModel` around one.
        decayed: names of the parameters that have weight decay.
        learning_rate: of the head.
        layer_decay: see above.
        weight_decay: of `decayed`.
    """
    depths = layer_depths(model.get_base_model() if hasattr(model, "get_base_model") else model)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    names = set(decayed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((depths[parameter], name not in names), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay**depth,
            "weight_decay": 0.0 if is_plain else weight_decay,
        }
        for (depth, is_plain), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]

"""Where a fine-tuning starts: at a checkpoint of ours or of the BERT family, or from scratch with its own tokenizer."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .configuration_chinchilla import ChinchillaConfig
from .modeling_chinchilla import ChinchillaPreTrainedModel
from .recipes import resolve_location
from .tokenization import train_tokenizer
from .transfer import TransferArguments, check_transfer, load_for_task


@dataclass
class StartArguments:
    """Where the model starts."""

    _argument_group_name = "Model"

    model: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to start from: Chinchilla, BERT, RoBERTa or DistilBERT; a folder, a Hub name or "
            "package://NAME/PATH. Without it the model starts from scratch, with a tokenizer trained on the texts."
        },
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest text in tokens, longer ones are cut. Default: the model's positions."}
    )
    hidden_dropout: float | None = field(default=None, metadata={"help": "Dropout. Default: as in the checkpoint."})
    attention_dropout: float = field(default=0.0, metadata={"help": "Dropout of attention weights."})
    classifier_dropout: float | None = field(
        default=None, metadata={"help": "Dropout before the classifier. Default: as in the checkpoint."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention to train with. Default: the faster one for these texts on this machine.",
            "choices": ["eager", "sdpa", "flex_attention", "flash_attention_2"],
        },
    )

    def config_fields(self) -> dict[str, Any]:
        """Those of the options that are fields of the model's config, and given."""
        fields = {name: getattr(self, name) for name in ("hidden_dropout", "attention_dropout", "classifier_dropout")}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass
class ScratchArguments:
    """Shape of a model without a checkpoint to start from."""

    _argument_group_name = "Model from scratch"

    tokenizer_algorithm: str = field(
        default="wordpiece",
        metadata={
            "help": "Kind of tokenizer; symbols for what is not prose, such as SMILES.",
            "choices": ["wordpiece", "bpe", "unigram", "symbols"],
        },
    )
    symbol_pattern: str | None = field(
        default=None, metadata={"help": "Regular expression of a symbol, for symbols. Default: a character."}
    )
    lowercase: bool = field(default=False, metadata={"help": "Put all texts in lower case."})
    vocab_size: int = field(default=8192, metadata={"help": "Number of tokens."})
    hidden_size: int = field(default=256, metadata={"help": "Width."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Depth."})
    num_attention_heads: int = field(default=4, metadata={"help": "Attention heads."})
    hidden_act: str = field(default="relu", metadata={"help": "Activation."})
    norm_placement: str = field(
        default="output",
        metadata={"help": "Where LayerNorm stands.", "choices": ["output", "post", "pre"]},
    )
    position_embedding_type: str = field(
        default="rope", metadata={"help": "Kind of positions.", "choices": ["rope", "learned"]}
    )


def start_model(
    model_class: type[ChinchillaPreTrainedModel],
    texts: Callable[[], Iterable[str]],
    start: StartArguments,
    shape: ScratchArguments,
    transfer: TransferArguments,
    load_tokenizer: Callable[[str], PreTrainedTokenizerBase] = AutoTokenizer.from_pretrained,
    **config_fields: Any,
) -> tuple[PreTrainedTokenizerBase, ChinchillaPreTrainedModel, str]:
    """
    A tokenizer, a model, and a line that says where its weights come from.

    Args:
        model_class: what to build.
        texts: gives the texts to train a tokenizer on, where there is no checkpoint.
        start: the checkpoint, and what to change of it.
        shape: of a model from scratch.
        transfer: is checked against the model, and not applied.
        load_tokenizer: of a checkpoint.
        config_fields: of the model, such as `id2label`.

    Raises:
        ValueError: options that do not go together, or do not fit the checkpoint.
        OSError: there is no such checkpoint, or its weights are damaged.
    """
    config_fields |= start.config_fields()
    if start.model is not None:
        for option in dataclasses.fields(shape):
            value = getattr(shape, option.name)
            if value != option.default:
                raise ValueError(
                    f"--{option.name} {value} is for a model from scratch, but --model {start.model} has its own: "
                    "leave out one of the two"
                )
        location = resolve_location(start.model)
        model, origin = load_for_task(location, model_class, name=start.model, **config_fields)
        tokenizer = load_tokenizer(location)
        check_transfer(model, transfer, tokenizer)
        return tokenizer, model, origin

    for name in transfer.chosen():
        raise ValueError(
            f"--{name} is for a pretrained model, but without --model this one starts from random weights: give a "
            "--model, or leave it out"
        )
    max_length = start.max_length or 512
    tokenizer = train_tokenizer(
        texts(),
        algorithm=shape.tokenizer_algorithm,
        vocab_size=shape.vocab_size,
        lowercase=shape.lowercase,
        symbol_pattern=shape.symbol_pattern,
        model_max_length=max_length,
    )
    config = ChinchillaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        hidden_act=shape.hidden_act,
        norm_placement=shape.norm_placement,
        position_embedding_type=shape.position_embedding_type,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        **config_fields,
    )
    return tokenizer, model_class(config), "from scratch: all of the model is fresh"


def choose_max_length(start: StartArguments, tokenizer: PreTrainedTokenizerBase, config: ChinchillaConfig) -> int:
    """
    Tokens of the longest text: what is asked for, or what tokenizer and model take.

    Raises:
        ValueError: the model has fewer positions than are asked for.
    """
    if start.max_length is not None and start.max_length > config.max_position_embeddings:
        raise ValueError(
            f"--max_length is {start.max_length}, but the model has {config.max_position_embeddings} positions: "
            "lower it, or start from a checkpoint with a longer context"
        )
    return start.max_length or min(tokenizer.model_max_length, config.max_position_embeddings)

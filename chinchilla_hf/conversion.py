"""
BERT-family checkpoints in, exactly, and BERT out again.

With `norm_placement="post"`, learned positions and token types the encoder computes what BERT computes, so converting
is renaming: no tensor changes, and the outputs agree to rounding. RoBERTa (with its relatives of the same layout)
loses the two rows of its position table that no token uses; DistilBERT has no token types and no pooler, but its
classifier's first layer plays the pooler's part.
"""

import os
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from . import modeling_chinchilla
from .configuration_chinchilla import ChinchillaConfig
from .modeling_chinchilla import ChinchillaPreTrainedModel
from .modeling_chinchilla_pretrained import explained_damage

# Module of a BERT -> our module; `*` is the number of the layer.
_BERT_BODY = {
    "embeddings.word_embeddings": "embeddings.embed_tokens",
    "embeddings.position_embeddings": "embeddings.embed_positions",
    "embeddings.token_type_embeddings": "embeddings.embed_token_types",
    "embeddings.LayerNorm": "embeddings.norm",
    "encoder.layer.*.attention.self.query": "layers.*.self_attn.q_proj",
    "encoder.layer.*.attention.self.key": "layers.*.self_attn.k_proj",
    "encoder.layer.*.attention.self.value": "layers.*.self_attn.v_proj",
    "encoder.layer.*.attention.output.dense": "layers.*.self_attn.o_proj",
    "encoder.layer.*.attention.output.LayerNorm": "layers.*.self_attn_norm",
    "encoder.layer.*.intermediate.dense": "layers.*.mlp.up_proj",
    "encoder.layer.*.output.dense": "layers.*.mlp.down_proj",
    "encoder.layer.*.output.LayerNorm": "layers.*.mlp_norm",
    "pooler.dense": "pooler.dense",
}
_BERT_HEADS = {
    "cls.predictions.transform.dense": "transform.dense",
    "cls.predictions.transform.LayerNorm": "transform.norm",
    "cls.predictions.decoder": "lm_head",
    "cls.seq_relationship": "seq_relationship",
    "classifier": "classifier",
    "qa_outputs": "qa_outputs",
}
_ROBERTA_HEADS = {
    "lm_head.dense": "transform.dense",
    "lm_head.layer_norm": "transform.norm",
    "lm_head.decoder": "lm_head",
    "classifier.dense": "model.pooler.dense",
    "classifier.out_proj": "classifier",
    "classifier": "classifier",
    "qa_outputs": "qa_outputs",
}
_DISTILBERT_BODY = {
    "embeddings.word_embeddings": "embeddings.embed_tokens",
    "embeddings.position_embeddings": "embeddings.embed_positions",
    "embeddings.LayerNorm": "embeddings.norm",
    "transformer.layer.*.attention.q_lin": "layers.*.self_attn.q_proj",
    "transformer.layer.*.attention.k_lin": "layers.*.self_attn.k_proj",
    "transformer.layer.*.attention.v_lin": "layers.*.self_attn.v_proj",
    "transformer.layer.*.attention.out_lin": "layers.*.self_attn.o_proj",
    "transformer.layer.*.sa_layer_norm": "layers.*.self_attn_norm",
    "transformer.layer.*.ffn.lin1": "layers.*.mlp.up_proj",
    "transformer.layer.*.ffn.lin2": "layers.*.mlp.down_proj",
    "transformer.layer.*.output_layer_norm": "layers.*.mlp_norm",
}
_DISTILBERT_HEADS = {
    "vocab_transform": "transform.dense",
    "vocab_layer_norm": "transform.norm",
    "vocab_projector": "lm_head",
    "pre_classifier": "model.pooler.dense",
    "classifier": "classifier",
    "qa_outputs": "qa_outputs",
}
_ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert")
# Model type -> (name of the body inside a head model, body's modules, heads' modules).
_LAYOUTS = {
    "bert": ("bert", _BERT_BODY, _BERT_HEADS),
    **{model_type: ("roberta", _BERT_BODY, _ROBERTA_HEADS) for model_type in _ROBERTA_LIKE},
    "distilbert": ("distilbert", _DISTILBERT_BODY, _DISTILBERT_HEADS),
}
CONVERTIBLE_MODEL_TYPES = tuple(_LAYOUTS)


def convert_checkpoint(
    name_or_path: str | os.PathLike,
    model_class: type[ChinchillaPreTrainedModel] | None = None,
    *,
    revision: str = "main",
    token: str | None = None,
    output_loading_info: bool = False,
    **config_overrides: Any,
) -> Any:
    """
    Load a BERT, RoBERTa (XLM-R, CamemBERT) or DistilBERT checkpoint as a Chinchilla.

    Args:
        name_or_path: a folder or a Hub name. Only safetensors weights are read.
        model_class: the class to build; by default the one that matches the checkpoint's own head
            (`BertForMaskedLM` -> `ChinchillaForMaskedLM`, ...). Weights that the class has and the checkpoint lacks are
            freshly initialised, as in any `from_pretrained`, which also reports them.
        revision: branch, tag or commit of a Hub checkpoint.
        token: access token for a private Hub checkpoint.
        output_loading_info: return a dictionary with `missing_keys` and others as well, as `from_pretrained` does.
        config_overrides: fields of [`ChinchillaConfig`] to set, such as `num_labels` or `hidden_dropout`. With
            `pooler_type="normalized"` the checkpoint's dense pooler is left out.

    Returns:
        The model (a [`ChinchillaPreTrainedModel`]) in evaluation mode, in the checkpoint's dtype.

    Raises:
        ValueError: the checkpoint is of another family, or has a setting that a Chinchilla cannot express.
        OSError: there is no such checkpoint, or its weights are damaged.

    Example:

    ```python
    >>> from chinchilla_hf import ChinchillaForSequenceClassification
    >>> from chinchilla_hf.conversion import convert_checkpoint

    >>> model = convert_checkpoint("bert-base-uncased", ChinchillaForSequenceClassification, num_labels=3)
    ```
    """
    source_config = AutoConfig.from_pretrained(name_or_path, revision=revision, token=token)
    _check_convertible(source_config)  # before the weights are read
    architecture = (source_config.architectures or [""])[0]
    source_class = getattr(transformers, architecture, None) or transformers.AutoModel
    with explained_damage(name_or_path):
        source = source_class.from_pretrained(
            name_or_path, config=source_config, revision=revision, token=token, use_safetensors=True, dtype="auto"
        )
    return convert_model(source, model_class, output_loading_info=output_loading_info, **config_overrides)


def load_or_convert(
    name_or_path: str | os.PathLike,
    model_class: type[ChinchillaPreTrainedModel],
    *,
    output_loading_info: bool = False,
    **config_overrides: Any,
) -> Any:
    """
    A `model_class` that starts from a checkpoint of ours or of the BERT family, whichever `name_or_path` holds.

    The head of the checkpoint goes on where it is of the same task and has the labels that `config_overrides` names,
    or as many as `num_labels` asks for. Otherwise the head is freshly initialised, also where its shape would fit.

    Returns:
        The model; with `output_loading_info`, the dictionary of [`convert_checkpoint`] as well.

    Raises:
        ValueError: the checkpoint is of another family.
        OSError: there is no such checkpoint, or its weights are damaged.
    """
    if str(name_or_path).startswith(("./", "../", "/")) and not Path(name_or_path).exists():
        raise FileNotFoundError(
            f"there is no checkpoint {name_or_path} (the current folder is {Path.cwd()}): give a folder that is there, "
            "or a name on the Hub"
        )
    config = AutoConfig.from_pretrained(name_or_path)
    if config.model_type != ChinchillaConfig.model_type:
        return convert_checkpoint(
            name_or_path, model_class, output_loading_info=output_loading_info, **config_overrides
        )
    goes_on = _head_goes_on((config.architectures or [""])[0], config, model_class, config_overrides)
    model, info = model_class.from_pretrained(
        name_or_path, ignore_mismatched_sizes=not goes_on, output_loading_info=True, **config_overrides
    )
    if not goes_on:
        info["missing_keys"] |= _initialise_anew(model)
    return (model, info) if output_loading_info else model


# Heads whose weights mean something for one task and its labels only.
_TASK_HEADS = ("classifier", "qa_outputs")


def _head_goes_on(
    architecture: str,
    source: PreTrainedConfig,
    model_class: type[ChinchillaPreTrainedModel],
    config_overrides: dict[str, Any],
) -> bool:
    """Whether a head of this class name and config is of the task of `model_class`, and has its labels."""
    if architecture.rpartition("For")[2] != model_class.__name__.rpartition("For")[2]:
        return False
    if "id2label" in config_overrides:
        return dict(source.id2label) == dict(config_overrides["id2label"])
    return source.num_labels == config_overrides.get("num_labels", source.num_labels)


@torch.no_grad()
def _initialise_anew(model: ChinchillaPreTrainedModel) -> set[str]:
    """Give the head of a task random weights. Returns the names of these."""
    names: set[str] = set()
    for head in _TASK_HEADS:
        module = getattr(model, head, None)
        if module is not None:
            for name, parameter in module.named_parameters():
                parameter._is_hf_initialized = False  # which would keep `init_weights` from touching it
                names.add(f"{head}.{name}")
            module.apply(model._init_weights)
    return names


def convert_model(
    source: PreTrainedModel,
    model_class: type[ChinchillaPreTrainedModel] | None = None,
    *,
    output_loading_info: bool = False,
    **config_overrides: Any,
) -> Any:
    """As [`convert_checkpoint`], from a model in memory. `source` stays as it is and shares no memory."""
    config = convert_config(source.config)
    state_dict = _rename(source.state_dict(), source.config, is_head=source.base_model is not source)
    if "model.pooler.dense.weight" in state_dict:
        config.add_pooling_layer = True
    if model_class is None:
        head = type(source).__name__.rpartition("For")[2] if "For" in type(source).__name__ else ""
        model_class = getattr(modeling_chinchilla, f"ChinchillaFor{head}" if head else "ChinchillaModel", None)
        if model_class is None:
            raise ValueError(
                f"a Chinchilla has no head like {type(source).__name__}: pass the model_class to build, for example "
                "chinchilla_hf.ChinchillaForSequenceClassification"
            )
    if model_class is modeling_chinchilla.ChinchillaModel:
        state_dict = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
    if not _head_goes_on(type(source).__name__, source.config, model_class, config_overrides):
        state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith(_TASK_HEADS)}
    if "num_labels" in config_overrides:  # a property, which a plain update of the fields would not reach
        config.num_labels = config_overrides.pop("num_labels")
    config.update(config_overrides)
    config.validate()
    state_dict = {name: tensor.clone() for name, tensor in state_dict.items()}
    return model_class.from_pretrained(
        None, config=config, state_dict=state_dict, dtype=source.dtype, output_loading_info=output_loading_info
    )


def convert_config(source: PreTrainedConfig) -> ChinchillaConfig:
    """
    The Chinchilla config that computes what `source`, a BERT-family config, computes.

    Raises:
        ValueError: `source` has a setting that a Chinchilla cannot express; the message names it.
    """
    _check_convertible(source)
    is_distilbert = source.model_type == "distilbert"
    positions = source.max_position_embeddings
    if source.model_type in _ROBERTA_LIKE:
        positions -= source.pad_token_id + 1
    return ChinchillaConfig(
        vocab_size=source.vocab_size,
        hidden_size=source.hidden_size,
        intermediate_size=source.hidden_dim if is_distilbert else source.intermediate_size,
        num_hidden_layers=source.num_hidden_layers,
        num_attention_heads=source.num_attention_heads,
        hidden_act=source.activation if is_distilbert else source.hidden_act,
        norm_placement="post",
        layer_norm_eps=1e-12 if is_distilbert else source.layer_norm_eps,
        position_embedding_type="learned",
        max_position_embeddings=positions,
        type_vocab_size=0 if is_distilbert else source.type_vocab_size,
        hidden_dropout=source.dropout if is_distilbert else source.hidden_dropout_prob,
        attention_dropout=source.attention_dropout if is_distilbert else source.attention_probs_dropout_prob,
        classifier_dropout=source.seq_classif_dropout if is_distilbert else source.classifier_dropout,
        pooler_act="relu" if is_distilbert else "tanh",
        initializer_range=source.initializer_range,
        pad_token_id=source.pad_token_id,
        bos_token_id=source.bos_token_id,
        eos_token_id=source.eos_token_id,
        tie_word_embeddings=source.tie_word_embeddings,
        id2label=source.id2label,
        label2id=source.label2id,
        problem_type=source.problem_type,
    )


def convert_to_bert(model: ChinchillaPreTrainedModel) -> PreTrainedModel:
    """
    The BERT that computes what `model` computes: the inverse of [`convert_model`] for BERT.

    Raises:
        ValueError: `model` is a Chinchilla that BERT cannot express; the message names the setting.
    """
    config = model.config
    expected = {
        "norm_placement": "post",
        "position_embedding_type": "learned",
        "embedding_norm": True,
        "layer_norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "num_key_value_heads": config.num_attention_heads,
        "attention_heads_by_layer": None,
        "intermediate_size_by_layer": None,
    }
    if model.base_model.pooler is not None:
        expected |= {"pooler_type": "dense", "pooling": "cls", "pooler_act": "tanh"}
    for name, value in expected.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name} is {getattr(config, name)!r}, but a BERT has {value!r}: it cannot be converted")
    if config.type_vocab_size < 1:
        raise ValueError("type_vocab_size is 0, but a BERT has at least one token type: it cannot be converted")

    bert_config = transformers.BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        hidden_act=config.hidden_act,
        hidden_dropout_prob=config.hidden_dropout,
        attention_probs_dropout_prob=config.attention_dropout,
        max_position_embeddings=config.max_position_embeddings,
        type_vocab_size=config.type_vocab_size,
        initializer_range=config.initializer_range,
        layer_norm_eps=config.layer_norm_eps,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        classifier_dropout=config.classifier_dropout,
        tie_word_embeddings=config.tie_word_embeddings,
        id2label=config.id2label,
        label2id=config.label2id,
        problem_type=config.problem_type,
    )
    bert_class = getattr(transformers, type(model).__name__.replace("Chinchilla", "Bert"))
    modules = {ours: theirs for theirs, ours in _BERT_HEADS.items()}
    if model.base_model is model:
        modules |= {ours: theirs for theirs, ours in _BERT_BODY.items()}
    else:
        modules |= {f"model.{ours}": f"bert.{theirs}" for theirs, ours in _BERT_BODY.items()}
    state_dict = {_translate(name, modules): tensor.clone() for name, tensor in model.state_dict().items()}
    if "cls.predictions.decoder.bias" in state_dict:
        state_dict["cls.predictions.bias"] = state_dict["cls.predictions.decoder.bias"]
    # A bare model without pooler, or a head that needs none, becomes a BERT without pooler.
    arguments = {"add_pooling_layer": model.pooler is not None} if model.base_model is model else {}
    return bert_class.from_pretrained(None, config=bert_config, state_dict=state_dict, dtype=model.dtype, **arguments)


def _check_convertible(source: PreTrainedConfig) -> None:
    if source.model_type not in _LAYOUTS:
        raise ValueError(
            f"model type {source.model_type!r} cannot be converted, only {', '.join(map(repr, _LAYOUTS))}: "
            "load it with transformers.AutoModel"
        )
    positions = getattr(source, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise ValueError(
            f"position_embedding_type is {positions!r}, but only 'absolute' can be converted: a Chinchilla has no "
            "relative positions"
        )
    for name in ("is_decoder", "add_cross_attention"):
        if getattr(source, name, False):
            raise ValueError(f"{name} is True, but only encoders can be converted")
    name = "activation" if source.model_type == "distilbert" else "hidden_act"
    activation = getattr(source, name)
    if activation not in ACT2FN:
        raise ValueError(f"{name} is {activation!r}, but a Chinchilla has only {', '.join(sorted(ACT2FN))}")
    masked_lm = any("MaskedLM" in architecture for architecture in source.architectures or [])
    if source.model_type in _ROBERTA_LIKE and masked_lm and activation != "gelu":
        raise ValueError(
            f"hidden_act is {activation!r}, but RoBERTa's masked-token head always uses 'gelu', and a Chinchilla has "
            "one activation for both: convert the body alone, by saving it with RobertaModel first"
        )


def _rename(
    state_dict: dict[str, torch.Tensor], source_config: PreTrainedConfig, is_head: bool
) -> dict[str, torch.Tensor]:
    """Our names for a BERT-family state dict, as in a head model: the body's begin with `model.`."""
    body_name, body, heads = _LAYOUTS[source_config.model_type]
    prefix = f"{body_name}." if is_head else ""
    modules = {f"{prefix}{theirs}": f"model.{ours}" for theirs, ours in body.items()}
    if is_head:
        modules |= heads
    renamed = {}
    for name, tensor in state_dict.items():
        if name in ("cls.predictions.bias", "lm_head.bias"):
            continue  # the same tensor as the decoder's bias
        if source_config.model_type in _ROBERTA_LIKE and name.endswith("position_embeddings.weight"):
            tensor = tensor[source_config.pad_token_id + 1 :]  # RoBERTa counts positions from there
        renamed[_translate(name, modules)] = tensor
    return renamed


def _translate(name: str, modules: dict[str, str]) -> str:
    """`encoder.layer.3.output.dense.weight` -> `layers.3.mlp.down_proj.weight`, by the table `modules`."""
    module, _, parameter = name.rpartition(".")
    pattern = re.sub(r"\.\d+\.", ".*.", module)
    if pattern not in modules:
        raise ValueError(f"the checkpoint has a tensor {name!r} that has no place in the other architecture")
    layer = re.search(r"\.(\d+)\.", module)
    translated = modules[pattern]
    return f"{translated.replace('*', layer[1]) if layer else translated}.{parameter}"

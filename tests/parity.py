"""Weights of the library's own GPT-2, BART and Marian under the names that they have in a Chinchilla."""

import re

import torch

_GPT2 = {
    "transformer.wte": "model.embeddings.embed_tokens",
    "transformer.wpe": "model.embeddings.embed_positions",
    "transformer.ln_f": "model.norm",
    "transformer.h": "model.layers",
    "ln_1": "self_attn_norm",
    "ln_2": "mlp_norm",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
    "attn.c_proj": "self_attn.o_proj",
}
_BART = {
    "embed_tokens": "embeddings.embed_tokens",
    "embed_positions": "embeddings.embed_positions",
    "layernorm_embedding": "embeddings.norm",
    "self_attn_layer_norm": "self_attn_norm",
    "encoder_attn_layer_norm": "cross_attn_norm",
    "encoder_attn": "cross_attn",
    "final_layer_norm": "mlp_norm",
    "out_proj": "o_proj",
    "fc1": "mlp.up_proj",
    "fc2": "mlp.down_proj",
}


def _renamed(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        name = re.sub(rf"(^|\.){re.escape(old)}(\.|$)", rf"\g<1>{new}\g<2>", name)
    return name


def from_gpt2(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-2 keeps its matrices transposed, and those of query, key and value in one."""
    renamed = {}
    for name, tensor in state_dict.items():
        is_transposed = name.endswith(".weight") and re.search(r"\.(c_attn|c_proj|c_fc)\.", name)
        tensor = tensor.t() if is_transposed else tensor
        if ".attn.c_attn." in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[_renamed(name.replace("attn.c_attn", f"self_attn.{letter}_proj"), _GPT2)] = part
        else:
            renamed[_renamed(name, _GPT2)] = tensor
    return renamed


def from_bart(state_dict: dict[str, torch.Tensor], position_offset: int) -> dict[str, torch.Tensor]:
    """BART's position tables begin with two rows that no token uses, Marian's do not."""
    renamed = {}
    for name, tensor in state_dict.items():
        if name in ("model.shared.weight", "final_logits_bias"):
            continue
        renamed[_renamed(name, _BART)] = tensor[position_offset:] if "embed_positions" in name else tensor
    return renamed

"""
The block that every Chinchilla model is built from: attention, in the decoder of an encoder-decoder attention to the
encoder's states, and a feed-forward network, each with LayerNorm and residual addition; and the embeddings in front.

`ChinchillaLayer.residual` is the one place that reads `config.norm_placement`.

This file travels inside every checkpoint: it needs transformers and torch alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import is_flash_attention_requested

from .configuration_chinchilla import ChinchillaBlockConfig


def matmul_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which matrix products with `tensor` are made here: that of autocast, if it is on."""
    device_type = tensor.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else tensor.dtype


def like_queries(hidden_states: torch.Tensor) -> torch.Tensor:
    """`(batch, length, 1)`, for who asks for dtype and device of queries and keys: masks, and angles of positions."""
    return hidden_states[..., :1].to(matmul_dtype(hidden_states))


def check_packing_is_isolated(config: ChinchillaBlockConfig, batch_size: int, kwargs: dict) -> None:
    """
    Flash attention takes no mask: it needs the documents' lengths, or finds them in a single row.

    Raises:
        ValueError: it would mix the documents of packed rows.
    """
    if is_flash_attention_requested(config) and batch_size > 1 and kwargs.get("cu_seq_lens_q") is None:
        raise ValueError(
            f"position_ids mark packed documents in a batch of {batch_size} rows, which flash attention cannot "
            "keep apart by itself: pass cu_seq_lens_q, cu_seq_lens_k, max_length_q and max_length_k with one flat "
            "row (DataCollatorWithFlattening(return_flash_attn_kwargs=True)), or use attn_implementation='sdpa'"
        )


def layer_norm(config: ChinchillaBlockConfig) -> nn.LayerNorm:
    """A LayerNorm over the residual stream, as the config describes it."""
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=config.layer_norm_bias)


def apply_dropout(inputs: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """
    As `torch.nn.functional.dropout`, of any shape and dtype. On a CPU in a third of its time: 16 random bits a channel
    tell what is kept, so that `p` holds to within 1 / 65,536.
    """
    if not training or not 0 < p < 1 or inputs.device.type != "cpu" or torch.compiler.is_compiling():
        return nn.functional.dropout(inputs, p, training)
    words = torch.empty(math.ceil(inputs.numel() / 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: inputs.numel()].view(inputs.shape)  # -32,768 to 32,767
    kept = (bits >= min(round(p * 2**16), 2**16 - 1) - 2**15).to(inputs.dtype)
    return inputs * kept.mul_(1 / (1 - p))


class ChinchillaDropout(nn.Dropout):
    """`nn.Dropout`, in the way of `apply_dropout`."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return apply_dropout(inputs, self.p, self.training)


@dataclass(frozen=True)
class RealTokens:
    """
    Where the real tokens of a padded batch stand. All but attention can be computed of these alone, side by side in a
    single row (Zeng et al. 2022, "Boosting Distributed Training Performance of the Unpadded BERT Model").

    Args:
        index: places in the flattened batch, `(real,)`.
        batch_size, length: of the batch.
    """

    index: torch.LongTensor
    batch_size: int
    length: int

    @property
    def positions(self) -> torch.LongTensor:
        """Place of each within its row, `(real,)`."""
        return self.index % self.length

    def side_by_side(self, states: torch.Tensor) -> torch.Tensor:
        """`(batch, length, ...)` to `(1, real, ...)`."""
        return states.flatten(0, 1).index_select(0, self.index).unsqueeze(0)

    def in_rows(self, states: torch.Tensor) -> torch.Tensor:
        """`(1, real, ...)` to `(batch, length, ...)`, with zeros as padding."""
        rows = states.new_zeros(self.batch_size * self.length, *states.shape[2:])
        return rows.index_copy(0, self.index, states[0]).unflatten(0, (self.batch_size, self.length))


class ChinchillaEmbeddings(nn.Module):
    """Token, token-type and (with `position_embedding_type="learned"`) position embeddings, summed."""

    def __init__(self, config: ChinchillaBlockConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.embed_token_types = (
            nn.Embedding(config.type_vocab_size, config.hidden_size) if config.type_vocab_size > 0 else None
        )
        self.embed_positions = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size)
            if config.position_embedding_type == "learned"
            else None
        )
        self.norm = layer_norm(config) if config.embedding_norm else None
        self.dropout = ChinchillaDropout(config.hidden_dropout)

    def forward(
        self,
        input_ids: torch.LongTensor | None,
        token_type_ids: torch.LongTensor | None,
        position_ids: torch.LongTensor,
        inputs_embeds: torch.FloatTensor | None,
    ) -> torch.Tensor:
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if self.embed_token_types is not None:
            if token_type_ids is None:  # type 0 everywhere, so that the table always has a gradient
                token_type_ids = torch.zeros_like(position_ids)
            hidden_states = hidden_states + self.embed_token_types(token_type_ids)
        if self.embed_positions is not None:
            hidden_states = hidden_states + self.embed_positions(position_ids)
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        return self.dropout(hidden_states) if self.training else hidden_states


class ChinchillaRotaryEmbedding(nn.Module):
    """Cosines and sines of the rotary position embedding (Su et al. 2021, equation 34), made once a forward."""

    def __init__(self, config: ChinchillaBlockConfig):
        super().__init__()
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        rope_init_fn: Callable = self.compute_default_rope_parameters
        if self.rope_type != "default":
            rope_init_fn = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = rope_init_fn(config)
        # Not in the checkpoint: `PreTrainedModel._init_weights` makes both anew after loading.
        self.inv_freq = nn.Buffer(inv_freq, persistent=False)
        self.original_inv_freq = nn.Buffer(inv_freq.clone(), persistent=False)
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}

    @staticmethod
    def compute_default_rope_parameters(config: ChinchillaBlockConfig, **kwargs) -> tuple[torch.Tensor, float]:
        """Inverse frequencies, shape `(head_dim / 2,)`, and the factor on cosines and sines (1)."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        inv_freq = self.inv_freq.to(device=x.device, dtype=torch.float)
        angles = position_ids[..., None, None].float() * torch.cat((-inv_freq, inv_freq))
        cos, sin = angles.cos(), angles.sin()
        if self.attention_scaling != 1:
            cos, sin = cos * self.attention_scaling, sin * self.attention_scaling
        return cos.to(dtype=x.dtype), sin.to(dtype=x.dtype)  # each (batch or 1, length, 1, head_dim)

    def in_order(self, x: torch.Tensor, first: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        As `forward`, of `length` tokens from position `first` on. Without gradient they come from a table that is made
        once: what `forward` does is a tenth of the time in which a small model decodes a token.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or self.rope_type != "default":
            return self(x, torch.arange(first, first + length, device=x.device).unsqueeze(0))
        table = self._tables.get((x.device, x.dtype))
        if table is None:
            with torch.inference_mode(False):
                positions = torch.arange(self.config.max_position_embeddings, device=x.device)
                table = self._tables[x.device, x.dtype] = self(x, positions.unsqueeze(0))
        cos, sin = table
        return cos[:, first : first + length], sin[:, first : first + length]


def apply_rotary_pos_emb(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """
    Turn each pair of channels `(i, i + head_dim / 2)` of `x` by the angle of its position.

    Args:
        x: queries or keys, `(batch, length, heads, head_dim)`. Before the heads are moved to the front the memory is
            contiguous, which on a CPU halves the time of this function.
        cos, sin: `(batch or 1, length, 1, head_dim)`, those of the first half of the channels for the negative angles.
    """
    if cos.dtype != x.dtype:  # a wrapper of the layers casts for itself
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    # roll: the other channel of each pair. addcmul: one pass over memory less than a product and a sum.
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference: softmax(q k^T * scaling + mask) v, with the weights returned."""
    if module.num_key_value_groups > 1:
        key = key.repeat_interleave(module.num_key_value_groups, dim=1)
        value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    attn_weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None and attention_mask.dtype == torch.bool:  # as SDPA has it
        attn_weights = attn_weights.masked_fill(~attention_mask, torch.finfo(attn_weights.dtype).min)
    elif attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    # On a CPU the softmax of half precision is one of float32 inside, without copies before and after it.
    softmax_dtype = None if query.device.type == "cpu" else torch.float32
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=softmax_dtype).to(query.dtype)
    attn_weights = apply_dropout(attn_weights, dropout, module.training)
    attn_output = torch.matmul(attn_weights, value).transpose(1, 2).contiguous()
    return attn_output, attn_weights


def few_queries_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, None]:
    """
    What SDPA computes, where a text is written on a CPU: for one query, or for a few that see the same keys, without
    dropout and gradient. The kernel of PyTorch 2.13 is made for blocks of queries: two products take a fifth to about
    all of its time, but where there is little to do, or one query to few keys in float32
    (`tests/benchmarks/few_queries.py`).
    """
    rows, heads, queries, width = query.shape
    keys = key.shape[2]
    if rows * heads * keys < 1024 or (query.element_size() > 2 and queries == 1 and keys < 64):
        output = nn.functional.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling)
        return output.transpose(1, 2), None
    query, key, value = (states.reshape(rows * heads, -1, width) for states in (query, key, value))
    if attention_mask is None:
        attn_weights = torch.bmm(query * scaling, key.transpose(1, 2))
    else:
        if attention_mask.dtype == torch.bool:
            attention_mask = additive_mask(attention_mask, query.dtype)
        attention_mask = attention_mask.expand(rows, heads, -1, -1).reshape(rows * heads, -1, keys)
        attn_weights = torch.baddbmm(attention_mask, query, key.transpose(1, 2), alpha=scaling)
    output = torch.bmm(nn.functional.softmax(attn_weights, dim=-1), value)
    return output.view(rows, heads, queries, width).transpose(1, 2), None


def additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores, instead of a `mask` that is true where there is attention."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


class ChinchillaAttention(nn.Module):
    """
    Multi-head attention over whatever backend `config._attn_implementation` names: of a sequence to itself or, where
    `key_value_size` is given, to another one of that width.
    """

    def __init__(
        self,
        config: ChinchillaBlockConfig,
        layer_idx: int,
        is_causal: bool = False,
        key_value_size: int | None = None,
    ):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_key_value_groups
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = is_causal
        num_heads = config.attention_heads_of(layer_idx) if key_value_size is None else config.num_attention_heads
        query_size = num_heads * config.head_dim
        shared_size = query_size // config.num_key_value_groups
        key_value_size = config.hidden_size if key_value_size is None else key_value_size
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(key_value_size, shared_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(key_value_size, shared_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)

    def project(self, hidden_states: torch.Tensor, projection: nn.Linear) -> torch.Tensor:
        """Queries, keys or values, `(batch, length, heads, head_dim)`."""
        # -1: tensor parallelism and pruning change the head count
        return projection(hidden_states).view(*hidden_states.shape[:-1], -1, self.head_dim)

    def _writes_on_cpu(self, states: torch.Tensor) -> bool:
        """Whether calls count more than products may: outside training, graphs and accelerators."""
        return states.is_cpu and not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())

    @property
    def projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.q_proj, self.k_proj, self.v_proj

    def queries_keys_and_values(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None,
        cache: Cache | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Those of `hidden_states`, each `(batch, length, heads, head_dim)`."""
        joined = self._joined_projections(hidden_states, cache)
        if joined is None:
            query, key, value = (self.project(hidden_states, projection) for projection in self.projections)
            if position_embeddings is not None:
                query = apply_rotary_pos_emb(query, *position_embeddings)
                key = apply_rotary_pos_emb(key, *position_embeddings)
            return query, key, value
        states = nn.functional.linear(hidden_states, *joined).view(*hidden_states.shape[:-1], -1, self.head_dim)
        queries, keys, values = (projection.out_features // self.head_dim for projection in self.projections)
        turned, value = states.split_with_sizes((queries + keys, values), dim=2)
        if position_embeddings is not None:
            turned = apply_rotary_pos_emb(turned, *position_embeddings)
        return *turned.split_with_sizes((queries, keys), dim=2), value

    def _joined_projections(
        self, hidden_states: torch.Tensor, cache: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """
        Weight and bias of all three projections, where a small model writes a text on a CPU: there the call of a layer
        costs more than its product. Made anew behind every prompt, and kept with the keys and values of the text.
        """
        if cache is None or self.layer_idx >= len(cache.layers) or not self._writes_on_cpu(hidden_states):
            return None
        kept = cache.layers[self.layer_idx]
        if type(kept) is not DynamicLayer:
            return None
        if hidden_states.shape[1] > 1 or kept.get_seq_length() == 0:
            vars(kept).pop("joined_projections", None)
            return None
        if not hasattr(kept, "joined_projections"):
            kept.joined_projections = self._join_projections() if self._projections_are_plain(hidden_states) else None
        return kept.joined_projections

    def _projections_are_plain(self, hidden_states: torch.Tensor) -> bool:
        """Whether they are small and as this class made them: not quantized, adapted, or with hooks around them."""
        return all(
            type(projection) is nn.Linear
            and projection.weight.dtype == hidden_states.dtype
            and projection.weight.numel() <= 2**18
            and not (projection._forward_pre_hooks or projection._forward_hooks or "forward" in vars(projection))
            for projection in self.projections
        )

    def _join_projections(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        bias = None if self.q_proj.bias is None else torch.cat([projection.bias for projection in self.projections])
        return torch.cat([projection.weight for projection in self.projections]), bias

    def keys_and_values_of_encoder(
        self, encoder_hidden_states: torch.Tensor, past_key_values: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the encoder, `(batch, heads, length, head_dim)`, kept in the cache from the first token on."""
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            layer = past_key_values.cross_attention_cache.layers[self.layer_idx]
            return layer.keys, layer.values
        encoder_hidden_states = encoder_hidden_states.to(matmul_dtype(encoder_hidden_states))
        key, value = (self.project(encoder_hidden_states, p).transpose(1, 2) for p in (self.k_proj, self.v_proj))
        if past_key_values is None:
            return key, value
        past_key_values.is_updated[self.layer_idx] = True
        return past_key_values.cross_attention_cache.update(key, value, self.layer_idx)

    def attention_function(self, query: torch.Tensor, to_encoder: bool) -> Callable:
        """That of the backend that the config names. `query`: `(batch, length, heads, head_dim)`."""
        implementation = self.config._attn_implementation
        # The length is asked for last: in a graph, the answer would hold for all lengths.
        if implementation == "sdpa" and self.num_key_value_groups == 1 and self._writes_on_cpu(query):
            length = query.shape[1]
            if length == 1 or (to_encoder and length <= 16):
                return few_queries_attention_forward
        return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        real_tokens: RealTokens | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_states = hidden_states.to(matmul_dtype(hidden_states))  # once, and not in each of three products
        if encoder_hidden_states is not None:
            query = self.project(hidden_states, self.q_proj)
            key, value = self.keys_and_values_of_encoder(encoder_hidden_states, past_key_values)
            # Several rows to one of the encoder's, as in a beam search, are more queries to the same keys and values.
            query = query.reshape(key.shape[0], -1, *query.shape[2:])
        else:
            query, key, value = self.queries_keys_and_values(hidden_states, position_embeddings, past_key_values)
            if real_tokens is not None:
                query, key, value = (real_tokens.in_rows(states) for states in (query, key, value))
            key, value = key.transpose(1, 2), value.transpose(1, 2)
            if past_key_values is not None:
                key, value = past_key_values.update(key, value, self.layer_idx)

        attn_output, attn_weights = self.attention_function(query, encoder_hidden_states is not None)(
            self,
            query.transpose(1, 2),  # (batch, heads, length, head_dim)
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        if real_tokens is not None:
            attn_output = real_tokens.side_by_side(attn_output)
        attn_output = attn_output.reshape(*input_shape, -1).contiguous()
        if attn_weights is not None and encoder_hidden_states is not None:
            attn_weights = attn_weights.unflatten(2, (-1, input_shape[1])).transpose(1, 2).flatten(0, 1)
        return self.o_proj(attn_output), attn_weights


class ChinchillaMLP(nn.Module):
    """Feed-forward network: `hidden_size -> intermediate_size -> hidden_size`."""

    def __init__(self, config: ChinchillaBlockConfig, layer_idx: int):
        super().__init__()
        intermediate_size = config.intermediate_size_of(layer_idx)
        self.up_proj = nn.Linear(config.hidden_size, intermediate_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class ChinchillaLayer(GradientCheckpointingLayer):
    """
    One block: attention, then the feed-forward network, each with its LayerNorm and residual addition; between them,
    where `encoder_size` is given, attention to an encoder's states of that width.
    """

    def __init__(
        self,
        config: ChinchillaBlockConfig,
        layer_idx: int,
        is_causal: bool = False,
        encoder_size: int | None = None,
    ):
        super().__init__()
        self.norm_placement = config.norm_placement
        self.self_attn = ChinchillaAttention(config, layer_idx, is_causal)
        self.self_attn_norm = layer_norm(config)
        self.cross_attn = None
        if encoder_size is not None:
            self.cross_attn = ChinchillaAttention(config, layer_idx, key_value_size=encoder_size)
            self.cross_attn_norm = layer_norm(config)
        self.mlp = ChinchillaMLP(config, layer_idx)
        self.mlp_norm = layer_norm(config)
        self.dropout = ChinchillaDropout(config.hidden_dropout)

    def residual(
        self, hidden_states: torch.Tensor, sublayer: Callable[[torch.Tensor], torch.Tensor], norm: nn.LayerNorm
    ) -> torch.Tensor:
        """Add `sublayer`'s work to `hidden_states`, with `norm` where `norm_placement` says."""
        if self.norm_placement == "post":
            return norm(hidden_states + self.dropped(sublayer(hidden_states)))
        if self.norm_placement == "pre":
            return hidden_states + self.dropped(sublayer(norm(hidden_states)))
        return hidden_states + self.dropped(norm(sublayer(hidden_states)))

    def dropped(self, states: torch.Tensor) -> torch.Tensor:
        """Under dropout in training; elsewhere without the call, which counts where a single token is decoded."""
        return self.dropout(states) if self.training else states

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        own_past = past_key_values
        if isinstance(past_key_values, EncoderDecoderCache):
            own_past = past_key_values.self_attention_cache

        def attend(states: torch.Tensor) -> torch.Tensor:
            return self.self_attn(states, attention_mask, position_embeddings, past_key_values=own_past, **kwargs)[0]

        def attend_to_encoder(states: torch.Tensor) -> torch.Tensor:
            # Without kwargs: the lengths of packed documents among them are the decoder's.
            return self.cross_attn(
                states,
                encoder_attention_mask,
                encoder_hidden_states=encoder_hidden_states,
                past_key_values=past_key_values,
            )[0]

        hidden_states = self.residual(hidden_states, attend, self.self_attn_norm)
        if self.cross_attn is not None:
            hidden_states = self.residual(hidden_states, attend_to_encoder, self.cross_attn_norm)
        return self.residual(hidden_states, self.mlp, self.mlp_norm)

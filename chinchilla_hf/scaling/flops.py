"""
What a shape costs: parameters, FLOPs as the paper counts them and as the code here executes them, and memory.

A multiplication and an addition count as two. Symbols, as in Hoffmann et al. 2022, appendix F: model width `d`, `h`
heads of width `k`, feed-forward width `f`, sequence length `s`, vocabulary `V`.
"""

from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedConfig

from ..configuration_chinchilla import (
    ChinchillaBlockConfig,
    ChinchillaConfig,
    ChinchillaDecoderConfig,
    ChinchillaSeq2SeqConfig,
)

# Backward has two products for one of forward.
TRAINING_FORWARDS = 3


@dataclass(frozen=True)
class ParameterCounts:
    """
    Parameters of a model, in the three ways that scaling laws count them. Which one is taken changes their exponents
    (Pearce and Song 2024, arXiv 2406.12907).

    Args:
        total: all, a matrix that is shared once (Hoffmann et al. 2022).
        without_embeddings: without the tables of tokens, positions and token types, and without the projection to the
            vocabulary (Kaplan et al. 2020).
        with_head: `without_embeddings` and the projection to the vocabulary, shared or not: all that multiplies.
    """

    total: int
    without_embeddings: int
    with_head: int


def count_parameters(config: PreTrainedConfig) -> ParameterCounts:
    """
    Parameters of a model that is pretrained: `ChinchillaForMaskedLM`, `ChinchillaForCausalLM` or
    `ChinchillaForConditionalGeneration`, by its config.

    Raises:
        TypeError: the config of another family.
    """
    if isinstance(config, ChinchillaSeq2SeqConfig):
        encoder, decoder = _both(config)
        blocks = _block_parameters(encoder) + _block_parameters(decoder)
        tables = _table_parameters(encoder) + _table_parameters(decoder)
        if config.share_embeddings:
            tables -= decoder.vocab_size * decoder.hidden_size
        projection = decoder.vocab_size * decoder.hidden_size
        tied = config.tie_word_embeddings
    else:
        config = _block_config(config)
        blocks, tables = _block_parameters(config), _table_parameters(config)
        projection = config.vocab_size * config.hidden_size
        tied = config.tie_word_embeddings
        if isinstance(config, ChinchillaConfig):  # the masked-token head: a square layer, a norm, and a bias a token
            blocks += config.hidden_size * (config.hidden_size + 1) + _norm_parameters(config)
            tables += config.vocab_size
            return ParameterCounts(
                blocks + tables + (0 if tied else projection), blocks, blocks + projection + config.vocab_size
            )
    return ParameterCounts(blocks + tables + (0 if tied else projection), blocks, blocks + projection)


def _both(config: ChinchillaSeq2SeqConfig) -> tuple[ChinchillaConfig, ChinchillaDecoderConfig]:
    return cast(ChinchillaConfig, config.encoder), cast(ChinchillaDecoderConfig, config.decoder)


def _block_config(config: PreTrainedConfig) -> ChinchillaBlockConfig:
    if not isinstance(config, ChinchillaBlockConfig):
        raise TypeError(f"{type(config).__name__} is not a config of this family: convert the model first")
    return config


def _norm_parameters(config: ChinchillaBlockConfig) -> int:
    return config.hidden_size * (2 if config.layer_norm_bias else 1)


def _table_parameters(config: ChinchillaBlockConfig) -> int:
    learned = config.max_position_embeddings if config.position_embedding_type == "learned" else 0
    return config.hidden_size * (config.vocab_size + config.type_vocab_size + learned)


def _block_parameters(config: ChinchillaBlockConfig) -> int:
    """Of the blocks, and of the norms around them."""
    width, norm = config.hidden_size, _norm_parameters(config)
    crossing = 0
    if isinstance(config, ChinchillaDecoderConfig) and config.add_cross_attention:
        inner = config.num_attention_heads * config.head_dim
        shared = inner // config.num_key_value_groups
        bias = inner + 2 * shared + width if config.attention_bias else 0
        crossing = 2 * width * inner + 2 * cast(int, config.cross_attention_hidden_size) * shared + bias + norm
    total = norm if config.embedding_norm else 0
    total += norm if config.norm_placement == "pre" else 0
    for layer_idx in range(config.num_hidden_layers):
        inner = config.attention_heads_of(layer_idx) * config.head_dim
        shared = inner // config.num_key_value_groups
        feed_forward = config.intermediate_size_of(layer_idx)
        bias = inner + 2 * shared + width if config.attention_bias else 0
        total += width * (2 * inner + 2 * shared) + bias + norm + crossing
        total += 2 * width * feed_forward + (feed_forward + width if config.mlp_bias else 0) + norm
    return total


@dataclass(frozen=True)
class PaperFlops:
    """
    FLOPs of one forward pass over one sequence, part by part (Hoffmann et al. 2022, appendix F).

    Args:
        embeddings: `2 s V d`.
        attention: of all layers: `2 * 3 s d (k h) + 2 s s (k h) + 3 h s s + 2 s s (k h) + 2 s (k h) d`.
        feed_forward: of all layers: `2 s (d f + d f)`.
        logits: `2 s d V`.
    """

    embeddings: float
    attention: float
    feed_forward: float
    logits: float

    @property
    def forward(self) -> float:
        """The sum."""
        return self.embeddings + self.attention + self.feed_forward + self.logits

    @property
    def training(self) -> float:
        """Forward and backward, "twice the FLOPs of the forward pass"."""
        return TRAINING_FORWARDS * self.forward

    @property
    def blocks_training(self) -> float:
        """
        Forward and backward without embeddings and logits.

        It is these that the ratios to 6 N D in the paper's table A4 come out with, within 0.01, N with embeddings and
        relative positions. With all that the appendix counts, the smallest model there has 1.58 and not 1.03.
        """
        return TRAINING_FORWARDS * (self.attention + self.feed_forward)

    def __add__(self, other: "PaperFlops") -> "PaperFlops":
        return PaperFlops(
            self.embeddings + other.embeddings,
            self.attention + other.attention,
            self.feed_forward + other.feed_forward,
            self.logits + other.logits,
        )


def paper_flops(config: PreTrainedConfig, length: int, target_length: int | None = None) -> PaperFlops:
    """
    FLOPs of a sequence as Hoffmann et al. 2022, appendix F, count them: embeddings as a product, softmax, and the
    logits of every token. What is executed here is less: see [`pretraining_step`].

    Args:
        config: of an encoder, a decoder or an encoder-decoder. The paper has no encoder-decoder: cross-attention is
            counted with the same terms, keys and values of the source and queries of the target.
        length: tokens of the sequence; of the source, of an encoder-decoder.
        target_length: of an encoder-decoder; as `length` if not given.
    """
    if isinstance(config, ChinchillaSeq2SeqConfig):
        encoder, decoder = _both(config)
        target = length if target_length is None else target_length
        source = paper_flops(encoder, length)
        inner = decoder.num_attention_heads * decoder.head_dim
        crossing = decoder.num_hidden_layers * (
            2 * 2 * target * decoder.hidden_size * inner  # queries, and the output
            + 2 * 2 * length * encoder.hidden_size * inner  # keys and values
            + (2 * 2 * inner + 3 * decoder.num_attention_heads) * target * length
        )
        without_logits = PaperFlops(source.embeddings, source.attention, source.feed_forward, 0)
        return without_logits + paper_flops(decoder, target) + PaperFlops(0, crossing, 0, 0)
    config = _block_config(config)
    width, vocabulary = config.hidden_size, config.vocab_size
    attention = sum(
        2 * 3 * length * width * inner + (2 * 2 * inner + 3 * heads) * length * length + 2 * length * inner * width
        for heads, inner in _heads(config)
    )
    feed_forward = sum(
        2 * length * 2 * width * config.intermediate_size_of(layer_idx) for layer_idx in range(config.num_hidden_layers)
    )
    return PaperFlops(2 * length * vocabulary * width, attention, feed_forward, 2 * length * width * vocabulary)


def _heads(config: ChinchillaBlockConfig) -> list[tuple[int, int]]:
    """Of every layer, heads, and heads times their width."""
    heads = [config.attention_heads_of(layer_idx) for layer_idx in range(config.num_hidden_layers)]
    return [(count, count * config.head_dim) for count in heads]


def blocks_forward(config: ChinchillaBlockConfig, row_length: int) -> float:
    """
    FLOPs that are executed of one token's way through the blocks, in rows of `row_length` tokens. Attention that is
    causal, or that of packed documents, is made for the whole row, and masked.

    Appendix F, per token: query, key and value `2 * 3 * d * (k h)` (fewer, where heads share keys and values), the two
    products of attention `2 * 2 * s * (k h)`, output projection `2 * (k h) * d`, feed-forward `2 * 2 * d * f`. Not
    counted, other than there: softmax, and embeddings, which are looked up and not multiplied.
    """
    total = 0.0
    for layer_idx, (_, inner) in enumerate(_heads(config)):
        shared = inner / config.num_key_value_groups
        projections = 2 * config.hidden_size * (2 * inner + 2 * shared)
        attention = 2 * 2 * row_length * inner
        feed_forward = 2 * 2 * config.hidden_size * config.intermediate_size_of(layer_idx)
        total += projections + attention + feed_forward
    return total


def head_forward(config: ChinchillaBlockConfig) -> float:
    """
    FLOPs that are executed of the head at one position: `2 d V`, of masked tokens behind a square layer, `2 d d`.
    """
    transform = 0 if isinstance(config, ChinchillaDecoderConfig) else config.hidden_size
    return 2 * config.hidden_size * (transform + config.vocab_size)


def pretraining_step(config: ChinchillaBlockConfig, num_rows: int, row_length: int, labelled_share: float) -> float:
    """
    FLOPs that are executed of forward and backward on `num_rows` packed rows.

    Args:
        labelled_share: share of the positions with a label; the head works at these alone.
    """
    tokens = num_rows * row_length
    return TRAINING_FORWARDS * tokens * (blocks_forward(config, row_length) + labelled_share * head_forward(config))


def translation_step(config: ChinchillaSeq2SeqConfig, num_pairs: int, source_length: int, target_length: int) -> float:
    """
    FLOPs that are executed of forward and backward on `num_pairs` pairs, padded to these lengths: the blocks of both
    sides, cross-attention (queries and output of the target, keys and values of the source), and the projection to the
    vocabulary at every token of the target.
    """
    encoder, decoder = _both(config)
    inner = decoder.num_attention_heads * decoder.head_dim
    crossing = decoder.num_hidden_layers * (
        2 * 2 * target_length * decoder.hidden_size * inner
        + 2 * 2 * source_length * encoder.hidden_size * inner / decoder.num_key_value_groups
        + 2 * 2 * target_length * source_length * inner
    )
    forward = (
        source_length * blocks_forward(encoder, source_length)
        + target_length * (blocks_forward(decoder, target_length) + head_forward(decoder))
        + crossing
    )
    return TRAINING_FORWARDS * num_pairs * forward


# Bytes of one parameter, see `training_memory`.
TRAINING_BYTES = {"fp32": 4 + 4 + 8, "bf16": 2 + 2 + 4 + 8}
INFERENCE_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5}


def training_memory(parameters: float, precision: str = "bf16", devices: int = 1) -> float:
    """
    Bytes on each of `devices` that hold equal shares of weights, gradients and both averages of Adam (ZeRO stage 3:
    Rajbhandari et al. 2020, section 3.1): 4 + 4 + 8 a parameter in fp32; in bf16 2 + 2, an fp32 copy of the weights, 4,
    as the optimizer of Chinchilla keeps (Hoffmann et al. 2022, section 4.1), and 8. Without activations, which depend
    on the batch: see [`activation_memory`].

    Raises:
        ValueError: another precision, or no device.
    """
    return parameters * _bytes(TRAINING_BYTES, precision) / _positive(devices)


def inference_memory(
    config: ChinchillaBlockConfig,
    precision: str = "bf16",
    devices: int = 1,
    *,
    parameters: float | None = None,
    batch_size: int = 1,
    length: int = 0,
) -> float:
    """
    Bytes on each of `devices` that hold equal shares of the weights and of the keys and values of `batch_size` texts of
    `length` tokens, `2 L (k h) s`, which a decoder keeps, in 16 bits where the weights have fewer.

    Args:
        parameters: those of [`count_parameters`] if not given.

    Raises:
        ValueError: another precision, or no device.
    """
    weight = _bytes(INFERENCE_BYTES, precision)
    total = weight * (count_parameters(config).total if parameters is None else parameters)
    if isinstance(config, ChinchillaDecoderConfig):
        width = sum(inner / config.num_key_value_groups for _, inner in _heads(config))
        total += 2 * width * batch_size * length * max(weight, 2)
    return total / _positive(devices)


def activation_memory(config: ChinchillaBlockConfig, num_rows: int, row_length: int, checkpointing: bool) -> float:
    """
    Bytes that forward keeps for backward in 16 bits: `L s b d (34 + 5 h s / d)`, or `2 L s b d` where blocks are
    computed anew (Korthikanti et al. 2022, arXiv 2205.05198, section 4.1 and table 2). For arithmetic; what a shape
    really takes on this machine is measured in `scaling.machine`.
    """
    tokens = num_rows * row_length
    total = 0.0
    for heads, _ in _heads(config):
        kept = 2.0 if checkpointing else 34 + 5 * heads * row_length / config.hidden_size
        total += tokens * config.hidden_size * kept
    return total


def _bytes(table: dict[str, float] | dict[str, int], precision: str) -> float:
    if precision not in table:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(table)}")
    return table[precision]


def _positive(devices: int) -> int:
    if devices < 1:
        raise ValueError(f"devices is {devices}, expected at least 1")
    return devices

"""FLOPs of a training step, as the code here executes them. A multiplication and an addition count as two."""

from ..configuration_chinchilla import ChinchillaBlockConfig, ChinchillaDecoderConfig


def blocks_forward(config: ChinchillaBlockConfig, row_length: int) -> float:
    """
    FLOPs of the matrix products of one token's way through the blocks, in rows of `row_length` tokens. Attention that
    is causal, or that of packed documents, is made for the whole row, and masked.

    Hoffmann et al. 2022, appendix F, per token: query, key and value `2 * 3 * d * (k h)` (fewer, where heads share
    keys and values), the two products of attention `2 * 2 * s * (k h)`, output projection `2 * (k h) * d`, feed-forward
    `2 * 2 * d * f`; with model width `d`, `h` heads of width `k`, sequence length `s` and feed-forward width `f`. Not
    counted, other than there: softmax, and embeddings, which are looked up and not multiplied.
    """
    total = 0.0
    for layer_idx in range(config.num_hidden_layers):
        inner = config.attention_heads_of(layer_idx) * config.head_dim
        shared = inner / config.num_key_value_groups
        projections = 2 * config.hidden_size * (2 * inner + 2 * shared)
        attention = 2 * 2 * row_length * inner
        feed_forward = 2 * 2 * config.hidden_size * config.intermediate_size_of(layer_idx)
        total += projections + attention + feed_forward
    return total


def head_forward(config: ChinchillaBlockConfig) -> float:
    """FLOPs of the head at one position: the projection to the vocabulary, of masked tokens behind a square layer."""
    transform = 0 if isinstance(config, ChinchillaDecoderConfig) else config.hidden_size
    return 2 * config.hidden_size * (transform + config.vocab_size)


def pretraining_step(config: ChinchillaBlockConfig, num_rows: int, row_length: int, labelled_share: float) -> float:
    """
    FLOPs of forward and backward on `num_rows` packed rows: the backward pass has two products for one of the forward.

    Args:
        labelled_share: share of the positions with a label; the head works at these alone.
    """
    tokens = num_rows * row_length
    return 3 * tokens * (blocks_forward(config, row_length) + labelled_share * head_forward(config))

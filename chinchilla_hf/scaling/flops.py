"""FLOPs of a training step, as the code here executes them. A multiplication and an addition count as two."""

from ..configuration_chinchilla import ChinchillaConfig


def encoder_forward(config: ChinchillaConfig, row_length: int) -> float:
    """
    FLOPs of the matrix products of one token's way through the encoder, in rows of `row_length` tokens.

    Hoffmann et al. 2022, appendix F, per token: query, key and value `2 * 3 * d * (k h)` (fewer, where heads share
    keys and values), the two products of attention `2 * 2 * s * (k h)`, output projection `2 * (k h) * d`, feed-forward
    `2 * 2 * d * f`; with model width `d`, `h` heads of width `k`, sequence length `s` and feed-forward width `f`. Not
    counted, other than there: softmax, and embeddings, which are looked up and not multiplied.
    """
    inner = config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    projections = 2 * config.hidden_size * (2 * inner + 2 * shared)
    attention = 2 * 2 * row_length * inner
    feed_forward = 2 * 2 * config.hidden_size * config.intermediate_size
    return config.num_hidden_layers * (projections + attention + feed_forward)


def masked_token_head_forward(config: ChinchillaConfig) -> float:
    """FLOPs of the masked-token head at one position: a square layer, and the projection to the vocabulary."""
    return 2 * config.hidden_size * (config.hidden_size + config.vocab_size)


def pretraining_step(config: ChinchillaConfig, num_rows: int, row_length: int, labelled_share: float) -> float:
    """
    FLOPs of forward and backward on `num_rows` packed rows: the backward pass has two products for one of the forward.

    Args:
        labelled_share: share of the positions with a label; the head works at these alone.
    """
    tokens = num_rows * row_length
    head = labelled_share * masked_token_head_forward(config)
    return 3 * tokens * (encoder_forward(config, row_length) + head)

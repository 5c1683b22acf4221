"""Configurations of the Chinchilla encoder, decoder and encoder-decoder."""

from typing import cast

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import RopeParameters

NORM_PLACEMENTS = ("output", "post", "pre")
POSITION_EMBEDDING_TYPES = ("rope", "learned")
POOLING_MODES = ("cls", "mean")
POOLER_TYPES = ("dense", "normalized")


def check_model_type(config_class: type[PreTrainedConfig], config_dict: dict) -> None:
    """
    Raises:
        ValueError: `config_dict` describes a model of another type than `config_class` does.
    """
    model_type = config_dict.get("model_type", config_class.model_type)
    if model_type != config_class.model_type:
        raise ValueError(
            f"this checkpoint is of model type {model_type!r}, expected {config_class.model_type!r}: load it with "
            "AutoModel, or, for a BERT, RoBERTa or DistilBERT, convert it with "
            "chinchilla_hf.conversion.convert_checkpoint"
        )


@strict
class ChinchillaBlockConfig(PreTrainedConfig):
    r"""
    What the configurations of all Chinchilla models have in common: the shape and variant of their blocks.

    Args:
        vocab_size (`int`, *optional*, defaults to 16384):
            Number of token ids.
        hidden_size (`int`, *optional*, defaults to 256):
            Width of the residual stream. Must be a multiple of `num_attention_heads` unless `head_dim` is given.
        intermediate_size (`int`, *optional*):
            Width inside the feed-forward network; `None` stands for `4 * hidden_size`.
        num_hidden_layers (`int`, *optional*, defaults to 6):
            Number of blocks.
        num_attention_heads (`int`, *optional*, defaults to 4):
            Attention heads of each block.
        num_key_value_heads (`int`, *optional*):
            Heads of keys and values, each shared by a group of the attention heads (Ainslie et al. 2023): a smaller
            cache. Must divide `num_attention_heads`; `None` stands for as many.
        head_dim (`int`, *optional*):
            Width of one head; `None` stands for `hidden_size // num_attention_heads`. Must be even.
        attention_heads_by_layer (`list[int]`, *optional*):
            Attention heads of every block, where `chinchilla_hf.compression` has pruned them; `None` stands for
            `num_attention_heads` in each. A head of keys and values has as many of them in every block.
        intermediate_size_by_layer (`list[int]`, *optional*):
            Width inside the feed-forward network of every block, likewise; `None` stands for `intermediate_size`.
        hidden_act (`str`, *optional*, defaults to `"relu"`):
            Activation of the feed-forward network and of the masked-token head: any name in
            `transformers.activations.ACT2FN`.
        norm_placement (`str`, *optional*, defaults to `"output"`):
            Where LayerNorm stands in a block whose sub-layer is `f`: `"output"`: `x + LN(f(x))`; `"post"` (BERT):
            `LN(x + f(x))`; `"pre"` (GPT-2): `x + f(LN(x))` with one more LayerNorm after the last block.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of every LayerNorm.
        layer_norm_bias (`bool`, *optional*, defaults to `True`):
            Whether LayerNorms have a bias.
        attention_bias (`bool`, *optional*, defaults to `True`):
            Whether the query, key, value and output projections have a bias.
        mlp_bias (`bool`, *optional*, defaults to `True`):
            Whether the feed-forward projections have a bias.
        embedding_norm (`bool`, *optional*, defaults to `True`):
            Whether the sum of the embeddings is normalised before the first block.
        position_embedding_type (`str`, *optional*, defaults to `"rope"`):
            `"rope"` turns queries and keys by their position, `"learned"` adds a table to the embeddings.
        max_position_embeddings (`int`, *optional*, defaults to 512):
            Longest input, in tokens.
        rope_parameters (`dict`, *optional*):
            `rope_type`, `rope_theta` (10000 if not given) and what else the type needs, as in other
            Transformers models. Only read with `position_embedding_type="rope"`.
        type_vocab_size (`int`, *optional*, defaults to 2 in an encoder and 0 in a decoder):
            Number of token types. 0 builds no table; `token_type_ids` are then accepted and have no effect.
        hidden_dropout (`float`, *optional*, defaults to 0.1):
            Dropout on the embeddings and on the output of every sub-layer.
        attention_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the attention weights. Fused attention kernels on CPU need 0.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
        pad_token_id (`int`, *optional*, defaults to 0):
            Id of the padding token.
        bos_token_id (`int`, *optional*):
            Id of the token that begins a text.
        eos_token_id (`int`, *optional*):
            Id of the token that ends a text.
        tie_word_embeddings (`bool`, *optional*, defaults to `True`):
            Whether the head that predicts tokens shares the matrix of the input embeddings.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: a value of the wrong type, or a combination that cannot be
            built; the message names the value and what is expected.
    """

    base_model_tp_plan = {
        "embeddings.embed_tokens": "embedding_rowwise",
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_fsdp_plan = {
        "embeddings": "free_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }

    vocab_size: int = 16384
    hidden_size: int = 256
    intermediate_size: int | None = None
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    attention_heads_by_layer: list[int] | None = None
    intermediate_size_by_layer: list[int] | None = None
    hidden_act: str = "relu"
    norm_placement: str = "output"
    layer_norm_eps: float = 1e-5
    layer_norm_bias: bool = True
    attention_bias: bool = True
    mlp_bias: bool = True
    embedding_norm: bool = True
    position_embedding_type: str = "rope"
    max_position_embeddings: int = 512
    rope_parameters: RopeParameters | dict | None = None
    type_vocab_size: int = 0
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads != 0:
                raise ValueError(
                    f"hidden_size is {self.hidden_size}, which is not a multiple of num_attention_heads "
                    f"({self.num_attention_heads}): change one of them, or give head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Refuse what cannot be built. Run by `@strict` after every construction."""
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        for name in (*sizes, "num_key_value_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.num_attention_heads % self.num_key_value_heads != 0:
            raise ValueError(
                f"num_key_value_heads is {self.num_key_value_heads}, which does not divide num_attention_heads "
                f"({self.num_attention_heads}): change one of them"
            )
        for name in ("attention_heads_by_layer", "intermediate_size_by_layer"):
            self._check_by_layer(name, self.num_key_value_groups if name == "attention_heads_by_layer" else 1)
        self._check_choice("norm_placement", NORM_PLACEMENTS)
        self._check_choice("position_embedding_type", POSITION_EMBEDDING_TYPES)
        self._check_activation("hidden_act")
        self._check_share("hidden_dropout")
        self._check_share("attention_dropout")
        if self.head_dim % 2 != 0:
            raise ValueError(f"head_dim is {self.head_dim}, but rotary positions turn pairs of channels: make it even")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id is {self.pad_token_id}, but vocab_size is {self.vocab_size}: pass the tokenizer's "
                "pad_token_id and its length"
            )

    @property
    def num_key_value_groups(self) -> int:
        """Attention heads that share a head of keys and values, in every block."""
        return self.num_attention_heads // self.num_key_value_heads

    def attention_heads_of(self, layer_idx: int) -> int:
        """Attention heads of block `layer_idx`."""
        by_layer = self.attention_heads_by_layer
        return self.num_attention_heads if by_layer is None else by_layer[layer_idx]

    def intermediate_size_of(self, layer_idx: int) -> int:
        """Width inside the feed-forward network of block `layer_idx`."""
        if self.intermediate_size_by_layer is not None:
            return self.intermediate_size_by_layer[layer_idx]
        return cast(int, self.intermediate_size)  # set in __post_init__

    def _check_by_layer(self, name: str, multiple: int) -> None:
        values = getattr(self, name)
        if values is not None and (
            len(values) != self.num_hidden_layers or any(value < multiple or value % multiple for value in values)
        ):
            of = "at least 1" if multiple == 1 else f"multiples of {multiple}, the heads that share keys and values"
            raise ValueError(f"{name} is {values}, expected {self.num_hidden_layers} numbers, one a block, {of}")

    def _check_choice(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(map(repr, allowed))}")

    def _check_activation(self, name: str) -> None:
        if getattr(self, name) not in ACT2FN:
            raise ValueError(
                f"{name} is {getattr(self, name)!r}, which Transformers does not know; it has: "
                f"{', '.join(sorted(ACT2FN))}"
            )

    def _check_share(self, name: str) -> None:
        if not 0 <= getattr(self, name) < 1:
            raise ValueError(f"{name} is {getattr(self, name)}, expected a share from 0 up to, but not including, 1")

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As `PreTrainedConfig.from_dict`, but a checkpoint of another model type raises instead of loading noise."""
        check_model_type(cls, config_dict)
        return super().from_dict(config_dict, **kwargs)


@strict
class ChinchillaConfig(ChinchillaBlockConfig):
    r"""
    Shape and variant of a Chinchilla encoder: [`ChinchillaModel`] and its heads.

    The defaults give a small model (about 12 million parameters with its vocabulary). With
    `norm_placement="post"`, `position_embedding_type="learned"`, `hidden_act="gelu"` and token types the encoder
    computes exactly what BERT computes (see `chinchilla_hf.conversion`).

    Args, beside those of [`ChinchillaBlockConfig`]:
        classifier_dropout (`float`, *optional*):
            Dropout before the last projection of a task head; `None` stands for `hidden_dropout`.
        pooling (`str`, *optional*, defaults to `"cls"`):
            What the pooler reads: `"cls"` the first token, `"mean"` the average over the tokens that
            `attention_mask` keeps.
        pooler_type (`str`, *optional*, defaults to `"dense"`):
            What the pooler makes of it: `"dense"` (BERT) a dense layer and `pooler_act`; `"normalized"` has no weights
            and scales the vector to length `sqrt(hidden_size)`, for checkpoints trained to compare texts by the cosine
            of their normalised vectors (sentence-transformers): a new dense layer would undo what they learned.
        pooler_act (`str`, *optional*, defaults to `"tanh"`):
            Activation of the pooler. Only read with `pooler_type="dense"`.
        add_pooling_layer (`bool`, *optional*, defaults to `False`):
            Whether a bare [`ChinchillaModel`] has a pooler. The heads decide for themselves; saving a model writes
            what it has, so that `AutoModel` rebuilds just the weights of the checkpoint.
        sparse_prediction (`bool`, *optional*, defaults to `True`):
            Whether the masked-token head, when it is given `labels`, works at the positions that have one only:
            `logits` are then `(labelled positions, vocab_size)`, in the order of the positions. In training mode there
            are none, because each is forgotten as soon as its gradient is made.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: a value of the wrong type, or a combination that cannot be
            built; the message names the value and what is expected.

    Example:

    ```python
    >>> from chinchilla_hf import ChinchillaConfig, ChinchillaForMaskedLM

    >>> model = ChinchillaForMaskedLM(ChinchillaConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2))
    ```
    """

    model_type = "chinchilla"

    type_vocab_size: int = 2
    classifier_dropout: float | int | None = None
    pooling: str = "cls"
    pooler_type: str = "dense"
    pooler_act: str = "tanh"
    add_pooling_layer: bool = False
    sparse_prediction: bool = True

    def validate_architecture(self):
        """Refuse what cannot be built. Run by `@strict` after every construction."""
        super().validate_architecture()
        self._check_choice("pooling", POOLING_MODES)
        self._check_choice("pooler_type", POOLER_TYPES)
        self._check_activation("pooler_act")
        if self.classifier_dropout is not None:
            self._check_share("classifier_dropout")

    def save_pretrained(self, save_directory, **kwargs):
        """As `PreTrainedConfig.save_pretrained`, after a check that the label names agree with each other."""
        if self.label2id is not None and self.id2label is not None:
            mismatch = {name: i for i, name in self.id2label.items() if self.label2id.get(name) != i}
            if mismatch or len(self.label2id) != len(self.id2label):
                raise ValueError(
                    f"id2label and label2id disagree (id2label has {len(self.id2label)} entries, label2id "
                    f"{len(self.label2id)}; differing: {mismatch}): set both, each the inverse of the other"
                )
        super().save_pretrained(save_directory, **kwargs)


@strict
class ChinchillaDecoderConfig(ChinchillaBlockConfig):
    r"""
    Shape and variant of a Chinchilla decoder: [`ChinchillaDecoderModel`] and [`ChinchillaForCausalLM`].

    With `norm_placement="pre"`, `position_embedding_type="learned"`, `hidden_act="gelu_new"` and no `embedding_norm`
    the decoder computes exactly what GPT-2 computes.

    Args, beside those of [`ChinchillaBlockConfig`]:
        use_cache (`bool`, *optional*, defaults to `True`):
            Whether the keys and values of the tokens are returned, so that the next token costs one token's work.
        add_cross_attention (`bool`, *optional*, defaults to `False`):
            Whether every block attends to an encoder's states, too: the decoder of [`ChinchillaSeq2SeqModel`].
        cross_attention_hidden_size (`int`, *optional*):
            Width of the encoder's states; `None` stands for `hidden_size`.
        fused_loss (`bool`, *optional*, defaults to `True`):
            Whether training with `labels` makes the loss and its gradient a few tokens at a time, and returns no
            `logits`: those of a whole batch are the largest thing that a small model would ever hold.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: a value of the wrong type, or a combination that cannot be
            built; the message names the value and what is expected.

    Example:

    ```python
    >>> from chinchilla_hf import ChinchillaDecoderConfig, ChinchillaForCausalLM

    >>> model = ChinchillaForCausalLM(ChinchillaDecoderConfig(num_attention_heads=4, num_key_value_heads=2))
    ```
    """

    model_type = "chinchilla_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]

    use_cache: bool = True
    add_cross_attention: bool = False
    cross_attention_hidden_size: int | None = None
    fused_loss: bool = True

    def __post_init__(self, **kwargs):
        if self.cross_attention_hidden_size is None:
            self.cross_attention_hidden_size = self.hidden_size
        super().__post_init__(**kwargs)


@strict
class ChinchillaSeq2SeqConfig(PreTrainedConfig):
    r"""
    An encoder and a decoder that attends to it: [`ChinchillaSeq2SeqModel`], [`ChinchillaForConditionalGeneration`].

    With `norm_placement="post"`, learned positions and `embedding_norm` in both, the pair computes exactly what BART
    computes.

    Args:
        encoder (`ChinchillaConfig` or `dict`, *optional*):
            Configuration of the encoder.
        decoder (`ChinchillaDecoderConfig` or `dict`, *optional*):
            Configuration of the decoder. Cross-attention to states as wide as the encoder's is added by itself.
        share_embeddings (`bool`, *optional*):
            Whether encoder and decoder have one matrix of token embeddings; `None` stands for `tie_word_embeddings`
            where both have the same vocabulary size and width, and `False` elsewhere.
        tie_word_embeddings (`bool`, *optional*, defaults to `True`):
            Whether the output projection shares the matrix of the decoder's token embeddings.
        label_smoothing (`float`, *optional*, defaults to 0):
            Share of the target that is spread over the whole vocabulary, in training mode. Unlike Trainer's
            `label_smoothing_factor`, it is right under gradient accumulation.
        decoder_start_token_id (`int`, *optional*):
            Id of the token that a translation begins with, and that is not part of it; `None` stands for the decoder's
            `bos_token_id` or, failing that, its `pad_token_id`.
        target_tokenizer (`str`, *optional*):
            Folder in the checkpoint with the tokenizer of the targets; `None` where sources and targets share one.

    Raises:
        `huggingface_hub.errors.StrictDataclassError`: a value of the wrong type, or a combination that cannot be
            built; the message names the value and what is expected.

    Example:

    ```python
    >>> from chinchilla_hf import ChinchillaForConditionalGeneration, ChinchillaSeq2SeqConfig

    >>> shape = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 8000}
    >>> model = ChinchillaForConditionalGeneration(ChinchillaSeq2SeqConfig(encoder=shape, decoder=shape))
    ```
    """

    model_type = "chinchilla_seq2seq"
    keys_to_ignore_at_inference = ["past_key_values"]
    sub_configs_defaults = {"encoder": ChinchillaConfig, "decoder": ChinchillaDecoderConfig}

    encoder: ChinchillaConfig | dict | None = None
    decoder: ChinchillaDecoderConfig | dict | None = None
    share_embeddings: bool | None = None
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True
    label_smoothing: float | int = 0.0
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = None
    target_tokenizer: str | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)  # makes configurations of dictionaries
        self.decoder.add_cross_attention = True
        self.decoder.cross_attention_hidden_size = self.encoder.hidden_size
        self.decoder.tie_word_embeddings = self.tie_word_embeddings
        if self.share_embeddings is None:
            self.share_embeddings = self.tie_word_embeddings and self._embeddings_fit()
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(self.decoder, name))
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.pad_token_id if self.bos_token_id is None else self.bos_token_id

    def _embeddings_fit(self) -> bool:
        return (self.encoder.vocab_size, self.encoder.hidden_size) == (self.decoder.vocab_size, self.hidden_size)

    def validate_architecture(self):
        """Refuse what cannot be built. Run by `@strict` after every construction."""
        if self.share_embeddings and not self._embeddings_fit():
            raise ValueError(
                f"share_embeddings is True, but the encoder has {self.encoder.vocab_size} tokens of width "
                f"{self.encoder.hidden_size} and the decoder {self.decoder.vocab_size} of width "
                f"{self.decoder.hidden_size}: make them equal, or set share_embeddings=False"
            )
        if self.share_embeddings and not self.tie_word_embeddings:
            raise ValueError("share_embeddings is True, but tie_word_embeddings is False: set both, or neither")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected a share from 0 to less than 1")

    @property
    def hidden_size(self) -> int:
        """Width of the decoder."""
        return self.decoder.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Blocks of the decoder."""
        return self.decoder.num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        """Attention heads of the decoder."""
        return self.decoder.num_attention_heads

    @property
    def vocab_size(self) -> int:
        """Number of token ids of the decoder, and of the encoder where they share embeddings."""
        return self.decoder.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self.decoder.vocab_size = value
        if self.share_embeddings:
            self.encoder.vocab_size = value

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As `PreTrainedConfig.from_dict`, but a checkpoint of another model type raises instead of loading noise."""
        check_model_type(cls, config_dict)
        return super().from_dict(config_dict, **kwargs)


for config_class in (ChinchillaConfig, ChinchillaDecoderConfig, ChinchillaSeq2SeqConfig):
    config_class.register_for_auto_class()

__all__ = ["ChinchillaConfig", "ChinchillaDecoderConfig", "ChinchillaSeq2SeqConfig"]

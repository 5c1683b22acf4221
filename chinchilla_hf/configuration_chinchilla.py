"""Configuration of the Chinchilla encoder."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import RopeParameters

NORM_PLACEMENTS = ("output", "post", "pre")
POSITION_EMBEDDING_TYPES = ("rope", "learned")
POOLING_MODES = ("cls", "mean")
POOLER_TYPES = ("dense", "normalized")


@strict
class ChinchillaConfig(PreTrainedConfig):
    r"""
    Shape and variant of a Chinchilla encoder: [`ChinchillaModel`] and its heads.

    The defaults give a small model (about 12 million parameters with its vocabulary). With
    `norm_placement="post"`, `position_embedding_type="learned"`, `hidden_act="gelu"` and token types the encoder
    computes exactly what BERT computes (see `chinchilla_hf.conversion`).

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
        head_dim (`int`, *optional*):
            Width of one head; `None` stands for `hidden_size // num_attention_heads`. Must be even.
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
        type_vocab_size (`int`, *optional*, defaults to 2):
            Number of token types. 0 builds no table; `token_type_ids` are then accepted and have no effect.
        hidden_dropout (`float`, *optional*, defaults to 0.1):
            Dropout on the embeddings and on the output of every sub-layer.
        attention_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the attention weights. Fused attention kernels on CPU need 0.
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
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial weights.
        pad_token_id (`int`, *optional*, defaults to 0):
            Id of the padding token.
        bos_token_id (`int`, *optional*):
            Id of the token that begins a text.
        eos_token_id (`int`, *optional*):
            Id of the token that ends a text.
        sparse_prediction (`bool`, *optional*, defaults to `True`):
            Whether the masked-token head, when it is given `labels`, works at the positions that have one only:
            `logits` are then `(labelled positions, vocab_size)`, in the order of the positions. In training mode there
            are none, because each is forgotten as soon as its gradient is made.
        tie_word_embeddings (`bool`, *optional*, defaults to `True`):
            Whether the masked-token head shares the matrix of the input embeddings.

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
    head_dim: int | None = None
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
    type_vocab_size: int = 2
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    classifier_dropout: float | int | None = None
    pooling: str = "cls"
    pooler_type: str = "dense"
    pooler_act: str = "tanh"
    add_pooling_layer: bool = False
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    sparse_prediction: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
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
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        choices = {
            "norm_placement": NORM_PLACEMENTS,
            "position_embedding_type": POSITION_EMBEDDING_TYPES,
            "pooling": POOLING_MODES,
            "pooler_type": POOLER_TYPES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(map(repr, allowed))}")
        for name in ("hidden_act", "pooler_act"):
            if getattr(self, name) not in ACT2FN:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, which Transformers does not know; it has: "
                    f"{', '.join(sorted(ACT2FN))}"
                )
        for name in ("hidden_dropout", "attention_dropout", "classifier_dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < 1:
                raise ValueError(f"{name} is {rate}, expected a share from 0 up to, but not including, 1")
        if self.head_dim % 2 != 0:
            raise ValueError(f"head_dim is {self.head_dim}, but rotary positions turn pairs of channels: make it even")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id is {self.pad_token_id}, but vocab_size is {self.vocab_size}: pass the tokenizer's "
                "pad_token_id and its length"
            )

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As `PreTrainedConfig.from_dict`, but a checkpoint of another model type raises instead of loading noise."""
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"this checkpoint is of model type {model_type!r}, expected {cls.model_type!r}: load it with "
                "AutoModel, or, for a BERT, RoBERTa or DistilBERT, convert it with "
                "chinchilla_hf.conversion.convert_checkpoint"
            )
        return super().from_dict(config_dict, **kwargs)

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


ChinchillaConfig.register_for_auto_class()

__all__ = ["ChinchillaConfig"]

"""
The models of the papers, for arithmetic: nobody trains them here.

Hoffmann et al. 2022, table 1 (parameters and tokens) and table 4 (shapes of Gopher and Chinchilla); Brown et al. 2020,
table 2.1 (GPT-3). Their blocks are of the same products as ours, so the configs of this family count them; Gopher and
Chinchilla have relative positions besides (Dai et al. 2019), a square matrix and two vectors a layer.
"""

from dataclasses import dataclass

from ..configuration_chinchilla import ChinchillaDecoderConfig
from .flops import count_parameters, inference_memory, paper_flops, training_memory


@dataclass(frozen=True)
class PaperModel:
    """
    A model of a paper.

    Args:
        name: in the paper.
        config: its shape.
        tokens: that it was trained on.
        length: of its sequences.
        relative_positions: whether it has them.
    """

    name: str
    config: ChinchillaDecoderConfig
    tokens: float
    length: int = 2048
    relative_positions: bool = False

    @property
    def parameters(self) -> int:
        """All of them."""
        config = self.config
        positions = config.num_hidden_layers * config.hidden_size * (config.hidden_size + 2)
        return count_parameters(config).total + (positions if self.relative_positions else 0)

    @property
    def training_flops(self) -> float:
        """As appendix F counts them."""
        return self.tokens / self.length * paper_flops(self.config, self.length).training

    def training_bytes(self, precision: str = "bf16", devices: int = 1) -> float:
        """See [`training_memory`]."""
        return training_memory(self.parameters, precision, devices)

    def inference_bytes(self, precision: str = "bf16", devices: int = 1, batch_size: int = 1) -> float:
        """See [`inference_memory`], with texts as long as those of training."""
        return inference_memory(
            self.config, precision, devices, parameters=self.parameters, batch_size=batch_size, length=self.length
        )


def _shape(layers: int, heads: int, head_dim: int, vocab_size: int, positions: str = "rope") -> ChinchillaDecoderConfig:
    return ChinchillaDecoderConfig(
        vocab_size=vocab_size,
        hidden_size=heads * head_dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        norm_placement="pre",
        embedding_norm=False,
        max_position_embeddings=2048,
        position_embedding_type=positions,
    )


CHINCHILLA_70B = PaperModel("Chinchilla 70B", _shape(80, 64, 128, 32_000), 1.4e12, relative_positions=True)
GOPHER_280B = PaperModel("Gopher 280B", _shape(80, 128, 128, 32_000), 300e9, relative_positions=True)
GPT_3_175B = PaperModel("GPT-3 175B", _shape(96, 96, 128, 50_257, positions="learned"), 300e9)
PAPER_MODELS = (CHINCHILLA_70B, GOPHER_280B, GPT_3_175B)

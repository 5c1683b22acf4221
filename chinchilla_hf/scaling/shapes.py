"""
The shapes that studies and plans choose from, one a size, and the settings they are trained with.

    for shape in LADDER: ...
    Shape(128, 4, 4).config("masked", vocab_size=8192)
    settings = training_settings(shape.config("causal", 8192), tokens=4e6, row_length=128)
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

from ..configuration_chinchilla import ChinchillaBlockConfig, ChinchillaConfig, ChinchillaDecoderConfig
from .flops import ParameterCounts, count_parameters, pretraining_step

OBJECTIVES = ("masked", "causal")
WIDTHS = (8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048)
MASKING_RATE = 0.3
# Of `training_settings`, in tokens.
BATCH_FACTOR = 0.8
SMALLEST_BATCH = 512
LEARNING_RATE, LEARNING_RATE_WIDTH, LEARNING_RATE_EXPONENT = 4e-3, 128, 0.6


def check_objective(objective: str) -> None:
    """
    Raises:
        ValueError: an objective that there is not.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}, expected one of {', '.join(OBJECTIVES)}")


@dataclass(frozen=True, order=True)
class Shape:
    """
    Width, depth and heads of a model.

    Args:
        hidden_size: width.
        num_hidden_layers: depth.
        num_attention_heads: heads.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int

    @classmethod
    def of_width(cls, hidden_size: int) -> "Shape":
        """
        The shape of this width: 2 blocks, and one for each 64 of the width; heads of 32, from a width of 256 on of 64.

        Between BERT's small models (Turc et al. 2019: 256 x 4, 512 x 8) and those of Hoffmann et al. 2022, table A9
        (512 x 8, 768 x 12 to 18).
        """
        return cls(hidden_size, 2 + hidden_size // 64, max(1, hidden_size // (32 if hidden_size < 256 else 64)))

    def config(self, objective: str, vocab_size: int, **settings: Any) -> ChinchillaBlockConfig:
        """The config of an encoder (`objective` is `"masked"`) or a decoder (`"causal"`) of this shape."""
        check_objective(objective)
        config_class = ChinchillaConfig if objective == "masked" else ChinchillaDecoderConfig
        return config_class(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            **settings,
        )

    def flops_per_token(self, objective: str, vocab_size: int, row_length: int) -> float:
        """FLOPs of training that are executed for a token of a packed row."""
        return _flops_per_token(self, objective, vocab_size, row_length)

    def parameters(self, objective: str, vocab_size: int) -> ParameterCounts:
        """Of the model that is pretrained."""
        return _parameters(self, objective, vocab_size)

    def __str__(self) -> str:
        return f"{self.hidden_size} x {self.num_hidden_layers}"


# A config checks itself, which takes a thousand times as long as what is counted by it.
@functools.cache
def _flops_per_token(shape: Shape, objective: str, vocab_size: int, row_length: int) -> float:
    share = MASKING_RATE if objective == "masked" else 1.0
    return pretraining_step(shape.config(objective, vocab_size), 1, row_length, share) / row_length


@functools.cache
def _parameters(shape: Shape, objective: str, vocab_size: int) -> ParameterCounts:
    return count_parameters(shape.config(objective, vocab_size))


LADDER = tuple(Shape.of_width(width) for width in WIDTHS)


@dataclass(frozen=True)
class Settings:
    """
    How a shape is trained.

    Args:
        learning_rate: the highest.
        rows: in a step.
    """

    learning_rate: float
    rows: int


def training_settings(shape: Shape, tokens: float, row_length: int) -> Settings:
    """
    How to train a shape on so many tokens.

    The best batch grows with the run, about as the root of its tokens, and the best learning rate falls with the width:
    both were found by runs on two cores (`training/README.md`).
    """
    rows = round(BATCH_FACTOR * math.sqrt(tokens) / row_length)
    learning_rate = LEARNING_RATE * (LEARNING_RATE_WIDTH / shape.hidden_size) ** LEARNING_RATE_EXPONENT
    return Settings(float(f"{learning_rate:.2g}"), max(SMALLEST_BATCH // row_length, 1, rows))


def pretraining_options(
    objective: str, shape: Shape, settings: Settings, vocab_size: int, row_length: int
) -> dict[str, Any]:
    """Options of `training/pretrain.py` for a model of this shape, trained as `training/recipes` do."""
    check_objective(objective)
    options: dict[str, Any] = {
        "objective": objective,
        "row_length": row_length,
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "norm_placement": "output",
        "hidden_act": "relu",
        "optimizer": "muon",
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": settings.rows,
        "per_device_eval_batch_size": 16,
    }
    return options | ({"masking_rate": MASKING_RATE} if objective == "masked" else {})

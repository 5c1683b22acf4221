"""
What loading and saving a Chinchilla has of its own, whichever model it is.

This file travels inside every checkpoint: it needs transformers and torch alone.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from safetensors import SafetensorError
from transformers.modeling_utils import PreTrainedModel


@contextmanager
def explained_damage(checkpoint) -> Iterator[None]:
    """Around reading the weights of `checkpoint`: damaged ones raise an `OSError` that says so."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(
            f"the weights in {checkpoint} are truncated or corrupted ({error}): copy or download model.safetensors "
            "again, or go back to an earlier checkpoint"
        ) from error


class ChinchillaFamilyPreTrainedModel(PreTrainedModel):
    """Base of the encoder's, the decoder's and the encoder-decoder's own base classes."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChinchillaEmbeddings", "ChinchillaLayer"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Auto class -> "module.Class": which class each builds for this family's configuration.
    _classes_of_auto_classes: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__:
            # `generate` asks for it at every token, and to find it behind the decorators takes 50 us.
            cls.forward.__signature__ = inspect.signature(cls.forward)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As `PreTrainedModel.from_pretrained`; damaged weights raise an `OSError` that says so."""
        with explained_damage(pretrained_model_name_or_path):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As `PreTrainedModel.save_pretrained`; the checkpoint also names the class of every head."""
        self.config.auto_map = {
            "AutoConfig": f"configuration_chinchilla.{type(self.config).__name__}",
            **self._classes_of_auto_classes,
        }
        super().save_pretrained(save_directory, *args, **kwargs)

"""
Pipelines that Transformers 5 dropped.

`import chinchilla_hf` registers them under names of their own (`"chinchilla-translation"`), because Transformers blocks
the old ones. Checkpoints carry this file: with `trust_remote_code=True` they have the old name, `"translation"`, too.

This file travels inside checkpoints: it needs transformers and torch alone.
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
from transformers.pipelines.base import ChunkPipeline

from .text_segments import split_text


class ChinchillaTranslationPipeline(ChunkPipeline):
    """
    Translates texts of any length: line by line, and sentence by sentence where a line is too long for the model.

    Line breaks stay where they are. Segments of one text or of several share batches of `batch_size` (8 if not given).
    Other arguments go to `generate`, such as `num_beams` or `max_length`.

    Args:
        target_tokenizer: decodes the translations. By default the one that the checkpoint names, or `tokenizer`.

    Example:

    ```python
    >>> import chinchilla_hf
    >>> from transformers import pipeline

    >>> translate = pipeline("chinchilla-translation", "runs/translation")
    >>> translate("A dog runs.\\nTwo men sit on a bench.")
    [{'translation_text': 'Ein Hund rennt.\\nZwei Männer sitzen auf einer Bank.'}]
    ```
    """

    _pipeline_calls_generate = True
    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, target_tokenizer: PreTrainedTokenizerBase | None = None, **kwargs: Any):
        if kwargs.get("batch_size") is None:
            kwargs["batch_size"] = 8
        super().__init__(*args, **kwargs)
        self.check_model_type(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
        self.target_tokenizer = target_tokenizer or self._load_target_tokenizer()
        self._check_tokenizers()
        self._source_positions = self.model.config.encoder.max_position_embeddings
        self._target_positions = self.model.config.decoder.max_position_embeddings

    def _load_target_tokenizer(self) -> PreTrainedTokenizerBase:
        config = self.model.config
        subfolder = getattr(config, "target_tokenizer", None)
        if subfolder is None:
            return self.tokenizer
        if not self.model.name_or_path:
            raise ValueError(
                f"the model has a tokenizer of its own for targets, in {subfolder!r} of its checkpoint, but was not "
                "loaded from one: pass target_tokenizer"
            )
        revision = getattr(config, "_commit_hash", None)
        return AutoTokenizer.from_pretrained(self.model.name_or_path, subfolder=subfolder, revision=revision)

    def _check_tokenizers(self) -> None:
        config = self.model.config
        for tokenizer, part, side in (
            (self.tokenizer, config.encoder, "sources"),
            (self.target_tokenizer, config.decoder, "targets"),
        ):
            if tokenizer.pad_token_id is None:
                raise ValueError(
                    f"the tokenizer of the {side} has no padding token, which batches need: set its pad_token"
                )
            if len(tokenizer) > part.vocab_size:
                raise ValueError(
                    f"the tokenizer of the {side} has {len(tokenizer)} tokens, but the model only {part.vocab_size} of "
                    "them: pass the one that it was trained with"
                )
        if self.model.generation_config.eos_token_id is None and config.eos_token_id is None:
            raise ValueError(
                "eos_token_id is not set, without which no translation ends: set that of model.generation_config to "
                "the token that ended the targets in training"
            )

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """As `Pipeline.save_pretrained`, with both tokenizers."""
        super().save_pretrained(save_directory, **kwargs)
        if self.target_tokenizer is not self.tokenizer:
            self.target_tokenizer.save_pretrained(os.path.join(save_directory, self.model.config.target_tokenizer))

    def _sanitize_parameters(self, truncation: bool | None = None, **generate_kwargs: Any) -> tuple[dict, dict, dict]:
        positions = self.model.config.decoder.max_position_embeddings
        for name, start in (("max_length", 1), ("max_new_tokens", 0)):  # the first counts the start token, too
            length = generate_kwargs.get(name)
            if length is not None and length <= start:
                raise ValueError(
                    f"{name} is {length}, which leaves no room for a translation: give at least {start + 1}, or leave "
                    "it out"
                )
            if length is not None and length + 1 - start > positions:
                raise ValueError(f"{name} is {length}, but the model has {positions} positions: lower it")
        return ({} if truncation is None else {"truncation": truncation}), generate_kwargs, {}

    def __call__(self, texts: Any, **kwargs: Any) -> Any:
        """
        Translate.

        Args:
            texts: one text, a list of texts, a data set or a generator of texts.
            kwargs: `batch_size`; `truncation`: cut texts that are too long in place of splitting them; the others go
                to `generate`.

        Returns:
            A list of `{"translation_text": ...}`, one a text; of a data set or a generator, an iterator over them.

        Raises:
            ValueError: a length that leaves no room.
            TypeError: a text that is no string.
        """
        results = super().__call__(texts, **kwargs)
        return [results] if isinstance(results, dict) else results

    def preprocess(self, text: str, truncation: bool = False) -> Iterator[dict[str, Any]]:
        if not isinstance(text, str):
            raise TypeError(f"there is a {type(text).__name__} among the texts, but only strings can be translated")
        limit = min(self.tokenizer.model_max_length, self._source_positions)

        def fits(segment: str) -> bool:
            return truncation or len(self.tokenizer(segment, verbose=False)["input_ids"]) <= limit

        segments = list(split_text(text, fits)) or [("", "")]
        for number, (before, segment) in enumerate(segments, start=1):
            encoded = self.tokenizer(segment, truncation=truncation, max_length=limit, return_tensors="pt")
            inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
            yield {**inputs, "before": before, "is_empty": not segment, "is_last": number == len(segments)}

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, Any]:
        inputs = {name: model_inputs.pop(name) for name in ("input_ids", "attention_mask")}
        if "max_length" not in generate_kwargs and "max_new_tokens" not in generate_kwargs:
            # Translations are about as long as the text. A model that does not stop repeats itself to the limit.
            generate_kwargs["max_length"] = min(self._target_positions, 3 * inputs["input_ids"].shape[1] + 20)
        output_ids = self.model.generate(**inputs, **generate_kwargs)
        return {**model_inputs, "output_ids": output_ids}

    def postprocess(self, model_outputs: list[dict[str, Any]]) -> dict[str, str]:
        parts = []
        for output in model_outputs:
            parts.append(output["before"])
            if not output["is_empty"]:
                parts.append(
                    self.target_tokenizer.decode(_flat(output["output_ids"]), skip_special_tokens=True).strip()
                )
        return {"translation_text": "".join(parts)}


def _flat(output_ids: torch.Tensor) -> torch.Tensor:
    return output_ids.reshape(-1)


__all__ = ["ChinchillaTranslationPipeline"]

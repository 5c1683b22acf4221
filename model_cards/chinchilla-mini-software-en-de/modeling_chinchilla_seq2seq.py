"""
The Chinchilla encoder-decoder: the encoder, and the decoder with attention to the encoder's states in every block.

What is special, beside a BART:
- Any two Chinchilla checkpoints make one (`from_encoder_decoder_pretrained`): a decoder's or an encoder's.
- Encoder, decoder and output projection have one matrix of embeddings where they fit.
- Label smoothing belongs to the model, and is right under gradient accumulation; in training the loss and its gradient
  are made a few tokens at a time.

This file travels inside every checkpoint, with the files it imports from: they need transformers and torch alone.
"""

import os
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import EncoderDecoderCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from .configuration_chinchilla import ChinchillaConfig, ChinchillaDecoderConfig, ChinchillaSeq2SeqConfig
from .modeling_chinchilla import ChinchillaModel
from .modeling_chinchilla_decoder import ChinchillaDecoderModel
from .modeling_chinchilla_loss import next_token_loss
from .modeling_chinchilla_pretrained import ChinchillaFamilyPreTrainedModel


@auto_docstring
class ChinchillaSeq2SeqPreTrainedModel(ChinchillaFamilyPreTrainedModel):
    config: ChinchillaSeq2SeqConfig
    _skip_keys_device_placement = ["past_key_values"]
    _can_record_outputs = None  # encoder and decoder record their own

    def resize_token_embeddings(self, *args, **kwargs):
        """
        As `PreTrainedModel.resize_token_embeddings`, of encoder and decoder together.

        Raises:
            ValueError: they have embeddings of their own.
        """
        if not self.config.share_embeddings:
            raise ValueError(
                "encoder and decoder have vocabularies of their own (share_embeddings is False): resize those of "
                "model.get_encoder() or model.get_decoder()"
            )
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.config.vocab_size = embeddings.num_embeddings
        return embeddings


@auto_docstring
class ChinchillaSeq2SeqModel(ChinchillaSeq2SeqPreTrainedModel):
    def __init__(self, config: ChinchillaSeq2SeqConfig):
        super().__init__(config)
        if config.share_embeddings:
            self._tied_weights_keys = {
                "decoder.embeddings.embed_tokens.weight": "encoder.embeddings.embed_tokens.weight"
            }
        self.encoder = ChinchillaModel(config.encoder, add_pooling_layer=False)
        self.decoder = ChinchillaDecoderModel(config.decoder)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        r"""
        decoder_position_ids (`torch.LongTensor` of shape `(batch_size, target_sequence_length)`, *optional*):
            Positions of the decoder's tokens; those after the cached ones if not given.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs
            )
        elif isinstance(encoder_outputs, tuple):  # as returned with return_dict=False
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        decoder_outputs = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            decoder_position_ids,
            past_key_values,
            decoder_inputs_embeds,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoder_outputs.last_hidden_state,
            past_key_values=decoder_outputs.past_key_values,
            decoder_hidden_states=decoder_outputs.hidden_states,
            decoder_attentions=decoder_outputs.attentions,
            cross_attentions=decoder_outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


@auto_docstring(custom_intro="Chinchilla that writes one text given another one, as in translation.")
class ChinchillaForConditionalGeneration(ChinchillaSeq2SeqPreTrainedModel, GenerationMixin):
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: ChinchillaSeq2SeqConfig):
        super().__init__(config)
        owner = "encoder" if config.share_embeddings else "decoder"
        self._tied_weights_keys = {"lm_head.weight": f"model.{owner}.embeddings.embed_tokens.weight"}
        self.model = ChinchillaSeq2SeqModel(config)
        self.lm_head = nn.Linear(config.decoder.hidden_size, config.decoder.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_encoder_decoder_pretrained(
        cls,
        encoder: str | os.PathLike,
        decoder: str | os.PathLike,
        *,
        encoder_kwargs: dict[str, Any] | None = None,
        decoder_kwargs: dict[str, Any] | None = None,
        **config_overrides: Any,
    ) -> "ChinchillaForConditionalGeneration":
        """
        A warm start: encoder and decoder from two Chinchilla checkpoints, cross-attention new.

        Args:
            encoder: folder or Hub name of an encoder's checkpoint, of any head.
            decoder: of a decoder's, or of an encoder's, whose blocks then see no later token.
            encoder_kwargs, decoder_kwargs: for `from_pretrained` of the two: `revision`, `token`, fields of the config.
            config_overrides: fields of [`ChinchillaSeq2SeqConfig`], such as `decoder_start_token_id`. By default
                embeddings are shared if the two checkpoints hold the same, as when they are one.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: a checkpoint is of another model type.
        """
        encoder_model = ChinchillaModel.from_pretrained(encoder, add_pooling_layer=False, **(encoder_kwargs or {}))
        decoder_model = _pretrained_decoder(decoder, encoder_model.config.hidden_size, decoder_kwargs or {})
        embeddings = [model.get_input_embeddings().weight for model in (encoder_model, decoder_model)]
        config_overrides.setdefault("share_embeddings", torch.equal(*embeddings))
        config = ChinchillaSeq2SeqConfig(encoder=encoder_model.config, decoder=decoder_model.config, **config_overrides)
        model = cls(config)
        model.model.encoder, model.model.decoder = encoder_model, decoder_model
        model.tie_weights()
        return model.eval()

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As `PreTrainedModel.save_pretrained`; the checkpoint also carries the translation pipeline."""
        # The import makes the file one of those that travel.
        from .pipeline_chinchilla import ChinchillaTranslationPipeline

        implementation = f"pipeline_chinchilla.{ChinchillaTranslationPipeline.__name__}"
        self.config.custom_pipelines = {"translation": {"impl": implementation, "pt": ["AutoModelForSeq2SeqLM"]}}
        super().save_pretrained(save_directory, *args, **kwargs)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs,
    ) -> tuple[torch.LongTensor | None, dict[str, Any]]:
        """As in Transformers, but of every source the encoder's states and mask stay one row, which its beams share."""
        names = ("encoder_outputs", "attention_mask")
        of_sources = {name: model_kwargs.pop(name) for name in names if name in model_kwargs}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(expand_size, False, input_ids, **model_kwargs)
        return input_ids, model_kwargs | of_sources

    def _reorder_cache(self, past_key_values: EncoderDecoderCache, beam_idx: torch.LongTensor) -> EncoderDecoderCache:
        """Which beam goes on from which: those of one source have its keys and values in common."""
        past_key_values.self_attention_cache.reorder_cache(beam_idx)
        return past_key_values

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """`labels`, each token one place later, behind `decoder_start_token_id`; padding in place of -100."""
        shifted = nn.functional.pad(labels[:, :-1], (1, 0), value=self.config.decoder_start_token_id)
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        decoder_inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        r"""
        decoder_position_ids (`torch.LongTensor` of shape `(batch_size, target_sequence_length)`, *optional*):
            Positions of the decoder's tokens; those after the cached ones if not given.
        labels (`torch.LongTensor` of shape `(batch_size, target_sequence_length)`, *optional*):
            The tokens to predict, not shifted: `decoder_input_ids` are made of them if not given. Positions with -100
            count for nothing. In training mode with `config.decoder.fused_loss` there are no `logits` then.
        """
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            decoder_input_ids,
            decoder_attention_mask,
            decoder_position_ids,
            encoder_outputs,
            past_key_values,
            inputs_embeds,
            decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        if labels is None:
            logits, loss = self.lm_head(hidden_states), None
        else:
            logits, loss = next_token_loss(
                self,
                hidden_states,
                labels,
                kwargs.get("num_items_in_batch"),
                fused=self.config.decoder.fused_loss,
                label_smoothing=self.config.label_smoothing,
            )
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )


def _pretrained_decoder(
    checkpoint: str | os.PathLike, encoder_size: int, kwargs: dict[str, Any]
) -> ChinchillaDecoderModel:
    """A decoder with cross-attention to states of width `encoder_size`, of a decoder's or an encoder's checkpoint."""
    raw, kwargs = PreTrainedConfig.get_config_dict(checkpoint, **kwargs)
    cross_attention = {"add_cross_attention": True, "cross_attention_hidden_size": encoder_size}
    if raw.get("model_type") == ChinchillaConfig.model_type:
        fields = ChinchillaDecoderConfig().to_dict()
        of_encoder = {name: value for name, value in raw.items() if name in fields and name != "model_type"}
        config = ChinchillaDecoderConfig(**of_encoder, **cross_attention)
    else:
        config = ChinchillaDecoderConfig.from_dict(raw, **cross_attention)
    return ChinchillaDecoderModel.from_pretrained(checkpoint, config=config, **kwargs)


# Which class an Auto class builds for a ChinchillaSeq2SeqConfig: written into every checkpoint's `auto_map`.
AUTO_CLASSES = {
    "AutoModel": "ChinchillaSeq2SeqModel",
    "AutoModelForSeq2SeqLM": "ChinchillaForConditionalGeneration",
}
ChinchillaSeq2SeqPreTrainedModel._classes_of_auto_classes = {
    auto_class: f"modeling_chinchilla_seq2seq.{name}" for auto_class, name in AUTO_CLASSES.items()
}

ChinchillaSeq2SeqModel.register_for_auto_class("AutoModel")
ChinchillaForConditionalGeneration.register_for_auto_class("AutoModelForSeq2SeqLM")

__all__ = ["ChinchillaForConditionalGeneration", "ChinchillaSeq2SeqModel", "ChinchillaSeq2SeqPreTrainedModel"]

"""
The Chinchilla decoder: the block of the encoder, in which no token sees a later one, and its language-model head.

What is special, beside a GPT-2:
- The encoder's placements of LayerNorm and rotary positions; groups of heads may share their keys and values.
- `position_ids` that start again inside a row separate packed documents: they never attend to each other.
- In training the loss and its gradient are made a few tokens at a time: there are no logits of a whole batch.

This file travels inside every checkpoint, with the files it imports from: they need transformers and torch alone.
"""

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
)
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithCrossAttentions
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_chinchilla import ChinchillaDecoderConfig
from .modeling_chinchilla_block import (
    ChinchillaAttention,
    ChinchillaEmbeddings,
    ChinchillaLayer,
    ChinchillaRotaryEmbedding,
    additive_mask,
    check_packing_is_isolated,
    layer_norm,
    like_queries,
)
from .modeling_chinchilla_loss import next_token_loss
from .modeling_chinchilla_pretrained import ChinchillaFamilyPreTrainedModel


@auto_docstring
class ChinchillaDecoderPreTrainedModel(ChinchillaFamilyPreTrainedModel):
    config: ChinchillaDecoderConfig
    _skip_keys_device_placement = ["past_key_values"]
    _can_record_outputs = {
        "hidden_states": ChinchillaLayer,
        "attentions": OutputRecorder(ChinchillaAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(ChinchillaAttention, index=1, layer_name="cross_attn"),
    }


@auto_docstring
class ChinchillaDecoderModel(ChinchillaDecoderPreTrainedModel):
    def __init__(self, config: ChinchillaDecoderConfig):
        super().__init__(config)
        self.embeddings = ChinchillaEmbeddings(config)
        self.rotary_emb = ChinchillaRotaryEmbedding(config) if config.position_embedding_type == "rope" else None
        encoder_size = config.cross_attention_hidden_size if config.add_cross_attention else None
        self.layers = nn.ModuleList(
            [
                ChinchillaLayer(config, layer_idx, is_causal=True, encoder_size=encoder_size)
                for layer_idx in range(config.num_hidden_layers)
            ]
        )
        self.norm = layer_norm(config) if config.norm_placement == "pre" else None
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        r"""
        position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Positions of the tokens; those after the cached ones if not given. Where they do not go up by one in a
            forward without a cache, a new document begins: tokens of different documents in a row do not attend to
            each other.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, and not both")
        if (encoder_hidden_states is None) == self.config.add_cross_attention:
            raise ValueError(
                f"add_cross_attention is {self.config.add_cross_attention}, but encoder_hidden_states are "
                f"{'missing' if encoder_hidden_states is None else 'given'}"
            )
        inputs = input_ids if input_ids is not None else inputs_embeds
        batch_size, length = inputs.shape[:2]
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        self._check_length(past_length, length)

        packed = None
        in_order = position_ids is None
        if position_ids is None:
            position_ids = (torch.arange(length, device=inputs.device) + past_length).unsqueeze(0)
        else:
            documents = None
            if past_key_values is None:
                documents = find_packed_sequence_indices(position_ids.expand(batch_size, -1))
            if documents is not None:
                check_packing_is_isolated(self.config, batch_size, kwargs)
                packed = packed_sequence_mask_function(documents)
            kwargs["position_ids"] = position_ids  # flash attention finds the documents of a single row by them

        hidden_states = self.embeddings(input_ids, None, position_ids, inputs_embeds)
        in_attention = like_queries(hidden_states)
        mask = None
        # A single token sees all that is in a cache without padding and without places to fill.
        if length > 1 or attention_mask is not None or (past_key_values is not None and past_key_values.is_compileable):
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=in_attention,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                and_mask_function=packed,
            )
        encoder_mask = None
        if encoder_hidden_states is not None:
            beams = in_attention.reshape(encoder_hidden_states.shape[0], -1, 1)  # of one source: more queries to it
            encoder_mask = self._encoder_mask(beams, encoder_hidden_states, encoder_attention_mask, past_key_values)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
            if encoder_hidden_states is not None:
                past_key_values = EncoderDecoderCache(past_key_values, DynamicCache(config=self.config))

        position_embeddings = None
        if self.rotary_emb is not None:
            if in_order and isinstance(past_length, int):
                position_embeddings = self.rotary_emb.in_order(in_attention, past_length, length)
            else:
                position_embeddings = self.rotary_emb(in_attention, position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                mask,
                position_embeddings,
                encoder_hidden_states,
                encoder_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states, past_key_values=past_key_values
        )

    def _encoder_mask(
        self,
        queries: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> torch.Tensor | None:
        """The mask of cross-attention; with a cache it is made for the first token and kept there for the others."""
        given = (encoder_attention_mask, queries.shape, queries.dtype)
        keeps = isinstance(past_key_values, EncoderDecoderCache) and not torch.compiler.is_compiling()
        if keeps and past_key_values.is_updated.get(0):
            kept_for, mask = getattr(past_key_values, "encoder_mask", ((None, None, None), None))
            if kept_for[0] is encoder_attention_mask and kept_for[1:] == given[1:]:
                return mask
        mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=queries,
            attention_mask=encoder_attention_mask,
            encoder_hidden_states=encoder_hidden_states,
        )
        if keeps:
            if mask is not None and mask.is_cpu and mask.dtype == torch.bool:
                mask = additive_mask(mask, queries.dtype)  # which is what products want, and not made by every layer
            past_key_values.encoder_mask = given, mask
        return mask

    def _check_length(self, past_length: int | torch.Tensor, length: int) -> None:
        # The length of a static cache is a tensor, which nothing here may wait for.
        if isinstance(past_length, int) and past_length + length > self.config.max_position_embeddings:
            cached = f" after {past_length} in the cache" if past_length else ""
            raise ValueError(
                f"max_position_embeddings is {self.config.max_position_embeddings}, but the input has {length} tokens"
                f"{cached}: truncate it, generate fewer, or load a checkpoint with a longer context"
            )


@auto_docstring(custom_intro="Chinchilla that predicts the next token, and so generates text.")
class ChinchillaForCausalLM(ChinchillaDecoderPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embeddings.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: ChinchillaDecoderConfig):
        super().__init__(config)
        self.model = ChinchillaDecoderModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithCrossAttentions:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            The input ids, with -100 where a token is not to be predicted; each is predicted from those before it. In
            training mode with `config.fused_loss` there are no `logits` then.
        """
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache=use_cache, **kwargs
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        if labels is None:
            logits, loss = self.lm_head(hidden_states), None
        else:
            targets = kwargs.get("shift_labels")
            if targets is None:
                targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
            num_items = kwargs.get("num_items_in_batch")
            logits, loss = next_token_loss(self, hidden_states, targets, num_items, self.config.fused_loss)
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


# Which class an Auto class builds for a ChinchillaDecoderConfig: written into every checkpoint's `auto_map`.
AUTO_CLASSES = {
    "AutoModel": "ChinchillaDecoderModel",
    "AutoModelForCausalLM": "ChinchillaForCausalLM",
}
ChinchillaDecoderPreTrainedModel._classes_of_auto_classes = {
    auto_class: f"modeling_chinchilla_decoder.{name}" for auto_class, name in AUTO_CLASSES.items()
}

ChinchillaDecoderModel.register_for_auto_class("AutoModel")
ChinchillaForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["ChinchillaDecoderModel", "ChinchillaDecoderPreTrainedModel", "ChinchillaForCausalLM"]

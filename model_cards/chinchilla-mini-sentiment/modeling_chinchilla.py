"""
The Chinchilla encoder and its task heads.

What is special, beside a BERT:
- The block (`modeling_chinchilla_block.py`) has three placements of LayerNorm, and positions are rotary by default.
- `position_ids` that start again inside a row separate packed documents: they never attend to each other.
- Given labels, the masked-token head works where there are labels, not at every position.
- On a CPU, padding costs attention alone: everything else is computed of the real tokens.
- A pooler exists only in models that use it, so that no parameter is left without gradient.
- A checkpoint saved from any head names every head's class in `auto_map`, so it loads as any other.

This file travels inside every checkpoint, with the files it imports from: they need transformers and torch alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.masking_utils import (
    and_masks,
    create_bidirectional_mask,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
)
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested, merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import capture_outputs

from .configuration_chinchilla import ChinchillaConfig
from .modeling_chinchilla_block import (
    ChinchillaAttention,
    ChinchillaEmbeddings,
    ChinchillaLayer,
    ChinchillaRotaryEmbedding,
    RealTokens,
    check_packing_is_isolated,
    layer_norm,
    like_queries,
)
from .modeling_chinchilla_loss import makes_gradients_with_loss, summed_cross_entropy
from .modeling_chinchilla_pretrained import ChinchillaFamilyPreTrainedModel


class ChinchillaPooler(nn.Module):
    """One vector a text: the first token's state or the mean over real tokens, through a dense layer or normalised."""

    def __init__(self, config: ChinchillaConfig):
        super().__init__()
        self.pooling = config.pooling
        self.dense = nn.Linear(config.hidden_size, config.hidden_size) if config.pooler_type == "dense" else None
        self.activation = ACT2FN[config.pooler_act]
        self.length = config.hidden_size**0.5  # of the normalised vector: its channels have a mean square of 1

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.pooling == "cls":
            pooled = hidden_states[:, 0]
        elif attention_mask is None:
            pooled = hidden_states.mean(dim=1)
        else:
            kept = attention_mask.to(hidden_states.dtype).unsqueeze(-1)  # (batch, length, 1)
            pooled = (hidden_states * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
        if self.dense is not None:
            return self.activation(self.dense(pooled))
        # In float32: squares of a half-precision vector overflow, and its smallest number is above normalize's epsilon.
        return (nn.functional.normalize(pooled.float(), dim=-1) * self.length).to(pooled.dtype)


class ChinchillaPredictionTransform(nn.Module):
    """Dense layer, activation and LayerNorm before the vocabulary projection of the masked-token head."""

    def __init__(self, config: ChinchillaConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.norm = layer_norm(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.act_fn(self.dense(hidden_states)))


@auto_docstring
class ChinchillaPreTrainedModel(ChinchillaFamilyPreTrainedModel):
    config: ChinchillaConfig
    # A checkpoint may hold a dense pooler and the head of another task, which this head or pooler_type has no use for.
    _keys_to_ignore_on_load_unexpected = [
        r"pooler\.",
        r"(^|\.)(transform|lm_head|seq_relationship|classifier|qa_outputs)\.",
    ]
    _can_record_outputs = {"hidden_states": ChinchillaLayer, "attentions": ChinchillaAttention}

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As `PreTrainedModel.save_pretrained`; the checkpoint also names every head's class, and what has a pooler."""
        self.config.add_pooling_layer = self.base_model.pooler is not None
        # Those of another head, from whose checkpoint this model started, are left behind.
        pipelines = dict(getattr(self.config, "custom_pipelines", None) or {})
        pipelines.pop("question-answering", None)
        self.config.custom_pipelines = pipelines | self._custom_pipelines()
        if not self.config.custom_pipelines:
            del self.config.custom_pipelines
        super().save_pretrained(save_directory, *args, **kwargs)

    def _custom_pipelines(self) -> dict[str, dict]:
        """Pipelines that the checkpoint carries, as `config.json` names them."""
        return {}


def causal_rows_mask_function(causal_rows: torch.BoolTensor) -> Callable:
    """Mask function of Transformers' `masking_utils`: in `causal_rows`, no token sees a later one."""

    def inner_mask(batch_idx: int, head_idx: int, q_idx: int, kv_idx: int) -> bool:
        return ~causal_rows[batch_idx] | (kv_idx <= q_idx)

    return inner_mask


@auto_docstring
class ChinchillaModel(ChinchillaPreTrainedModel):
    def __init__(self, config: ChinchillaConfig, add_pooling_layer: bool | None = None):
        r"""
        add_pooling_layer (`bool`, *optional*):
            Whether to build the pooler; `None` leaves it to `config.add_pooling_layer`.
        """
        super().__init__(config)
        self.embeddings = ChinchillaEmbeddings(config)
        self.rotary_emb = ChinchillaRotaryEmbedding(config) if config.position_embedding_type == "rope" else None
        self.layers = nn.ModuleList(
            [ChinchillaLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = layer_norm(config) if config.norm_placement == "pre" else None
        if add_pooling_layer is None:
            add_pooling_layer = config.add_pooling_layer
        self.pooler = ChinchillaPooler(config) if add_pooling_layer else None
        self.computes_padding = False
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        causal_rows: torch.BoolTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Positions of the tokens; 0, 1, 2, ... if not given. Where they do not go up by one, a new document
            begins: tokens of different documents in a row do not attend to each other.
        causal_rows (`torch.BoolTensor` of shape `(batch_size,)`, *optional*):
            Rows in which a token attends only to itself and to what is before it, for objectives that predict the
            next token.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, and not both")
        inputs = input_ids if input_ids is not None else inputs_embeds
        batch_size, length = inputs.shape[:2]
        if length > self.config.max_position_embeddings:
            raise ValueError(
                f"max_position_embeddings is {self.config.max_position_embeddings}, but the input has {length} tokens: "
                "truncate it, or load a checkpoint with a longer context"
            )

        mask_functions = []
        in_order = position_ids is None
        if position_ids is None:
            position_ids = torch.arange(length, device=inputs.device).unsqueeze(0)
        else:
            documents = find_packed_sequence_indices(position_ids.expand(batch_size, -1))
            if documents is not None:
                check_packing_is_isolated(self.config, batch_size, kwargs)
                mask_functions.append(packed_sequence_mask_function(documents))
            kwargs["position_ids"] = position_ids  # flash attention finds the documents of a single row by them

        if causal_rows is not None:
            if is_flash_attention_requested(self.config):
                raise ValueError("flash attention cannot mask some rows causally: use attn_implementation='sdpa'")
            mask_functions.append(causal_rows_mask_function(causal_rows))

        hidden_states = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        in_attention = like_queries(hidden_states)
        mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=in_attention,
            attention_mask=attention_mask,
            and_mask_function=and_masks(*mask_functions) if mask_functions else None,
        )
        position_embeddings = None
        if self.rotary_emb is not None and in_order:
            position_embeddings = self.rotary_emb.in_order(in_attention, 0, length)
        elif self.rotary_emb is not None:
            position_embeddings = self.rotary_emb(in_attention, position_ids)
        real_tokens = self.real_tokens(attention_mask, hidden_states) if not mask_functions else None
        if real_tokens is not None:
            hidden_states = real_tokens.side_by_side(hidden_states)
            if position_embeddings is not None:
                position_embeddings = tuple(table[:, real_tokens.positions] for table in position_embeddings)
            kwargs["real_tokens"] = real_tokens
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, position_embeddings, **kwargs)
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        if real_tokens is not None:
            hidden_states = real_tokens.in_rows(hidden_states)

        pooled = self.pooler(hidden_states, attention_mask) if self.pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def real_tokens(self, attention_mask: torch.Tensor | None, hidden_states: torch.Tensor) -> RealTokens | None:
        """
        The tokens that the layers need to compute, where leaving out the padding is worth it: on a CPU, with padding
        that is a tenth of the batch or more, and with no hook in the layers, which would see other shapes than usual.
        The states at padding are then 0, unless `computes_padding`.
        """
        if self.computes_padding or attention_mask is None or attention_mask.dim() != 2 or not hidden_states.is_cpu:
            return None
        if is_tracing(hidden_states) or is_flash_attention_requested(self.config):
            return None
        index = attention_mask.flatten().nonzero().squeeze(1)
        if not 0 < index.numel() <= 0.9 * attention_mask.numel():
            return None
        if any(module._forward_hooks or module._forward_pre_hooks for module in self.layers.modules()):
            return None
        return RealTokens(index, *attention_mask.shape)


def predict_tokens(
    model: "ChinchillaForMaskedLM | ChinchillaForPreTraining",
    hidden_states: torch.Tensor,
    labels: torch.LongTensor | None,
    num_items_in_batch: torch.Tensor | int | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """
    Scores of the tokens, and their cross-entropy where there are `labels`.

    With `config.sparse_prediction` and `labels`, scores are made at the labelled positions alone: with 15% of them
    labelled, the vocabulary projection, the largest matrix of a small model, costs a seventh, and its memory too. In
    training no scores are returned then, because they are made and forgotten a few tokens at a time.
    """
    if labels is not None and model.config.sparse_prediction:
        labelled = labels != -100
        hidden_states, labels = hidden_states[labelled], labels[labelled]  # (labelled, hidden_size), (labelled,)
    hidden_states = model.transform(hidden_states)
    if labels is not None and model.config.sparse_prediction and makes_gradients_with_loss(model):
        logits, loss = None, summed_cross_entropy(hidden_states, model.lm_head, labels.to(hidden_states.device))
    else:
        logits = model.lm_head(hidden_states)
        if labels is None:
            return logits, None
        labels = labels.flatten().to(logits.device)
        loss = nn.functional.cross_entropy(logits.flatten(0, -2).float(), labels, reduction="sum")
    if num_items_in_batch is None:
        num_items_in_batch = labels.ne(-100).sum().clamp(min=1)
    return logits, loss / torch.as_tensor(num_items_in_batch, device=loss.device)


@auto_docstring
class ChinchillaForMaskedLM(ChinchillaPreTrainedModel):
    _tied_weights_keys = {"lm_head.weight": "model.embeddings.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: ChinchillaConfig):
        super().__init__(config)
        self.model = ChinchillaModel(config, add_pooling_layer=False)
        self.transform = ChinchillaPredictionTransform(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Ids of the tokens to predict; positions with -100 count for nothing.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits, loss = predict_tokens(self, outputs.last_hidden_state, labels, kwargs.get("num_items_in_batch"))
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@auto_docstring(custom_intro="Output of [`ChinchillaForPreTraining`].")
@dataclass
class ChinchillaForPreTrainingOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned with `labels` and `next_sentence_label`):
        Masked-token loss plus next-sentence loss.
    prediction_logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`):
        Scores of the tokens, before the softmax.
    seq_relationship_logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
        Scores of "is the next sentence" and "is random", before the softmax.
    """

    loss: torch.FloatTensor | None = None
    prediction_logits: torch.FloatTensor | None = None
    seq_relationship_logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring(custom_intro="Chinchilla with BERT's two pretraining heads: masked tokens and next sentence.")
class ChinchillaForPreTraining(ChinchillaPreTrainedModel):
    _tied_weights_keys = {"lm_head.weight": "model.embeddings.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: ChinchillaConfig):
        super().__init__(config)
        self.model = ChinchillaModel(config, add_pooling_layer=True)
        self.transform = ChinchillaPredictionTransform(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        next_sentence_label: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ChinchillaForPreTrainingOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Ids of the tokens to predict; positions with -100 count for nothing.
        next_sentence_label (`torch.LongTensor`, `(batch_size,)` or `(batch_size, sequence_length)`, *optional*):
            0 where the second sentence follows the first, 1 where it is random. Only with `labels`. In rows of several
            packed pairs the label stands at the first token of its pair, and -100 elsewhere;
            `seq_relationship_logits` are then `(pairs, 2)`, in the order of the pairs.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        num_items = kwargs.get("num_items_in_batch")
        prediction_logits, loss = predict_tokens(self, outputs.last_hidden_state, labels, num_items)
        pooled = outputs.pooler_output
        if next_sentence_label is not None and next_sentence_label.dim() == 2:
            if self.config.pooling != "cls":
                raise ValueError(
                    f"pooling is {self.config.pooling!r}, but packed pairs are told apart by their first token: set "
                    "pooling='cls', or give one pair a row"
                )
            labelled = next_sentence_label != -100
            next_sentence_label = next_sentence_label[labelled]
            pooled = self.model.pooler(outputs.last_hidden_state[labelled].unsqueeze(1))  # (pairs, 1, hidden_size)
        seq_relationship_logits = self.seq_relationship(pooled)
        if labels is None or next_sentence_label is None:
            loss = None
        else:
            next_sentence_loss = nn.functional.cross_entropy(
                seq_relationship_logits.float(), next_sentence_label.view(-1)
            )
            if num_items is not None:
                # Trainer adds up the losses of the accumulated batches: each next-sentence mean takes the share of
                # the masked tokens that its batch holds, so that the sum is again a mean.
                next_sentence_loss = next_sentence_loss * labels.ne(-100).sum() / num_items
            loss = loss + next_sentence_loss
        return ChinchillaForPreTrainingOutput(
            loss=loss,
            prediction_logits=prediction_logits,
            seq_relationship_logits=seq_relationship_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


@auto_docstring(custom_intro="Chinchilla that says whether the second sentence of a pair follows the first.")
class ChinchillaForNextSentencePrediction(ChinchillaPreTrainedModel):
    def __init__(self, config: ChinchillaConfig):
        super().__init__(config)
        self.model = ChinchillaModel(config, add_pooling_layer=True)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> NextSentencePredictorOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            0 where the second sentence follows the first, 1 where it is random.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.seq_relationship(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = fixed_cross_entropy(logits.float(), labels.view(-1), kwargs.get("num_items_in_batch"))
        return NextSentencePredictorOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def sequence_classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: ChinchillaConfig,
    num_items_in_batch: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """
    Cross-entropy, binary cross-entropy or squared error, by `config.problem_type`.

    A missing problem type is inferred from `labels` and noted in the config, as in Transformers' own models, so that
    the pipeline applies the right function to the scores. Unlike `ForSequenceClassificationLoss`, all three are
    normalised by `num_items_in_batch`: Trainer then does not divide by the accumulation steps.

    Args:
        logits: `(batch, num_labels)`.
        labels: `(batch,)` class ids; `(batch, num_labels)` of 0 and 1; or regression targets of either shape.

    Raises:
        ValueError: `labels` have another shape than the problem type asks for.
    """
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif labels.is_floating_point() or (labels.dim() > 1 and labels.shape[-1] > 1):
            config.problem_type = "multi_label_classification"
        else:
            config.problem_type = "single_label_classification"

    logits, labels = logits.float(), labels.to(logits.device)
    num_expected = logits.shape[0] if config.problem_type == "single_label_classification" else logits.numel()
    if labels.numel() != num_expected:
        expected = tuple(logits.shape[:1]) if num_expected == logits.shape[0] else tuple(logits.shape)
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, but problem_type {config.problem_type!r} with "
            f"{config.num_labels} labels expects {expected}: check num_labels and problem_type"
        )
    if config.problem_type == "single_label_classification":
        return fixed_cross_entropy(logits, labels.view(-1).long(), num_items_in_batch)
    loss_function = (
        nn.functional.mse_loss
        if config.problem_type == "regression"
        else nn.functional.binary_cross_entropy_with_logits
    )
    loss = loss_function(logits.view(-1), labels.view(-1).float(), reduction="sum")
    return loss / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


@auto_docstring
class ChinchillaForSequenceClassification(ChinchillaPreTrainedModel):
    def __init__(self, config: ChinchillaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = ChinchillaModel(config, add_pooling_layer=True)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        r"""
        labels (`torch.Tensor` of shape `(batch_size,)` or `(batch_size, num_labels)`, *optional*):
            Class ids, 0/1 for each label, or regression targets, by `config.problem_type`.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = sequence_classification_loss(logits, labels, self.config, kwargs.get("num_items_in_batch"))
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@auto_docstring
class ChinchillaForTokenClassification(ChinchillaPreTrainedModel):
    def __init__(self, config: ChinchillaConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = ChinchillaModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        r"""
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Class id of each token; positions with -100 count for nothing.
        """
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@auto_docstring
class ChinchillaForQuestionAnswering(ChinchillaPreTrainedModel):
    def __init__(self, config: ChinchillaConfig):
        super().__init__(config)
        self.model = ChinchillaModel(config, add_pooling_layer=False)
        self.model.computes_padding = True  # the softmax over all places is part of the loss
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def _custom_pipelines(self) -> dict[str, dict]:
        # The import makes the file one of those that travel.
        from .pipeline_chinchilla_answering import ChinchillaQuestionAnsweringPipeline

        implementation = f"pipeline_chinchilla_answering.{ChinchillaQuestionAnsweringPipeline.__name__}"
        return {"question-answering": {"impl": implementation, "pt": ["AutoModelForQuestionAnswering"]}}

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        outputs = self.model(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, **kwargs)
        logits = self.qa_outputs(outputs.last_hidden_state)  # (batch, length, 2)
        start_logits, end_logits = (scores.squeeze(-1).contiguous() for scores in logits.split(1, dim=-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


@auto_docstring
class ChinchillaForMultipleChoice(ChinchillaPreTrainedModel):
    def __init__(self, config: ChinchillaConfig):
        super().__init__(config)
        self.model = ChinchillaModel(config, add_pooling_layer=True)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        r"""
        input_ids (`torch.LongTensor` of shape `(batch_size, num_choices, sequence_length)`):
            Token ids of every choice.
        attention_mask (`torch.Tensor` of shape `(batch_size, num_choices, sequence_length)`, *optional*):
            1 for tokens, 0 for padding.
        token_type_ids (`torch.LongTensor` of shape `(batch_size, num_choices, sequence_length)`, *optional*):
            0 for the first text of a pair, 1 for the second.
        position_ids (`torch.LongTensor` of shape `(batch_size, num_choices, sequence_length)`, *optional*):
            Positions of the tokens.
        inputs_embeds (`torch.FloatTensor`, *optional*):
            Embeddings in place of `input_ids`, of shape `(batch_size, num_choices, sequence_length, hidden_size)`.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Index of the right choice.
        """
        num_choices = (input_ids if input_ids is not None else inputs_embeds).shape[1]
        flat = [
            None if tensor is None else tensor.flatten(0, 1)
            for tensor in (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        ]
        outputs = self.model(*flat, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output)).view(-1, num_choices)
        loss = None
        if labels is not None:
            loss = fixed_cross_entropy(logits.float(), labels.view(-1), kwargs.get("num_items_in_batch"))
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def _classifier_dropout(config: ChinchillaConfig) -> float:
    return config.hidden_dropout if config.classifier_dropout is None else config.classifier_dropout


# Which class an Auto class builds for a ChinchillaConfig: written into every checkpoint's `auto_map`.
AUTO_CLASSES = {
    "AutoModel": "ChinchillaModel",
    "AutoModelForTextEncoding": "ChinchillaModel",
    "AutoModelForPreTraining": "ChinchillaForPreTraining",
    "AutoModelForMaskedLM": "ChinchillaForMaskedLM",
    "AutoModelForNextSentencePrediction": "ChinchillaForNextSentencePrediction",
    "AutoModelForSequenceClassification": "ChinchillaForSequenceClassification",
    "AutoModelForTokenClassification": "ChinchillaForTokenClassification",
    "AutoModelForQuestionAnswering": "ChinchillaForQuestionAnswering",
    "AutoModelForMultipleChoice": "ChinchillaForMultipleChoice",
}

ChinchillaPreTrainedModel._classes_of_auto_classes = {
    auto_class: f"modeling_chinchilla.{name}" for auto_class, name in AUTO_CLASSES.items()
}

ChinchillaModel.register_for_auto_class("AutoModel")
ChinchillaForPreTraining.register_for_auto_class("AutoModelForPreTraining")
ChinchillaForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
ChinchillaForNextSentencePrediction.register_for_auto_class("AutoModelForNextSentencePrediction")
ChinchillaForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
ChinchillaForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
ChinchillaForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
ChinchillaForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")

__all__ = [
    "ChinchillaForMaskedLM",
    "ChinchillaForMultipleChoice",
    "ChinchillaForNextSentencePrediction",
    "ChinchillaForPreTraining",
    "ChinchillaForPreTrainingOutput",
    "ChinchillaForQuestionAnswering",
    "ChinchillaForSequenceClassification",
    "ChinchillaForTokenClassification",
    "ChinchillaModel",
    "ChinchillaPreTrainedModel",
]

"""
General distillation: a small encoder learns from a large one on raw text, before there is a task.

The teacher is any encoder or decoder of Transformers. It reads every batch along with the student, which learns how
like the texts of a batch are to each other by their vectors (Tung and Mori 2019), and the states of their tokens
(`token_states`). What comes of it is a checkpoint to fine-tune, or to compare texts by.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..data.token_store import hash_documents, is_held_out, whole_text_tokenizer
from .distillation import mean_states, similarities
from .token_states import (
    ATTENTION_WEIGHT,
    COLUMNS,
    HIDDEN_WEIGHT,
    OWN_POSITIONS,
    StateArguments,
    TokenTaughtTrainer,
    TokenTeacher,
)


@dataclass
class EncoderDistillationArguments(StateArguments):
    """What an encoder learns from its teacher."""

    hidden_weight: float = field(default=1.0, metadata=HIDDEN_WEIGHT)
    attention_weight: float = field(default=1.0, metadata=ATTENTION_WEIGHT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.relation_weight or self.of_tokens):
            raise ValueError(
                "relation_weight, hidden_weight, attention_weight are all 0, so there is nothing to learn: give one of "
                "them a weight"
            )


def pieces(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, max_length: int, held_out_share: float = 0.0
) -> Iterator[dict[str, Any]]:
    """
    Texts of at most `max_length` tokens, special ones included, that documents are cut in.

    Args:
        documents: raw text.
        tokenizer: of the student.
        max_length: tokens of a piece.
        held_out_share: share of the documents, by their hash, whose pieces are marked as held out.

    Yields:
        `text` and `held_out`.
    """
    room = max_length - tokenizer.num_special_tokens_to_add()
    whole = whole_text_tokenizer(tokenizer.backend_tokenizer.to_str())  # some cut and pad by themselves
    for document in documents:
        offsets = whole.encode(document, add_special_tokens=False).offsets
        held_out = bool(is_held_out(hash_documents([document]), held_out_share)[0])
        for begin in range(0, len(offsets), room):
            text = document[offsets[begin][0] : offsets[min(begin + room, len(offsets)) - 1][1]].strip()
            if text:
                yield {"text": text, "held_out": held_out}


class EncoderDistillationTrainer(TokenTaughtTrainer):
    """
    A trainer of an encoder whose teacher reads along; release it after the last evaluation.

    Args:
        args, kwargs: of [`TokenTaughtTrainer`]; `label_names` of the arguments has to be `[OWN_POSITIONS]`, so that
            evaluations have a loss.
        distillation: what is learned from the teacher.
    """

    def __init__(self, *args: Any, distillation: EncoderDistillationArguments, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.label_names != [OWN_POSITIONS]:
            raise ValueError(f"label_names is {self.label_names}, expected {[OWN_POSITIONS]}: pass it in the arguments")
        self.distillation = distillation

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        columns = {name: inputs[name] for name in COLUMNS if name in inputs}
        own = {name: values for name, values in inputs.items() if name not in COLUMNS}
        outputs = model(**own, output_hidden_states=True)
        token_teacher = cast(TokenTeacher, self.token_teacher)
        of_teacher = token_teacher.ask(columns)
        loss = token_teacher(outputs, of_teacher, columns)
        if self.distillation.relation_weight:
            masks = own["attention_mask"], columns["teacher_inputs_attention_mask"]
            likeness = [
                similarities(states.hidden_states[-1], mask)
                for states, mask in zip((outputs, of_teacher), masks, strict=True)
            ]
            loss = loss + self.distillation.relation_weight * (likeness[0] - likeness[1]).square().mean()
        return (loss, {"loss": loss}) if return_outputs else loss


@torch.inference_mode()
def similarity_correlation(
    models: Sequence[tuple[PreTrainedModel, PreTrainedTokenizerFast]],
    texts: Sequence[str],
    max_length: int,
    batch_size: int = 64,
) -> float:
    """
    Whether two models find the same texts alike: Spearman's rank correlation of the similarities of all pairs.

    Args:
        models: two, each with its tokenizer.
        texts: at least three.
        max_length: texts are cut at so many tokens.
        batch_size: texts in a step.
    """
    found = []
    for model, tokenizer in models:
        model.eval()
        vectors = []
        for begin in range(0, len(texts), batch_size):
            inputs = tokenizer(
                list(texts[begin : begin + batch_size]),
                truncation=True,
                max_length=min(max_length, tokenizer.model_max_length),
                padding=True,
                return_tensors="pt",
            ).to(model.device)
            states = model(**inputs, output_hidden_states=True).hidden_states[-1]
            vectors.append(nn.functional.normalize(mean_states(states.float(), inputs["attention_mask"]), dim=-1))
        likeness = torch.cat(vectors) @ torch.cat(vectors).T
        found.append(likeness.cpu().numpy()[np.triu_indices(len(texts), k=1)])
    return float(spearmanr(*found).statistic)

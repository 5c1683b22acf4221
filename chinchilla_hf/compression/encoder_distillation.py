"""
General distillation: a small encoder learns from a large one on raw text, before there is a task.

The teacher is any encoder or decoder of Transformers. It reads every batch along with the student, which learns how
like the texts of a batch are to each other by their vectors (Tung and Mori 2019), and the states of their tokens
(`token_states`). What comes of it is a checkpoint to fine-tune, or to compare texts by.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..data.token_store import hash_documents, is_held_out
from ..trainer import FineTuningTrainer
from .distillation import mean_states
from .token_states import COLUMNS, OWN_POSITIONS, TaughtCollator, TokenTeacher


@dataclass
class EncoderDistillationArguments:
    """What an encoder learns from its teacher."""

    _argument_group_name = "Distillation"

    relation_weight: float = field(
        default=1.0, metadata={"help": "Weight of how like the texts of a batch are to each other; 0: leave it out."}
    )
    hidden_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the tokens' hidden states, which learned projections map to the teacher's."},
    )
    attention_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of how the last layer's queries, keys and values relate to each other."},
    )
    relation_heads: int | None = field(
        default=None,
        metadata={"help": "Parts of a vector for --attention_weight. Default: up to the teacher's heads, what fits."},
    )

    def __post_init__(self) -> None:
        weights = ("relation_weight", "hidden_weight", "attention_weight")
        for name in weights:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if not any(getattr(self, name) for name in weights):
            raise ValueError(f"{', '.join(weights)} are all 0, so there is nothing to learn: give one of them a weight")
        if self.relation_heads is not None and self.relation_heads < 1:
            raise ValueError(f"relation_heads is {self.relation_heads}, expected at least 1")


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
    for document in documents:
        offsets = tokenizer.backend_tokenizer.encode(document, add_special_tokens=False).offsets
        held_out = bool(is_held_out(hash_documents([document]), held_out_share)[0])
        for begin in range(0, len(offsets), room):
            text = document[offsets[begin][0] : offsets[min(begin + room, len(offsets)) - 1][1]].strip()
            if text:
                yield {"text": text, "held_out": held_out}


class EncoderDistillationTrainer(FineTuningTrainer):
    """
    A `FineTuningTrainer` of an encoder, on rows with the columns of `token_states.tokens_for_both`.

    Args:
        args, kwargs: of [`FineTuningTrainer`]; `label_names` of the arguments has to be `[OWN_POSITIONS]`, so that
            evaluations have a loss.
        distillation: what is learned from the teacher.
        token_teacher: has the teacher; it is released after the training.
        teacher_tokenizer: of the teacher.
    """

    def __init__(
        self,
        *args: Any,
        distillation: EncoderDistillationArguments,
        token_teacher: TokenTeacher,
        teacher_tokenizer: PreTrainedTokenizerFast,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.label_names != [OWN_POSITIONS]:
            raise ValueError(f"label_names is {self.label_names}, expected {[OWN_POSITIONS]}: pass it in the arguments")
        self.distillation, self.token_teacher = distillation, token_teacher
        self.model_accepts_loss_kwargs = False
        token_teacher.teacher.to(self.args.device)
        # Trained and kept in checkpoints with the student, as long as it is taught.
        self.model.token_projections = token_teacher.projections.to(self.args.device)
        self.data_collator = TaughtCollator(self.processing_class, teacher_tokenizer)

    def release(self) -> None:
        """Leave the student as it is without a teacher, when nothing is to be trained or evaluated any more."""
        self.token_teacher.release()
        del self.model.token_projections

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        names: list[str] = self._signature_columns  # type: ignore[has-type]
        self._signature_columns = [*names, *COLUMNS]

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        columns = {name: inputs[name] for name in COLUMNS if name in inputs}
        own = {name: values for name, values in inputs.items() if name not in COLUMNS}
        outputs = model(**own, output_hidden_states=True)
        of_teacher = self.token_teacher.ask(columns)
        loss = self.token_teacher(outputs, of_teacher, columns)
        if self.distillation.relation_weight:
            masks = own["attention_mask"], columns["teacher_inputs_attention_mask"]
            likeness = [
                similarities(states.hidden_states[-1], mask)
                for states, mask in zip((outputs, of_teacher), masks, strict=True)
            ]
            loss = loss + self.distillation.relation_weight * (likeness[0] - likeness[1]).square().mean()
        return (loss, {"loss": loss}) if return_outputs else loss


def similarities(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """`(batch, batch)`: the cosine of every two texts' vectors, the means of `states`, `(batch, length, width)`."""
    vectors = nn.functional.normalize(mean_states(states.float(), attention_mask), dim=-1)
    return vectors @ vectors.T


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

"""
General distillation: a small encoder learns from a large one on raw text, before there is a task.

The teacher is any encoder or decoder of Transformers. The student learns the vectors of texts, the means of their last
hidden states: those themselves (Reimers and Gurevych 2020, arXiv 2004.09813), and how like the texts of a batch are to
each other (Tung and Mori 2019, arXiv 1907.09682). These are computed once (`teacher_vectors`). Of the states of tokens
(`token_states`), for which the teacher reads every batch along, it learns if they are given a weight. What comes of it
is a checkpoint to fine-tune, or to compare texts by.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerFast

from ..data.token_store import hash_documents, is_held_out, whole_text_tokenizer
from .distillation import mean_states
from .token_states import (
    ATTENTION_WEIGHT,
    COLUMNS,
    HIDDEN_WEIGHT,
    OWN_POSITIONS,
    StateArguments,
    TokenTaughtTrainer,
    TokenTeacher,
)

TEACHER_ROW, TEACHER_VECTORS = "teacher_row", "teacher_vectors"


@dataclass
class EncoderDistillationArguments(StateArguments):
    """What an encoder learns from its teacher."""

    vector_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of how far the vector of a text is from the teacher's, 1 less their cosine. Between widths "
            "that differ, a map is learned along, and dropped at the end."
        },
    )
    hidden_weight: float = field(default=1.0, metadata=HIDDEN_WEIGHT)
    attention_weight: float = field(default=1.0, metadata=ATTENTION_WEIGHT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vector_weight < 0:
            raise ValueError(f"vector_weight is {self.vector_weight}, expected 0 or more")
        if not (self.of_vectors or self.of_tokens):
            raise ValueError(
                "vector_weight, relation_weight, hidden_weight, attention_weight are all 0, so there is nothing to "
                "learn: give one of them a weight"
            )

    @property
    def of_vectors(self) -> bool:
        """Whether the student learns the vectors of texts."""
        return self.vector_weight > 0 or self.relation_weight > 0

    @property
    def label_names(self) -> list[str]:
        """For the arguments of Trainer, so that evaluations have a loss."""
        return [OWN_POSITIONS if self.of_tokens else TEACHER_VECTORS]


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


class VectorCollator:
    """
    Pads the student's inputs, and adds what the teacher gives for these texts: `(batch, width)`, float32.

    Args:
        tokenizer: of the student.
        vectors: see [`teacher_vectors.teacher_vectors`]; the column `TEACHER_ROW` says which of them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vectors: np.ndarray):
        self.own = DataCollatorWithPadding(tokenizer)
        self.vectors = vectors

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        own = self.own([{name: value for name, value in row.items() if name != TEACHER_ROW} for row in rows])
        vectors = self.vectors[[row[TEACHER_ROW] for row in rows]]
        return {**own, TEACHER_VECTORS: torch.from_numpy(np.asarray(vectors, dtype=np.float32))}


class EncoderDistillationTrainer(TokenTaughtTrainer):
    """
    A trainer of an encoder; release it after the last evaluation.

    Args:
        args, kwargs: of [`TokenTaughtTrainer`]; `label_names` of the arguments has to be that of `distillation`.
        distillation: what is learned from the teacher.
        token_teacher: reads along, if tokens are learned.
        vectors: what the teacher gives for the texts, if it does not read along; see [`VectorCollator`].

    Raises:
        ValueError: other `label_names`, or neither or both of teacher and vectors.
    """

    def __init__(
        self,
        *args: Any,
        distillation: EncoderDistillationArguments,
        token_teacher: TokenTeacher | None = None,
        teacher_tokenizer: PreTrainedTokenizerFast | None = None,
        vectors: np.ndarray | None = None,
        **kwargs: Any,
    ) -> None:
        if (token_teacher is None) is (vectors is None):
            raise ValueError("give either token_teacher, which reads along, or vectors, which it gave before")
        if vectors is not None:
            kwargs["data_collator"] = VectorCollator(kwargs["processing_class"], vectors)
        super().__init__(*args, token_teacher=token_teacher, teacher_tokenizer=teacher_tokenizer, **kwargs)
        if self.label_names != distillation.label_names:
            raise ValueError(
                f"label_names is {self.label_names}, expected {distillation.label_names}: pass it in the arguments"
            )
        self.distillation = distillation
        width = token_teacher.teacher.config.hidden_size if token_teacher is not None else vectors.shape[1]  # type: ignore[union-attr]
        own_width = self.model.config.hidden_size
        if distillation.vector_weight and own_width != width:
            # Trained and kept in checkpoints with the student, as long as it is taught.
            self.model.vector_projection = nn.Linear(own_width, width).to(self.args.device)

    def release(self) -> None:
        super().release()
        if hasattr(self.model, "vector_projection"):
            del self.model.vector_projection

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns.append(TEACHER_ROW)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        columns = {name: inputs[name] for name in COLUMNS if name in inputs}
        own = {name: values for name, values in inputs.items() if name not in (*COLUMNS, TEACHER_VECTORS)}
        outputs = model(**own, output_hidden_states=self.token_teacher is not None)
        loss = outputs.last_hidden_state.new_zeros((), dtype=torch.float32)
        if self.token_teacher is not None:
            of_teacher = self.token_teacher.ask(columns)
            loss = loss + self.token_teacher(outputs, of_teacher, columns)
        if self.distillation.of_vectors:
            vectors = mean_states(outputs.last_hidden_state.float(), own["attention_mask"])
            if self.token_teacher is None:
                theirs = inputs[TEACHER_VECTORS]
            else:
                theirs = mean_states(of_teacher.last_hidden_state.float(), columns["teacher_inputs_attention_mask"])
            mapped = getattr(self.model, "vector_projection", nn.Identity())(vectors)
            loss = loss + vector_loss(
                vectors, mapped, theirs, self.distillation.vector_weight, self.distillation.relation_weight
            )
        return (loss, {"loss": loss}) if return_outputs else loss


def vector_loss(
    vectors: torch.Tensor,
    mapped: torch.Tensor,
    of_teacher: torch.Tensor,
    vector_weight: float,
    relation_weight: float,
) -> torch.Tensor:
    """
    How far the vectors of a batch are from the teacher's, in any length.

    Args:
        vectors: the student's, `(batch, width)`.
        mapped: the same in the teacher's width, `(batch, teacher_width)`; not looked at without `vector_weight`.
        of_teacher: `(batch, teacher_width)`.
        vector_weight: of the mean of 1 less the cosine of both vectors of a text.
        relation_weight: of the mean squared difference of the cosines of every two texts.
    """
    vectors, mapped, theirs = (
        nn.functional.normalize(values.float(), dim=-1) for values in (vectors, mapped, of_teacher)
    )
    loss = theirs.new_zeros(())
    if vector_weight:
        loss = loss + vector_weight * (1 - (mapped * theirs).sum(dim=-1)).mean()
    if relation_weight:
        loss = loss + relation_weight * (vectors @ vectors.T - theirs @ theirs.T).square().mean()
    return loss


@torch.inference_mode()
def text_vectors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    max_length: int,
    batch_size: int = 64,
) -> torch.Tensor:
    """
    `(texts, hidden_size)` on the CPU: the mean of the last hidden states of each text, of length 1.

    Args:
        model: an encoder or decoder; it is in evaluation mode afterwards.
        tokenizer: of the model.
        texts: any number.
        max_length: texts are cut at so many tokens.
        batch_size: texts in a step.
    """
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
        states = model(**inputs).last_hidden_state
        vectors.append(nn.functional.normalize(mean_states(states.float(), inputs["attention_mask"]), dim=-1).cpu())
    return torch.cat(vectors)


def similarity_correlation(vectors: torch.Tensor, others: torch.Tensor) -> float:
    """
    Whether two models find the same texts alike: Spearman's rank correlation of the similarities of all pairs.

    Args:
        vectors, others: of the same texts, at least three, by [`text_vectors`]; `(texts, width)` of any two widths.
    """
    pairs = np.triu_indices(len(vectors), k=1)
    return float(spearmanr(*((values @ values.T).numpy()[pairs] for values in (vectors, others))).statistic)

"""
What a student learns of the inside of its teacher, token by token: its hidden states, through learned projections (Jiao
et al. 2020, TinyBERT, arXiv 1909.10351), and how its queries, keys and values relate to each other (Wang et al. 2021,
MiniLMv2, arXiv 2012.15828), which needs neither widths nor heads to be the same.

Teacher and student may have tokenizers of their own: compared are the tokens that stand for the same characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import BatchEncoding, DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import ModelOutput

from ..trainer import FineTuningTrainer

OWN_POSITIONS, TEACHER_POSITIONS = "own_positions", "teacher_positions"
TEACHER_INPUTS = "teacher_inputs_"  # before the names of what the teacher reads
COLUMNS = (
    OWN_POSITIONS,
    TEACHER_POSITIONS,
    *(f"{TEACHER_INPUTS}{name}" for name in ("input_ids", "token_type_ids", "attention_mask")),
)
# What Transformers calls the projections of attention, as modules of their own and as one, with the three one after the
# other.
SEPARATE = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))
JOINED = ("Wqkv", "c_attn")


HIDDEN_WEIGHT = {"help": "Weight of the tokens' hidden states, which learned projections map to the teacher's."}
ATTENTION_WEIGHT = {"help": "Weight of how the last layer's queries, keys and values relate to each other."}


@dataclass
class StateArguments:
    """What a student learns of its teacher's states, those of texts and those of tokens."""

    _argument_group_name = "Distillation"

    relation_weight: float = field(
        default=1.0, metadata={"help": "Weight of how like the texts of a batch are to each other; 0: leave it out."}
    )
    hidden_weight: float = field(default=0.0, metadata=HIDDEN_WEIGHT)
    attention_weight: float = field(default=0.0, metadata=ATTENTION_WEIGHT)
    relation_heads: int | None = field(
        default=None,
        metadata={"help": "Parts of a vector for --attention_weight. Default: up to the teacher's heads, what fits."},
    )

    def __post_init__(self) -> None:
        for name in ("relation_weight", "hidden_weight", "attention_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.relation_heads is not None and self.relation_heads < 1:
            raise ValueError(f"relation_heads is {self.relation_heads}, expected at least 1")

    @property
    def of_tokens(self) -> bool:
        """Whether the student learns the teacher's tokens, for which the teacher reads along."""
        return self.hidden_weight > 0 or self.attention_weight > 0

    def token_teacher(self, teacher: PreTrainedModel, student: PreTrainedModel) -> "TokenTeacher":
        """What reads along, and gives the loss of tokens; raises what it raises."""
        return TokenTeacher(teacher, student, self.hidden_weight, self.attention_weight, self.relation_heads)


def align_tokens(own: BatchEncoding, of_teacher: BatchEncoding, row: int) -> tuple[list[int], list[int]]:
    """
    Positions of the tokens that stand for the same characters of a text, in two encodings of it.

    Special tokens stand for none. Where several tokens share the same characters, none of them counts.

    Args:
        own, of_teacher: of the same texts, by tokenizers that say which characters a token is of.
        row: which of the texts.
    """
    places = []
    for encoded in (own, of_teacher):
        encoding = encoded[row]
        spans: dict[tuple[int, int, int], int] = {}
        doubled = set()
        for position, (sequence, (begin, end)) in enumerate(zip(encoding.sequence_ids, encoding.offsets, strict=True)):
            if sequence is None or begin == end:
                continue
            span = (sequence, begin, end)
            if span in spans:
                doubled.add(span)
            spans[span] = position
        places.append({span: position for span, position in spans.items() if span not in doubled})
    shared = [(position, places[1][span]) for span, position in places[0].items() if span in places[1]]
    return [own for own, _ in shared], [theirs for _, theirs in shared]


def tokens_for_both(
    texts: Sequence[str],
    text_pairs: Sequence[str] | None,
    tokenizer: PreTrainedTokenizerFast,
    teacher_tokenizer: PreTrainedTokenizerFast,
    max_length: int,
) -> dict[str, list]:
    """
    Columns of what the teacher reads of `texts`, and of where its tokens are those of the student.
    """
    own = tokenizer(texts, text_pairs, truncation=True, max_length=max_length)
    theirs = teacher_tokenizer(
        texts, text_pairs, truncation=True, max_length=min(max_length, teacher_tokenizer.model_max_length)
    )
    pairs = [align_tokens(own, theirs, row) for row in range(len(texts))]
    columns = {f"{TEACHER_INPUTS}{name}": values for name, values in theirs.items()}
    return columns | {OWN_POSITIONS: [own for own, _ in pairs], TEACHER_POSITIONS: [theirs for _, theirs in pairs]}


class TaughtCollator:
    """
    Pads the student's inputs, the teacher's inputs and the positions of [`tokens_for_both`], these by -1.

    Args:
        tokenizer: of the student.
        teacher_tokenizer: of the teacher.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, teacher_tokenizer: PreTrainedTokenizerFast):
        self.own = DataCollatorWithPadding(tokenizer)
        self.of_teacher = DataCollatorWithPadding(teacher_tokenizer)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = dict(self.own([{name: row[name] for name in row if name not in COLUMNS} for row in rows]))
        if OWN_POSITIONS not in rows[0]:  # to evaluate on
            return batch
        names = [name for name in rows[0] if name.startswith(TEACHER_INPUTS)]
        inputs = self.of_teacher([{name.removeprefix(TEACHER_INPUTS): row[name] for name in names} for row in rows])
        batch |= {f"{TEACHER_INPUTS}{name}": values for name, values in inputs.items()}
        for name in (OWN_POSITIONS, TEACHER_POSITIONS):
            positions = [torch.as_tensor(row[name], dtype=torch.long) for row in rows]
            batch[name] = nn.utils.rnn.pad_sequence(positions, batch_first=True, padding_value=-1)
        return batch


class AttentionInputs:
    """
    Keeps the queries, keys and values of the last attention layer of a model, at every forward.

    Args:
        model: any encoder or decoder whose attention has the names that Transformers uses.

    Raises:
        ValueError: it has no such modules.
    """

    def __init__(self, model: PreTrainedModel):
        modules = dict(model.named_modules())
        found: list[list[nn.Module]] = []
        for name in modules:
            parent, _, last = name.rpartition(".")
            for names in SEPARATE:
                siblings = [f"{parent}.{sibling}" for sibling in names]
                if last == names[0] and all(sibling in modules for sibling in siblings):
                    found.append([modules[sibling] for sibling in siblings])
            if last in JOINED:
                found.append([modules[name]])
        if not found:
            raise ValueError(
                f"a {type(model).__name__} has no projections of attention that are known here: set attention_weight "
                "to 0"
            )
        self._parts: dict[int, torch.Tensor] = {}
        self._count = len(found[-1])
        # nf: of GPT-2's Conv1D.
        sizes = [int(getattr(module, "out_features", 0) or getattr(module, "nf", 0)) for module in found[-1]]
        self.widths = [sizes[0] // 3] * 3 if self._count == 1 else sizes
        self.handles = [
            module.register_forward_hook(lambda _, __, output, i=i: self._keep(i, output))
            for i, module in enumerate(found[-1])
        ]

    def _keep(self, index: int, output: torch.Tensor) -> None:
        self._parts[index] = output

    def take(self) -> list[torch.Tensor]:
        """Queries, keys and values of the last forward, each `(batch, length, width)`."""
        parts = [self._parts.pop(i) for i in range(self._count)]
        return list(parts[0].chunk(3, dim=-1)) if self._count == 1 else parts

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def relations_loss(own: torch.Tensor, of_teacher: torch.Tensor, present: torch.Tensor, heads: int) -> torch.Tensor:
    """
    How far the student's relations are from the teacher's: of every token and head, the Kullback-Leibler divergence of
    the softmax of its scaled products with all tokens; their mean.

    Args:
        own, of_teacher: `(batch, tokens, width)`, of widths of their own that `heads` divides.
        present: `(batch, tokens)`, where there is a token.
        heads: parts that a vector is cut in.
    """
    hidden = ~present[:, None, None, :]

    def relations(states: torch.Tensor) -> torch.Tensor:
        parts = states.float().unflatten(-1, (heads, -1)).transpose(1, 2)
        products = parts @ parts.transpose(-1, -2) / parts.shape[-1] ** 0.5
        return products.masked_fill(hidden, torch.finfo(products.dtype).min).log_softmax(dim=-1)

    divergence = nn.functional.kl_div(relations(own), relations(of_teacher), reduction="none", log_target=True)
    return divergence.masked_fill(hidden, 0).sum(dim=-1).mean(dim=1)[present].mean()


class TokenTeacher(nn.Module):
    """
    Gives the loss of a student's tokens. The teacher reads every batch anew: its states are far larger than the texts.

    Its parameters are the projections of the student's hidden states: they are trained with the student, and not needed
    afterwards.

    Args:
        teacher: stays as it is.
        student: may be of another width, depth and vocabulary.
        hidden_weight: of the squared difference of hidden states, those of a token normalised to mean 0 and variance 1.
            Layers go with those of the teacher at the same share of the depth, embeddings with embeddings.
        attention_weight: of [`relations_loss`], for queries, keys and values of the last layer of both.
        relation_heads: parts that a vector is cut in for the relations; as many as fit, up to the teacher's heads, if
            not given.

    Raises:
        ValueError: a width that `relation_heads` does not divide, or attention of an unknown kind.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        hidden_weight: float,
        attention_weight: float,
        relation_heads: int | None = None,
    ):
        super().__init__()
        self.hidden_weight, self.attention_weight = hidden_weight, attention_weight
        self._teacher = [teacher.eval().requires_grad_(False)]  # in a list, so that it is no part of this module
        config, of_teacher = student.config, teacher.config
        depth = config.num_hidden_layers
        self.layers = [round(i * of_teacher.num_hidden_layers / depth) for i in range(depth + 1)]
        layers = range(depth + 1 if hidden_weight else 0)
        self.projections = nn.ModuleList(nn.Linear(config.hidden_size, of_teacher.hidden_size) for _ in layers)
        self.attention = [AttentionInputs(model) for model in (student, teacher)] if attention_weight else []
        widths = [width for kept in self.attention for width in kept.widths]
        if relation_heads is None:
            fits = (n for n in range(of_teacher.num_attention_heads, 0, -1) if not any(width % n for width in widths))
            relation_heads = next(fits)
        elif any(width % relation_heads for width in widths):
            raise ValueError(
                f"relation_heads is {relation_heads}, but must divide the widths of queries, keys and values, "
                f"which are {self.attention[0].widths} of the student and {self.attention[1].widths} of the teacher"
            )
        self.relation_heads = relation_heads

    @property
    def teacher(self) -> PreTrainedModel:
        return self._teacher[0]

    def ask(self, columns: dict[str, torch.Tensor]) -> ModelOutput:
        """What the teacher gives for a batch with the columns of [`tokens_for_both`], with hidden states."""
        names = [name for name in columns if name.startswith(TEACHER_INPUTS)]
        with torch.no_grad():
            inputs = {name.removeprefix(TEACHER_INPUTS): columns[name] for name in names}
            return self.teacher(**inputs, output_hidden_states=True)

    def forward(self, outputs: ModelOutput, of_teacher: ModelOutput, columns: dict[str, torch.Tensor]) -> torch.Tensor:
        """
        The loss of a batch.

        Args:
            outputs: of the student's last forward, with hidden states.
            of_teacher: of [`TokenTeacher.ask`].
            columns: of [`tokens_for_both`], as [`TaughtCollator`] puts them together.
        """
        own_positions, positions = columns[OWN_POSITIONS], columns[TEACHER_POSITIONS]
        present = own_positions >= 0
        loss = outputs.hidden_states[-1].new_zeros((), dtype=torch.float32)
        if not present.any():
            return loss

        def at(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
            index = places.clamp(min=0).unsqueeze(-1).expand(-1, -1, states.shape[-1])
            return states.gather(1, index)

        for i, projection in enumerate(self.projections):
            own = projection(at(outputs.hidden_states[i], own_positions)[present]).float()
            theirs = at(of_teacher.hidden_states[self.layers[i]], positions)[present].float()
            theirs = nn.functional.layer_norm(theirs, theirs.shape[-1:])
            loss = loss + self.hidden_weight / len(self.projections) * nn.functional.mse_loss(own, theirs)
        if self.attention:
            for own, theirs in zip(self.attention[0].take(), self.attention[1].take(), strict=True):
                relations = relations_loss(at(own, own_positions), at(theirs, positions), present, self.relation_heads)
                loss = loss + self.attention_weight / 3 * relations
        return loss

    def release(self) -> None:
        """Leave both models as they were."""
        for kept in self.attention:
            kept.remove()


class TokenTaughtTrainer(FineTuningTrainer):
    """
    A `FineTuningTrainer` that has a teacher read along, on rows with the columns of [`tokens_for_both`].

    Args:
        args, kwargs: of [`FineTuningTrainer`].
        token_teacher: has the teacher; `None` if none reads along.
        teacher_tokenizer: of the teacher.
    """

    def __init__(
        self,
        *args: Any,
        token_teacher: TokenTeacher | None,
        teacher_tokenizer: PreTrainedTokenizerFast | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # means over rows: Trainer divides them where it accumulates
        self.token_teacher = token_teacher
        if token_teacher is not None:
            token_teacher.teacher.to(self.args.device)
            # Trained and kept in checkpoints with the student, as long as it is taught.
            self.model.token_projections = token_teacher.projections.to(self.args.device)
            self.data_collator = TaughtCollator(self.processing_class, teacher_tokenizer)

    def release(self) -> None:
        """Leave student and teacher as they were, when nothing is to be taught any more."""
        if self.token_teacher is not None and hasattr(self.model, "token_projections"):
            self.token_teacher.release()
            del self.model.token_projections

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        names: list[str] = self._signature_columns  # type: ignore[has-type]
        self._signature_columns = [*names, *COLUMNS]

"""Where a student starts: with a part of its teacher, at a checkpoint, or from scratch; what the scripts share."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from ..conversion import load_or_convert
from ..model_start import ScratchArguments, StartArguments, start_model
from ..modeling_chinchilla import ChinchillaPreTrainedModel
from ..recipes import resolve_location
from ..transfer import TransferArguments
from .distillation import student_from_teacher


@dataclass
class TeacherArguments:
    """Who teaches, and what the student has of it."""

    _argument_group_name = "Teacher"

    teacher: str = field(
        metadata={"help": "A model of Transformers for the same task: a folder, a Hub name or package://NAME/PATH."}
    )
    teacher_layers: list[int] | None = field(
        default=None, metadata={"help": "Layers of the teacher that the student begins with, from 0."}
    )
    intermediate_share: float = field(
        default=1.0, metadata={"help": "Share of the neurons of these layers that the student has: the strongest."}
    )
    teacher_tokens: int | None = field(
        default=None,
        metadata={
            "help": "How many of the teacher's tokens a student with its layers has, at most; the rest is written by "
            "smaller ones. Default: for a task those that its texts need, else all."
        },
    )
    teacher_tokens_by: str = field(
        default="texts",
        metadata={
            "help": "Which tokens these are: the most frequent of the texts, or also the first of the teacher's "
            "vocabulary, which a BERT has by frequency.",
            "choices": ["texts", "both"],
        },
    )
    teacher_cache_dir: str | None = field(
        default=None, metadata={"help": "Where what the teacher says is kept. Default: Hugging Face's cache."}
    )

    def load(
        self, own_class: type[ChinchillaPreTrainedModel], auto_class: Any
    ) -> tuple[PreTrainedTokenizerFast, PreTrainedModel]:
        """
        The teacher and its tokenizer.

        Args:
            own_class: of the teacher if the student is to begin with its layers.
            auto_class: loads it otherwise.

        Raises:
            OSError: no whole checkpoint is there.
        """
        location = resolve_location(self.teacher)
        try:
            tokenizer = AutoTokenizer.from_pretrained(location)
            if self.teacher_layers is None:
                teacher = auto_class.from_pretrained(location)
            else:
                teacher = load_or_convert(location, own_class)
        except (OSError, ValueError) as error:
            raise OSError(f"--teacher {self.teacher} cannot be loaded: {error}") from error
        if tokenizer.pad_token is None:  # of decoders, whose texts in a batch are padded behind their end
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer, teacher.float()


def start_student(
    own_class: type[ChinchillaPreTrainedModel],
    texts: Callable[[], Iterable[str]],
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    options: TeacherArguments,
    start: StartArguments,
    shape: ScratchArguments,
    *,
    trims: bool = True,
    change: Callable[[Any], None] | None = None,
    **config_fields: Any,
) -> tuple[PreTrainedTokenizerFast, Any, str]:
    """
    The tokenizer of the student, the student before it learns, and a line that says where they come from.

    Args:
        own_class: of the student.
        texts: gives those that a tokenizer is trained on or trimmed to.
        teacher, tokenizer, options: see [`TeacherArguments.load`].
        start: the checkpoint, and what to change of it.
        shape: of a student from scratch.
        trims: leave out the teacher's tokens that the texts do not need, even if no number of them is given.
        change: is made to a part of the teacher.
        config_fields: of the student, such as `id2label`.

    Raises:
        ValueError: options that do not go together, or do not fit the checkpoint.
        OSError: there is no such checkpoint, or its weights are damaged.
    """
    if options.teacher_tokens_by != "texts" and options.teacher_tokens is None:
        raise ValueError("--teacher_tokens_by says which --teacher_tokens: give their number, or leave it out")
    if options.teacher_layers is None:
        if options.intermediate_share != 1:
            raise ValueError("--intermediate_share is of the teacher's layers: give --teacher_layers, or leave it out")
        if options.teacher_tokens is not None:
            raise ValueError("--teacher_tokens go with the teacher's layers: give --teacher_layers, or leave it out")
        return start_model(own_class, texts, start, shape, TransferArguments(), **config_fields)
    for option in dataclasses.fields(shape):
        if getattr(shape, option.name) != option.default:
            raise ValueError(f"--{option.name} is of a student from scratch, but --teacher_layers are given")
    if start.model is not None:
        raise ValueError("--model and --teacher_layers both say where the student starts: leave out one of them")
    assert isinstance(teacher, ChinchillaPreTrainedModel), "it was loaded as one of ours"
    trims = trims or options.teacher_tokens is not None
    student, own_tokenizer = student_from_teacher(
        teacher,
        tokenizer,
        texts() if trims else None,
        options.teacher_layers,
        options.intermediate_share,
        max_size=options.teacher_tokens,
        order=options.teacher_tokens_by,
    )
    if change is not None:
        change(student)
    for name, value in {**config_fields, **start.config_fields()}.items():
        setattr(student.config, name, value)
    origin = f"from the teacher's layers {', '.join(map(str, options.teacher_layers))}"
    if trims:
        origin += f", with {len(own_tokenizer):,} of its {len(tokenizer):,} tokens"
    # Dropout is read when a module is made.
    student = own_class.from_pretrained(None, config=student.config, state_dict=student.state_dict())
    return own_tokenizer, student, origin

"""
Knowledge distillation: a small model learns what a large one says, which is more than the labels say.

A teacher is any text classifier of Transformers. What it gives for a text, its scores and a vector, is computed once
and kept; texts without a label can be added, and made of those that there are (`augment`). The student learns the
scores, softened (Hinton et al. 2015, arXiv 1503.02531), the labels, and how like the texts of a batch are to each other
(Tung and Mori 2019, arXiv 1907.09682), which needs no widths to be the same. It may learn the states of the teacher's
tokens, too (`token_states`).

A student may begin with the teacher's own layers: see [`student_from_teacher`].
"""

import copy
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Value
from safetensors.numpy import load_file, save_file
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.trainer_utils import PredictionOutput

from ..classification import tokenize
from ..data.labelled import LabelledData
from ..data.token_store import whole_text_tokenizer
from ..metrics import check_problem_type, predictions_from_logits, text_metrics
from ..modeling_chinchilla import ChinchillaPreTrainedModel
from .pruning import BlockParts, keep_layers, magnitude_scores, prune
from .token_states import (
    COLUMNS,
    OWN_POSITIONS,
    StateArguments,
    TokenTaughtTrainer,
    TokenTeacher,
    tokens_for_both,
)
from .vocabulary import trim_vocabulary

logger = logging.getLogger(__name__)

DEFAULT_CACHE = Path(datasets.config.HF_CACHE_HOME) / "chinchilla_hf" / "teachers"
UNLABELLED = -100
Student = TypeVar("Student", bound=ChinchillaPreTrainedModel)


@dataclass
class DistillationArguments(StateArguments):
    """What a student learns from its teacher."""

    temperature: float = field(
        default=2.0, metadata={"help": "Divides the scores of both: above 1, what is unlikely counts more."}
    )
    label_weight: float = field(
        default=0.1, metadata={"help": "Share of the labels in the loss, 0 to 1; the teacher's scores have the rest."}
    )
    augmented_copies: int = field(
        default=10, metadata={"help": "Texts that are made of every training text, for the teacher to label."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}, expected above 0")
        if not 0 <= self.label_weight <= 1:
            raise ValueError(f"label_weight is {self.label_weight}, expected a share from 0 to 1")
        if self.augmented_copies < 0:
            raise ValueError(f"augmented_copies is {self.augmented_copies}, expected 0 or more")


@dataclasses.dataclass(frozen=True)
class TeacherOutputs:
    """
    What a teacher gives for some texts.

    Args:
        logits: `(texts, labels)`, float32, the labels in the order that was asked for.
        vectors: `(texts, hidden_size)`, float32, of length 1: the mean of the last hidden states.
    """

    logits: np.ndarray
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.logits)


def label_columns(teacher: PreTrainedModel, label_names: Sequence[str], problem_type: str) -> list[int]:
    """
    Where the labels of the data stand among those of the teacher.

    Raises:
        ValueError: the teacher is no classifier of these labels.
    """
    check_problem_type(problem_type)
    theirs = getattr(teacher.config, "id2label", None) or {}
    if problem_type == "regression":
        if teacher.config.num_labels != len(label_names):
            raise ValueError(
                f"the classifier gives {teacher.config.num_labels} numbers, but the data have {len(label_names)}: "
                "choose one that was trained on this task"
            )
        return list(range(len(label_names)))
    places = {name: int(place) for place, name in theirs.items()}
    missing = [name for name in label_names if name not in places]
    if missing or len(places) != len(label_names):
        shown = ", ".join(map(repr, missing[:5] or sorted(set(places) - set(label_names))[:5]))
        raise ValueError(
            f"the classifier knows {len(places)} labels and the data have {len(label_names)}; only one of them has "
            f"{shown}: choose one that was trained on these labels"
        )
    return [places[name] for name in label_names]


def cache_key(
    teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], facts: Sequence[Any]
) -> str:
    """32 hexadecimal digits that tell what `teacher` gives for `texts` from all else; `facts` say how it is asked."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    # How it cuts and pads at the moment is no matter.
    digest.update(whole_text_tokenizer(tokenizer.backend_tokenizer.to_str()).to_str().encode())
    for name, tensor in teacher.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:32]


def teacher_outputs(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    text_pairs: Sequence[str] | None,
    columns: Sequence[int],
    *,
    max_length: int = 512,
    batch_size: int = 64,
    bf16: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    show_progress: bool = True,
) -> TeacherOutputs:
    """
    What `teacher` gives for `texts`, computed once: the next call with the same weights and texts reads it.

    Args:
        teacher: a text classifier, on the device to work on.
        tokenizer: of the teacher.
        texts: to be read by it.
        text_pairs: the second texts, of pairs.
        columns: see [`label_columns`].
        max_length: texts are cut at so many tokens.
        batch_size: texts in a step.
        bf16: under bfloat16 autocast.
        cache_dir: where outputs are kept; `chinchilla_hf/teachers` in the cache of Hugging Face if not given.
        show_progress: with a bar.
    """
    facts = [list(columns), max_length, bf16, text_pairs is not None]
    key = cache_key(teacher, tokenizer, (*texts, *(text_pairs or ())), facts)
    path = Path(cache_dir or DEFAULT_CACHE) / f"{key}.safetensors"
    if path.is_file():
        logger.info("the teacher's outputs are in %s", path)
        return TeacherOutputs(**load_file(path))

    teacher.eval()
    device = teacher.device
    order = np.argsort([-len(text) for text in texts], kind="stable")  # the longest first: what fails, fails early
    logits = np.empty((len(texts), len(columns)), dtype=np.float32)
    vectors: np.ndarray | None = None
    bar = tqdm(total=len(texts), unit="text", desc="Asking the teacher", disable=not show_progress)
    with bar, torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for begin in range(0, len(texts), batch_size):
            chosen = order[begin : begin + batch_size]
            pairs = None if text_pairs is None else [text_pairs[i] for i in chosen]
            inputs = tokenizer(
                [texts[i] for i in chosen],
                pairs,
                truncation=True,
                max_length=max_length,
                padding=True,
                return_tensors="pt",
            ).to(device)
            outputs = teacher(**inputs, output_hidden_states=True)
            pooled = mean_states(outputs.hidden_states[-1].float(), inputs["attention_mask"])
            if vectors is None:
                vectors = np.empty((len(texts), pooled.shape[1]), dtype=np.float32)
            logits[chosen] = outputs.logits[:, columns].float().cpu().numpy()
            vectors[chosen] = nn.functional.normalize(pooled, dim=-1).cpu().numpy()
            bar.update(len(chosen))
    assert vectors is not None, "there are texts"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({"logits": logits, "vectors": vectors}, temporary)
    temporary.replace(path)
    return TeacherOutputs(logits, vectors)


def mean_states(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """`(batch, hidden_size)`: the mean of `states`, `(batch, length, hidden_size)`, over what is no padding."""
    kept = attention_mask.unsqueeze(-1).to(states.dtype)
    return (states * kept).sum(dim=1) / kept.sum(dim=1)


def similarities(states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """`(batch, batch)`: the cosine of every two texts' vectors, the means of `states`, `(batch, length, width)`."""
    vectors = nn.functional.normalize(mean_states(states.float(), attention_mask), dim=-1)
    return vectors @ vectors.T


def augment(texts: Sequence[str], copies: int, seed: int = 0) -> Iterator[str]:
    """
    Texts much like `texts`, for a teacher to label (Tang et al. 2019, arXiv 1903.12136): in every copy, each word is
    left out or becomes a word of another text, each with a chance of a tenth, and one copy in four is a span of words.

    Of a text without spaces there are no words, and its copies are itself.

    Args:
        texts: of the task.
        copies: of every text; those that equal a text before them are left out.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    words = [word for text in texts for word in text.split()]
    seen = set(texts)
    for _ in range(copies):
        for text in texts:
            chosen = []
            for word in text.split():
                fate = rng.random()
                if fate >= 0.1:
                    chosen.append(word if fate >= 0.2 else words[rng.integers(len(words))])
            if len(chosen) > 3 and rng.random() < 0.25:
                length = int(rng.integers(2, len(chosen)))
                begin = int(rng.integers(len(chosen) - length + 1))
                chosen = chosen[begin : begin + length]
            made = " ".join(chosen)
            if made and made not in seen:
                seen.add(made)
                yield made


def with_teacher(rows: Dataset, outputs: TeacherOutputs) -> Dataset:
    """`rows` with columns of what the teacher gives for them: `teacher_logits` and `teacher_vectors`."""
    columns = {}
    for name, values in (("teacher_logits", outputs.logits), ("teacher_vectors", outputs.vectors)):
        flat = pa.array(values.reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return datasets.concatenate_datasets([rows, Dataset(pa.table(columns))], axis=1)


def taught_splits(
    data: LabelledData,
    teacher: PreTrainedModel,
    teacher_tokenizer: PreTrainedTokenizerFast,
    tokenizer: PreTrainedTokenizerFast,
    columns: Sequence[int],
    options: DistillationArguments,
    *,
    max_length: int,
    seed: int = 0,
    bf16: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    show_progress: bool = True,
) -> tuple[DatasetDict, TeacherOutputs]:
    """
    Token ids of all splits, the training rows with what the teacher says, and what it says of the test texts.

    Args:
        data: texts and labels; to the training texts, those that are made of them are added.
        teacher, teacher_tokenizer, columns, bf16, cache_dir, show_progress: as for [`teacher_outputs`].
        tokenizer: of the student.
        options: how many texts to make of each, and whether the teacher is to read along.
        max_length: of a text, for both.
        seed: of the texts that are made.
    """
    train, pairs = data.splits["train"], "text_pair" in data.splits["train"].column_names
    if options.augmented_copies and pairs:
        logger.warning("texts come in pairs, of which no others are made: augmented_copies is left out")
    elif options.augmented_copies:
        made = list(augment(train["text"][:], options.augmented_copies, seed))
        if isinstance(train.features["labels"], ClassLabel):
            train = train.cast_column("labels", Value("int64"))  # which -100 may be, and a class may not
        train = datasets.concatenate_datasets([train, _without_labels(made, train, data.problem_type)])
    of_train, of_test = (
        teacher_outputs(
            teacher,
            teacher_tokenizer,
            rows["text"][:],
            rows["text_pair"][:] if pairs else None,
            columns,
            max_length=min(max_length, teacher_tokenizer.model_max_length),
            bf16=bf16,
            cache_dir=cache_dir,
            show_progress=show_progress,
        )
        for rows in (train, data.splits["test"])
    )
    splits = tokenize(DatasetDict({**data.splits, "train": train}), tokenizer, max_length)
    splits["train"] = with_teacher(splits["train"], of_train)
    if options.of_tokens:

        def align(rows: dict[str, list]) -> dict[str, list]:
            return tokens_for_both(rows["text"], rows.get("text_pair"), tokenizer, teacher_tokenizer, max_length)

        names = [name for name in train.column_names if name not in ("text", "text_pair")]
        columns_of_tokens = train.remove_columns(names).map(
            align, batched=True, remove_columns=["text", "text_pair"] if pairs else ["text"], desc="Aligning tokens"
        )
        if not any(columns_of_tokens[OWN_POSITIONS]):
            raise ValueError(
                "no token of the student's tokenizer stands for the same characters as one of the teacher's: leave out "
                "hidden_weight and attention_weight"
            )
        splits["train"] = datasets.concatenate_datasets([splits["train"], columns_of_tokens], axis=1)
    return splits, of_test


def _without_labels(texts: list[str], like: Dataset, problem_type: str) -> Dataset:
    """Rows of `texts` to stand beside those of `like`, whose labels say that there are none."""
    none = float("nan") if problem_type == "regression" else UNLABELLED
    example = like[0]["labels"]
    labels = [[none] * len(example) if isinstance(example, list) else none] * len(texts)
    return Dataset.from_dict({"text": texts, "labels": labels}, features=like.features)


def scores_of_teacher(outputs: TeacherOutputs, test: PredictionOutput, data: LabelledData) -> dict[str, Any]:
    """For [`RunRecord`]: how the teacher does on the test texts, and of how many both say the same class."""
    says = predictions_from_logits(outputs.logits, data.problem_type)
    labels = np.asarray(data.splits["test"]["labels"][:])
    scores: dict[str, Any] = {"test": text_metrics(says, labels, data.problem_type)}
    if data.problem_type == "single_label_classification":
        scores["agreement"] = float(np.mean(predictions_from_logits(test.predictions, data.problem_type) == says))
    return scores


class DistillationTrainer(TokenTaughtTrainer):
    """
    A `FineTuningTrainer` that trains on rows of [`with_teacher`]; it evaluates as it does.

    Rows without a label (of classes -100, of several labels -100 for each, of numbers NaN) have only what the teacher
    says.

    Args:
        args, kwargs: of [`FineTuningTrainer`].
        distillation: what is learned from the teacher.
        token_teacher: of these arguments, if they are of tokens; it is released after the training.
        teacher_tokenizer: of the token teacher.
    """

    def __init__(
        self,
        *args: Any,
        distillation: DistillationArguments,
        token_teacher: TokenTeacher | None = None,
        teacher_tokenizer: PreTrainedTokenizerFast | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, token_teacher=token_teacher, teacher_tokenizer=teacher_tokenizer, **kwargs)
        self.distillation = distillation

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            self.release()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += ["teacher_logits", "teacher_vectors"]

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        return SequentialSampler(eval_dataset)  # predictions in the order of the texts, to compare with the teacher's

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        if "teacher_logits" not in inputs:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        options = self.distillation
        of_teacher, vectors = inputs.pop("teacher_logits"), inputs.pop("teacher_vectors")
        labels = inputs.pop("labels")
        of_tokens = {name: inputs.pop(name) for name in COLUMNS if name in inputs}
        outputs = model(**inputs, output_hidden_states=options.relation_weight > 0 or options.of_tokens)
        logits = outputs.logits.float()
        problem_type = self.model.config.problem_type
        loss = (1 - options.label_weight) * loss_from_teacher(logits, of_teacher, problem_type, options.temperature)
        first = labels.reshape(len(labels), -1)[:, 0]
        labelled = ~first.isnan() if problem_type == "regression" else first != UNLABELLED
        if options.label_weight and labelled.any():
            # Of a batch with few labels, these count as few.
            share = labelled.float().mean()
            loss = loss + options.label_weight * share * loss_from_labels(
                logits[labelled], labels[labelled], problem_type
            )
        if options.relation_weight:
            own = similarities(outputs.hidden_states[-1], inputs["attention_mask"])
            loss = loss + options.relation_weight * (own - vectors @ vectors.T).square().mean()
        if self.token_teacher is not None:
            loss = loss + self.token_teacher(outputs, self.token_teacher.ask(of_tokens), of_tokens)
        return (loss, outputs) if return_outputs else loss


def loss_from_teacher(
    logits: torch.Tensor, of_teacher: torch.Tensor, problem_type: str, temperature: float = 1.0
) -> torch.Tensor:
    """
    How far the student's scores are from the teacher's, the mean over texts.

    Of classes, the Kullback-Leibler divergence of the softened distributions, times the temperature's square, so that
    its gradient is as large as that of labels (Hinton et al. 2015); of several labels, that of each; of numbers, the
    squared difference.

    Args:
        logits, of_teacher: `(batch, labels)`.
        problem_type: as in a config.
        temperature: divides both, but not numbers.
    """
    if problem_type == "regression":
        return nn.functional.mse_loss(logits, of_teacher)
    own, theirs = logits / temperature, of_teacher / temperature
    if problem_type == "multi_label_classification":
        own, theirs = torch.stack([own, -own], dim=-1), torch.stack([theirs, -theirs], dim=-1)  # both sides of each
        own, theirs = nn.functional.logsigmoid(own).flatten(0, 1), nn.functional.logsigmoid(theirs).flatten(0, 1)
    else:
        own, theirs = own.log_softmax(dim=-1), theirs.log_softmax(dim=-1)
    return temperature**2 * nn.functional.kl_div(own, theirs, reduction="batchmean", log_target=True)


def loss_from_labels(logits: torch.Tensor, labels: torch.Tensor, problem_type: str) -> torch.Tensor:
    """The loss that a classifier has by itself, the mean over texts."""
    if problem_type == "regression":
        return nn.functional.mse_loss(logits.squeeze(-1), labels.float().view_as(logits.squeeze(-1)))
    if problem_type == "multi_label_classification":
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
    return nn.functional.cross_entropy(logits, labels)


def student_from_teacher(
    teacher: Student,
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str] | None,
    layers: Sequence[int],
    intermediate_share: float = 1.0,
    **trimming: Any,
) -> tuple[Student, PreTrainedTokenizerFast]:
    """
    A part of the teacher to begin with: some of its layers, with the strongest of their neurons, and the tokens that
    `texts` need. Its head comes along.

    Args:
        teacher: a Chinchilla; a BERT is converted first (`chinchilla_hf.conversion`). It stays as it is.
        tokenizer: of the teacher.
        texts: all that there are of the task; `None`: leave all tokens.
        layers: of the teacher, in the order of the student.
        intermediate_share: share of the neurons of each layer, rounded up to a multiple of 16.
        trimming: other arguments of [`trim_vocabulary`], such as `max_size`.

    Raises:
        ValueError: no such layers, a share that is none, or what [`trim_vocabulary`] raises.
    """
    if not 0 < intermediate_share <= 1:
        raise ValueError(f"intermediate_share is {intermediate_share}, expected a share above 0 and up to 1")
    student = copy.deepcopy(teacher)
    keep_layers(student, layers)
    if intermediate_share < 1:
        parts = []
        for of_block in magnitude_scores(student):
            count = min(len(of_block.neurons), 16 * -int(-len(of_block.neurons) * intermediate_share // 16))
            strongest = of_block.neurons.topk(count).indices.sort().values.tolist()
            parts.append(BlockParts(list(range(len(of_block.heads))), strongest))
        prune(student, parts)
    return student, tokenizer if texts is None else trim_vocabulary(student, tokenizer, texts, **trimming)

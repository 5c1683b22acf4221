"""
The pipeline of question answering, which Transformers 5 dropped: over the windows of `answer_windows`.

`import chinchilla_hf` registers the pipeline as `"chinchilla-question-answering"`, because Transformers blocks the old
name. Checkpoints carry this file: with `trust_remote_code=True` they have the old name, `"question-answering"`, too.

This file travels inside checkpoints: it needs transformers and torch alone.
"""

import itertools
import types
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES
from transformers.pipelines.base import ChunkPipeline

from .answer_windows import MAX_ANSWER_LENGTH, MAX_LENGTH, STRIDE, WindowCutter, find_answers

# On a CPU in bfloat16, attention written out takes less time than torch's fused kernel up to this length, as long as
# its scores fit into the cache: 0.92 of the time of a whole pass over 4 windows of 384 tokens, but 1.19 over 8 of them
# (MiniLM, AVX-512 with bf16).
_LONGEST_EAGER = 512
_BATCH_SIZE = {"cpu": 4}


def pad_rows(rows: Sequence[dict[str, list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Rows as a batch; rows of one length need no `attention_mask`, and attention is faster without."""
    lengths = [len(row["input_ids"]) for row in rows]
    longest = max(lengths)
    batch = {
        name: torch.tensor(
            [row[name] + [pad_token_id if name == "input_ids" else 0] * (longest - len(row[name])) for row in rows]
        )
        for name in rows[0]
    }
    if min(lengths) < longest:
        batch["attention_mask"] = torch.tensor([[1] * length + [0] * (longest - length) for length in lengths])
    return batch


class ChinchillaQuestionAnsweringPipeline(ChunkPipeline):
    """
    Answers questions with words of a text, of any length.

    A context of many questions is tokenized once. The model reads every question together with the context, so it has
    to read the context anew for each; but windows of all questions share batches by their length, with next to no
    padding, and in bfloat16 where the machine multiplies that in hardware.

    A checkpoint that was trained with questions without an answer gives an empty answer to those it takes for such.

    Example:

    ```python
    >>> import chinchilla_hf
    >>> from transformers import pipeline

    >>> answer = pipeline("chinchilla-question-answering", "runs/answers")
    >>> answer(question="Who barks?", context="A cat sleeps. The dog barks.")
    {'score': 0.93, 'start': 14, 'end': 21, 'answer': 'The dog'}
    >>> answer(question=["Who barks?", "Who sleeps?"], context="A cat sleeps. The dog barks.", top_k=2)
    ```
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _pipeline_calls_generate = False

    _batch_size: int | None
    # Questions that are read ahead, so that windows of like length find each other.
    _READ_AHEAD = 128

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self._batch_size is None:
            self._batch_size = _BATCH_SIZE.get(self.device.type, 32)
        self.check_model_type(MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES)

    def _sanitize_parameters(
        self,
        max_length: int | None = None,
        stride: int | None = None,
        max_answer_length: int | None = None,
        no_answer_threshold: float | None = None,
        top_k: int | None = None,
        bf16: bool | None = None,
        **unknown: Any,
    ) -> tuple[dict, dict, dict]:
        if unknown:
            raise TypeError(
                f"unknown: {', '.join(unknown)}. Question answering takes question, context, top_k, max_answer_length, "
                "no_answer_threshold, max_length, stride, bf16 and batch_size"
            )
        given = {"max_length": max_length, "stride": stride, "max_answer_length": max_answer_length, "top_k": top_k}
        for name, value in given.items():
            least = 0 if name == "stride" else 1
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}: raise it")
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if max_length is not None and positions is not None and max_length > positions:
            raise ValueError(f"max_length is {max_length}, but the model has {positions} positions: lower it")
        preprocess = {name: given[name] for name in ("max_length", "stride") if given[name] is not None}
        postprocess: dict[str, Any] = {
            name: given[name] for name in ("max_answer_length", "top_k") if given[name] is not None
        }
        if no_answer_threshold is not None:
            postprocess["no_answer_threshold"] = no_answer_threshold
        return preprocess, {} if bf16 is None else {"bf16": bf16}, postprocess

    def _trained(self, name: str, default: Any) -> Any:
        """A setting with which the checkpoint was trained."""
        return (getattr(self.model.config, "question_answering", None) or {}).get(name, default)

    def __call__(
        self, inputs: Any = None, *, question: Any = None, context: str | Sequence[str] | None = None, **kwargs: Any
    ) -> Any:
        """
        Answer questions.

        Args:
            inputs: `{"question": ..., "context": ...}`, a list, a data set or a generator of such.
            question: in place of `inputs`, a question, or a list of them.
            context: one text for all questions, or a list with one for each.
            kwargs: `top_k`: how many answers to a question; `max_answer_length`: in tokens; `no_answer_threshold`: in
                logits, how much likelier than the best answer no answer has to be to be given, `inf` for never;
                `max_length` and `stride`: tokens of a window, and of its overlap with the next; `bf16`: mixed
                precision, by default where the machine has it; `batch_size`: windows at a time, 4 on a CPU, else 32.

        Returns:
            For one question `{"score": ..., "start": ..., "end": ..., "answer": ...}`, where `answer` is
            `context[start:end]`, or a list of them with `top_k` above 1; for several a list with one such an item; for
            a data set or a generator, an iterator.

        Raises:
            ValueError: an empty text, or a question that leaves no room in a window.
            TypeError: an input of another form.
        """
        if isinstance(inputs, dict) and question is None and context is None:
            question, context = inputs.get("question"), inputs.get("context")
            if set(inputs) - {"question", "context"} and isinstance(question, str):
                question, context = None, None  # a row with an id: as it is
        if inputs is None or question is not None:
            if question is None or context is None:
                raise TypeError("give a question and a context, or rows with both")
            if isinstance(question, str) and isinstance(context, str):
                return super().__call__({"question": question, "context": context}, **kwargs)
            questions = [question] if isinstance(question, str) else list(question)
            contexts = [context] * len(questions) if isinstance(context, str) else list(context)
            if isinstance(question, str):
                questions = questions * len(contexts)
            if len(questions) != len(contexts):
                raise ValueError(
                    f"there are {len(questions)} questions and {len(contexts)} contexts: give one context for all "
                    "questions, or one for each"
                )
            inputs = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
        if isinstance(inputs, Sequence) and not isinstance(inputs, list | str):
            inputs = list(inputs)
        elif not isinstance(inputs, dict | list | str | types.GeneratorType) and hasattr(inputs, "__len__"):
            rows = inputs
            inputs = (rows[number] for number in range(len(rows)))  # a data set, of torch or of `datasets`
        return super().__call__(inputs, **kwargs) if not isinstance(inputs, list) or inputs else []

    def get_iterator(
        self,
        inputs: Iterable[dict[str, Any]],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Answers in the order of the questions; windows go through the model in the order of their length."""
        rows = iter(inputs)
        while ahead := list(itertools.islice(rows, self._READ_AHEAD)):
            items = list(self.preprocess(ahead, **preprocess_params))
            windows = [(item, number) for item in items for number in range(len(item["rows"]))]
            windows.sort(key=lambda window: -len(window[0]["rows"][window[1]]["input_ids"]))
            for begin in range(0, len(windows), batch_size):
                batch = windows[begin : begin + batch_size]
                outputs = self.forward(
                    self._collate([item["rows"][number] for item, number in batch]), **forward_params
                )
                for (item, number), *logits in zip(batch, outputs["start_logits"], outputs["end_logits"], strict=True):
                    item["logits"][number] = logits
            for item in items:
                yield self.postprocess(item, **postprocess_params)

    def _collate(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return pad_rows(rows, self.tokenizer.pad_token_id or 0)

    def preprocess(
        self, rows: Sequence[dict[str, Any]], max_length: int | None = None, stride: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Windows of several questions; each distinct text is tokenized once."""
        limit = min(self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", MAX_LENGTH))
        max_length = max_length or self._trained("max_length", min(MAX_LENGTH, limit))
        if stride is None:
            stride = min(self._trained("stride", STRIDE), max_length // 4)
        cutter = WindowCutter(self.tokenizer, max_length, stride)
        pairs = [_texts(row) for row in rows]
        distinct = list(dict.fromkeys(text for pair in pairs for text in pair))
        encoded = dict(zip(distinct, cutter.encode(distinct), strict=True))
        for question_text, context_text in pairs:
            question, context = encoded[question_text], encoded[context_text]
            windows = cutter.windows(question, context)
            yield {
                "context": context,
                "windows": windows,
                "rows": [cutter.row(question, context, window) for window in windows],
                "logits": [None] * len(windows),
            }

    def _forward(self, model_inputs: dict[str, torch.Tensor], bf16: bool | None = None) -> dict[str, torch.Tensor]:
        if bf16 is None:
            bf16 = self.model.dtype == torch.float32 and _bf16_is_fast(self.device)
        length = model_inputs["input_ids"].shape[1]
        eager = self.device.type == "cpu" and length <= _LONGEST_EAGER and (bf16 or self.model.dtype == torch.bfloat16)
        with (
            _attention(self.model, "eager" if eager else None),
            torch.autocast(self.device.type, torch.bfloat16, enabled=bf16),
        ):
            outputs = self.model(**model_inputs)
        return {"start_logits": outputs.start_logits.float(), "end_logits": outputs.end_logits.float()}

    def get_inference_context(self) -> Any:
        return torch.inference_mode

    def postprocess(
        self,
        item: dict[str, Any],
        max_answer_length: int | None = None,
        no_answer_threshold: float | None = None,
        top_k: int = 1,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        if max_answer_length is None:
            max_answer_length = self._trained("max_answer_length", MAX_ANSWER_LENGTH)
        if no_answer_threshold is None:
            no_answer_threshold = self._trained("no_answer_threshold", None)
        start_logits, end_logits = zip(*item["logits"], strict=True)
        answers = find_answers(
            item["context"],
            item["windows"],
            [logits.numpy() for logits in start_logits],
            [logits.numpy() for logits in end_logits],
            max_answer_length,
            no_answer_threshold,
            top_k,
        )
        return answers[0] if top_k == 1 else answers


def _texts(row: Any) -> tuple[str, str]:
    """Question and context of one input."""
    if not isinstance(row, dict) or not {"question", "context"} <= set(row):
        raise TypeError(f"an input is {row!r:.80}, but must be a dictionary with 'question' and 'context'")
    for name in ("question", "context"):
        if not isinstance(row[name], str):
            raise TypeError(f"the {name} is {row[name]!r:.60}, but must be a text")
        if not row[name].strip():
            raise ValueError(f"the {name} is empty: give a text, or leave the row out")
    return row["question"].strip(), row["context"]


@contextmanager
def _attention(model: Any, implementation: str | None) -> Iterator[None]:
    """Inside, `implementation` in place of the default; an attention that the user chose stays."""
    if implementation is None or model.config._attn_implementation != "sdpa":
        yield
        return
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def _bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


__all__ = ["ChinchillaQuestionAnsweringPipeline"]

"""
Answers to questions from an exported folder (`chinchilla_hf.export_encoder`) on ONNX Runtime: without torch, without
transformers.

    answer = OnnxQuestionAnswerer("runs/answers/export")
    answer("Who barks?", "A cat sleeps. The dog barks.")     as pipeline("chinchilla-question-answering") gives it
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .answer_windows import MAX_ANSWER_LENGTH, MAX_LENGTH, STRIDE, WindowCutter, find_answers
from .runtime import OnnxEncoder


class OnnxQuestionAnswerer(OnnxEncoder):
    """
    What `pipeline("chinchilla-question-answering")` does with the checkpoint that was exported, with the settings that
    it was trained with: see [`OnnxEncoder`].
    """

    task = "question-answering"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        quantized: bool | None = None,
        num_threads: int | None = None,
        max_length: int | None = None,
    ):
        super().__init__(folder, quantized, num_threads, max_length)
        self.tokenizer.no_truncation()
        settings = self.record["question_answering"]
        limit = self.record["max_length"]
        length = max_length or settings.get("max_length", min(MAX_LENGTH, limit))
        stride = min(settings.get("stride", STRIDE), length // 4)
        self.max_answer_length = settings.get("max_answer_length", MAX_ANSWER_LENGTH)
        self.no_answer_threshold = settings.get("no_answer_threshold")
        self.cutter = WindowCutter(_FastTokenizer(self.tokenizer, self.inputs), length, stride)

    def __call__(
        self, question: str | Sequence[str], context: str, top_k: int = 1, batch_size: int = 4
    ) -> dict[str, Any] | list[Any]:
        """
        The best answers, as spans of the context.

        Args:
            question: one, or a list of them.
            context: of any length.
            top_k: how many answers, if there are as many.
            batch_size: windows in a step; those of like length share one.

        Returns:
            `{"score": ..., "start": ..., "end": ..., "answer": ...}`, of `top_k` a list of them, and of several
            questions a list of either.

        Raises:
            ValueError: a question or a context without a token, or a question that leaves no room for the context.
        """
        questions = [question] if isinstance(question, str) else list(question)
        of_context, *of_questions = self.cutter.encode([context, *questions])
        windows = [self.cutter.windows(encoded, of_context) for encoded in of_questions]
        rows = [
            (number, place, self.cutter.row(encoded, of_context, window))
            for number, encoded in enumerate(of_questions)
            for place, window in enumerate(windows[number])
        ]
        rows.sort(key=lambda row: len(row[2]["input_ids"]))
        logits: list[list[Any]] = [[None] * len(of_question) for of_question in windows]
        for begin in range(0, len(rows), batch_size):
            chosen = rows[begin : begin + batch_size]
            scores = self.join(self.run([row for _, _, row in chosen]))
            for (number, place, _), of_row in zip(chosen, scores, strict=True):
                logits[number][place] = of_row[:, 0], of_row[:, 1]
        found: list[Any] = []
        for of_question, of_windows in zip(windows, logits, strict=True):
            start_logits, end_logits = zip(*of_windows, strict=True)
            answers = find_answers(
                of_context,
                of_question,
                start_logits,
                end_logits,
                self.max_answer_length,
                self.no_answer_threshold,
                top_k,
            )
            found.append(answers[0] if top_k == 1 else answers)
        return found[0] if isinstance(question, str) else found

    @staticmethod
    def join(outputs: list[np.ndarray]) -> np.ndarray:
        """Scores of starts and of ends, `(rows, length, 2)`."""
        return np.stack(outputs[:2], axis=-1)


class _FastTokenizer:
    """A tokenizer of the library `tokenizers`, as far as [`WindowCutter`] needs one of transformers."""

    is_fast = True

    def __init__(self, tokenizer: Any, model_input_names: Sequence[str]):
        self.tokenizer, self.model_input_names = tokenizer, model_input_names

    def __call__(self, text: Any, pair: str | None = None, add_special_tokens: bool = True, **_: Any) -> "_Encoded":
        if pair is not None:
            return _Encoded([self.tokenizer.encode(text, pair, add_special_tokens=add_special_tokens)], alone=True)
        return _Encoded(self.tokenizer.encode_batch(text, add_special_tokens=add_special_tokens), alone=False)


class _Encoded:
    NAMES = {"input_ids": "ids", "token_type_ids": "type_ids", "offset_mapping": "offsets"}

    def __init__(self, encodings: list[Any], alone: bool):
        self.encodings, self.alone = encodings, alone

    def __getitem__(self, name: str) -> Any:
        values = [getattr(encoding, self.NAMES[name]) for encoding in self.encodings]
        return values[0] if self.alone else values

    def sequence_ids(self, row: int) -> list[int | None]:
        return self.encodings[row].sequence_ids

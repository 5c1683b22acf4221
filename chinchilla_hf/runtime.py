"""
A text classifier from an exported folder (`chinchilla_hf.export`) on ONNX Runtime: without torch, without transformers.

    classify = OnnxTextClassifier("runs/reviews/export")
    classify("never again")      [{'label': 'bad', 'score': 0.98}], as the pipeline of Transformers gives it
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1  # of export.json
FULL, QUANTIZED = "onnx/model.onnx", "onnx/model_quantized.onnx"
EXPORT_RECORD = "export.json"
TASK = "text-classification"
WINDOW = 4096  # texts that are sorted by length together


class OnnxEncoder:
    """
    An exported encoder: what its first output is, a class for each task says.

    Args:
        folder: that one of the scripts in `training/` has written.
        quantized: take the int8 model; `None`: where there is one.
        num_threads: of ONNX Runtime; its own choice if not given.
        max_length: texts are cut at so many tokens; what the tokenizer says if not given.

    Raises:
        FileNotFoundError: the folder holds no such export.
        ImportError: ONNX Runtime is not installed.
        ValueError: the folder was written by another version of this package, in another format, or is of another task.
    """

    task: str

    def __init__(
        self,
        folder: str | os.PathLike[str],
        quantized: bool | None = None,
        num_threads: int | None = None,
        max_length: int | None = None,
    ):
        folder = Path(folder)
        self.record = read_export_record(folder, self.task)
        if quantized is None:
            quantized = (folder / QUANTIZED).is_file()
        self.session = open_session(folder, QUANTIZED if quantized else FULL, num_threads)
        from tokenizers import Tokenizer

        self.inputs = [given.name for given in self.session.get_inputs()]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_length or self.record["max_length"])
        self.tokenizer.no_padding()

    def outputs(self, texts: Sequence[str | tuple[str, str]]) -> np.ndarray:
        """Of one batch of texts, or of pairs of them."""
        return self.outputs_of(self.tokenizer.encode_batch(list(texts)))

    def outputs_of(self, rows: Sequence[Any]) -> np.ndarray:
        """The same of encoded texts."""
        return self.join(self.run([{"input_ids": row.ids, "token_type_ids": row.type_ids} for row in rows]))

    def run(self, rows: Sequence[dict[str, list[int]]]) -> list[np.ndarray]:
        """All outputs of the model for rows of ids, padded to the longest."""
        longest = max(len(row["input_ids"]) for row in rows)
        given = {}
        for name in self.inputs:
            padding = self.record["pad_token_id"] if name == "input_ids" else 0
            given[name] = np.full((len(rows), longest), padding, dtype=np.int64)
            for i, row in enumerate(rows):
                length = len(row["input_ids"])
                given[name][i, :length] = 1 if name == "attention_mask" else row[name]
        return self.session.run(None, given)

    @staticmethod
    def join(outputs: list[np.ndarray]) -> np.ndarray:
        """What counts of the outputs of the model."""
        return outputs[0]

    def batches(self, texts: Sequence[Any], batch_size: int) -> Iterator[tuple[list[int], list[Any], np.ndarray]]:
        """Which texts, encoded, and their outputs: those of like length together."""
        for first in range(0, len(texts), WINDOW):
            rows = self.tokenizer.encode_batch(texts[first : first + WINDOW])
            order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
            for begin in range(0, len(rows), batch_size):
                chosen = order[begin : begin + batch_size]
                encoded = [rows[i] for i in chosen]
                yield [first + i for i in chosen], encoded, self.outputs_of(encoded)


class OnnxTextClassifier(OnnxEncoder):
    """
    What `pipeline("text-classification")` does with the checkpoint that was exported by `training/export.py`: see
    [`OnnxEncoder`].
    """

    task = TASK

    def __call__(
        self,
        texts: str | tuple[str, str] | Sequence[str | tuple[str, str]],
        top_k: int | None = 1,
        batch_size: int = 32,
    ) -> list[Any]:
        """
        Labels and their scores, the best first.

        Args:
            texts: a text, a pair of texts as a tuple, or a list of either.
            top_k: so many labels of each; `None`: all.
            batch_size: texts in a step; those of like length share one.

        Returns:
            Of one text, a list of `{"label": ..., "score": ...}`; of a list, such a dictionary for each text, or, with
            `top_k` other than 1, a list of them.
        """
        alone = isinstance(texts, str | tuple)
        rows: list[Any] = [texts] if alone else list(texts)
        found: list[list[dict[str, Any]]] = [[]] * len(rows)
        labels = self.record["labels"]
        for chosen, _, logits in self.batches(rows, batch_size):
            for i, scores in zip(chosen, self._scores(logits), strict=True):
                best = np.argsort(-scores, kind="stable")[:top_k]
                found[i] = [{"label": labels[label], "score": float(scores[label])} for label in best]
        if alone:
            return found[0]
        return [result[0] for result in found] if top_k == 1 else found

    def _scores(self, logits: np.ndarray) -> np.ndarray:
        """As the pipeline of Transformers makes them."""
        problem_type = self.record["problem_type"]
        if problem_type == "regression":
            return logits
        if problem_type == "multi_label_classification" or logits.shape[1] == 1:
            return 1 / (1 + np.exp(-logits))
        return softmax(logits)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def open_session(folder: Path, name: str, num_threads: int | None) -> Any:
    """
    An `onnxruntime.InferenceSession` of the file `name` in `folder`.

    Raises:
        FileNotFoundError: it is not there.
        ImportError: ONNX Runtime, or the library of tokenizers, is not installed.
    """
    try:
        import onnxruntime
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'chinchilla-hf[export]'") from error
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} has no {name}: export the checkpoint again with it")
    options = onnxruntime.SessionOptions()
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])


def read_export_record(folder: str | os.PathLike[str], task: str = TASK) -> dict[str, Any]:
    """
    What `export.json` in `folder` says.

    Raises:
        FileNotFoundError: the folder holds no export.
        ValueError: of another format than this package reads, or of another task.
    """
    path = Path(folder) / EXPORT_RECORD
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no export (there is no {EXPORT_RECORD}): training/export.py makes one")
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {record.get('format')}, but this version of chinchilla-hf reads {FORMAT}: export the "
            "checkpoint again"
        )
    if record["task"] != task:
        raise ValueError(f"{folder} holds an export for {record['task']}, expected one for {task}")
    return record

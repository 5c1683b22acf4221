"""
A text classifier from an exported folder (`chinchilla_hf.export`) on ONNX Runtime: without torch, without transformers.

    classify = OnnxTextClassifier("runs/reviews/export")
    classify("never again")      [{'label': 'bad', 'score': 0.98}], as the pipeline of Transformers gives it
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1  # of export.json
FULL, QUANTIZED = "onnx/model.onnx", "onnx/model_quantized.onnx"
EXPORT_RECORD = "export.json"
TASK = "text-classification"
WINDOW = 4096  # texts that are sorted by length together


class OnnxTextClassifier:
    """
    What `pipeline("text-classification")` does with the checkpoint that was exported.

    Args:
        folder: that `training/export.py` has written.
        quantized: take the int8 model; `None`: where there is one.
        num_threads: of ONNX Runtime; its own choice if not given.
        max_length: texts are cut at so many tokens; what the tokenizer says if not given.

    Raises:
        FileNotFoundError: the folder holds no such export.
        ImportError: ONNX Runtime is not installed.
        ValueError: the folder was written by another version of this package, in another format, or is of another task.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        quantized: bool | None = None,
        num_threads: int | None = None,
        max_length: int | None = None,
    ):
        folder = Path(folder)
        record = read_export_record(folder, TASK)
        if quantized is None:
            quantized = (folder / QUANTIZED).is_file()
        self.session = open_session(folder, QUANTIZED if quantized else FULL, num_threads)
        from tokenizers import Tokenizer

        self.inputs = [given.name for given in self.session.get_inputs()]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_length or record["max_length"])
        self.tokenizer.no_padding()
        self.pad_token_id: int = record["pad_token_id"]
        self.labels: list[str] = record["labels"]
        self.problem_type: str = record["problem_type"]

    def logits(self, texts: Sequence[str | tuple[str, str]]) -> np.ndarray:
        """`(texts, labels)`, of one batch of texts or of pairs of them."""
        return self._logits(self.tokenizer.encode_batch(list(texts)))

    def _logits(self, rows: Sequence[Any]) -> np.ndarray:
        """Of encoded texts, padded to the longest."""
        longest = max(len(row.ids) for row in rows)
        parts = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        given = {}
        for name in self.inputs:
            padding = self.pad_token_id if name == "input_ids" else 0
            given[name] = np.full((len(rows), longest), padding, dtype=np.int64)
            for i, row in enumerate(rows):
                given[name][i, : len(row.ids)] = getattr(row, parts[name])
        return self.session.run(None, given)[0]

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
        found: list[list[dict[str, Any]]] = []
        for begin in range(0, len(rows), WINDOW):
            found += self._classified(self.tokenizer.encode_batch(rows[begin : begin + WINDOW]), top_k, batch_size)
        if alone:
            return found[0]
        return [result[0] for result in found] if top_k == 1 else found

    def _classified(self, rows: Sequence[Any], top_k: int | None, batch_size: int) -> list[list[dict[str, Any]]]:
        """The labels of encoded texts; those of like length share a batch."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        found: list[list[dict[str, Any]]] = [[]] * len(rows)
        for begin in range(0, len(rows), batch_size):
            chosen = order[begin : begin + batch_size]
            for i, scores in zip(chosen, self._scores(self._logits([rows[i] for i in chosen])), strict=True):
                best = np.argsort(-scores, kind="stable")[:top_k]
                found[i] = [{"label": self.labels[label], "score": float(scores[label])} for label in best]
        return found

    def _scores(self, logits: np.ndarray) -> np.ndarray:
        """As the pipeline of Transformers makes them."""
        if self.problem_type == "regression":
            return logits
        if self.problem_type == "multi_label_classification" or logits.shape[1] == 1:
            return 1 / (1 + np.exp(-logits))
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)


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

"""
A classifier of words, a model that answers questions, or an encoder without a head, as a folder that runs without
torch, by `chinchilla_hf.runtime_encoder` and `chinchilla_hf.runtime_answering`.

The folder is that of `chinchilla_hf.export`, without a page. It is checked on texts without labels: float32 has to give
what torch gives, and int8 has to be faster; how far it agrees stands in `export.json` and in the card.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from .export import (
    ExportFigures,
    check_request,
    finish_encoder,
    megabytes_of,
    milliseconds_of,
    new_export,
    problems_of,
    write_layout,
    write_models,
    write_record,
)
from .modeling_chinchilla import (
    ChinchillaForQuestionAnswering,
    ChinchillaForTokenClassification,
    ChinchillaModel,
    ChinchillaPreTrainedModel,
)
from .runtime import OnnxEncoder
from .runtime_answering import OnnxQuestionAnswerer
from .runtime_encoder import OnnxTextEncoder, OnnxTokenClassifier

# The class of a model -> what runs its export, and what transformers.js takes it for.
HEADS: dict[type[ChinchillaPreTrainedModel], tuple[type[OnnxEncoder], str]] = {
    ChinchillaForTokenClassification: (OnnxTokenClassifier, "BertForTokenClassification"),
    ChinchillaForQuestionAnswering: (OnnxQuestionAnswerer, "BertForQuestionAnswering"),
    ChinchillaModel: (OnnxTextEncoder, "BertModel"),
}
ALIKE = 0.9999  # cosine of two vectors that are the same but for rounding


def export_encoder(
    model: ChinchillaPreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: str | os.PathLike[str],
    texts: Sequence[str | tuple[str, str]],
    *,
    quantize: bool = True,
    keep_full: bool = True,
    model_name: str | None = None,
    force: bool = False,
) -> ExportFigures:
    """
    Export an encoder, and check it.

    Args:
        model: a `ChinchillaForTokenClassification`, a `ChinchillaForQuestionAnswering` or a `ChinchillaModel`, in
            float32.
        tokenizer: of it.
        folder: made if it is not there; an older export in it is replaced when the new one is whole.
        texts: to compare by; of answers, pairs of a question and a context that fits into one row.
        quantize: also make the int8 model.
        keep_full: leave the float32 model in the folder, beside the int8 one.
        model_name: for the card; the model's class if not given.
        force: write it all the same; the figures say what is wrong.

    Raises:
        ExportRefusedError: float32 differs from torch by more than 1e-4 or in what it says of a text; int8 is not
            faster than float32 on this machine. Nothing is written.
        FileExistsError: `folder` holds something else than an export.
        ImportError: a package of the extra `export` is missing.
        TypeError: a model of another kind.
        ValueError: no texts, or neither model is to be left.
    """
    if type(model) not in HEADS:
        known = ", ".join(kind.__name__ for kind in HEADS)
        raise TypeError(f"a {type(model).__name__} cannot be exported here, expected one of {known}")
    check_request(texts, quantize, keep_full)
    runtime, architecture = HEADS[type(model)]
    with new_export(folder) as staging:
        write_models(model, tokenizer, staging, quantize)
        write_layout(model, tokenizer, staging, architecture)
        write_record(model, tokenizer, staging, runtime.task)  # the runtime reads it
        names = ["float32", "int8"] if quantize else ["float32"]
        figures = _check(model, tokenizer, runtime, staging, names, texts)
        problems = problems_of(figures, largest_loss=0)  # there are no labels, and so no accuracy to lose
        finish_encoder(model, tokenizer, staging, runtime.task, figures, problems, keep_full, model_name, force)
    return figures


@torch.inference_mode()
def _check(
    model: ChinchillaPreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    runtime: type[OnnxEncoder],
    folder: Any,
    names: list[str],
    texts: Sequence[str | tuple[str, str]],
) -> ExportFigures:
    def by_torch(rows: Sequence[Any]) -> np.ndarray:
        columns = list(zip(*rows, strict=True)) if isinstance(rows[0], tuple) else [tuple(rows)]
        inputs = tokenizer(*map(list, columns), padding=True, truncation=True, return_tensors="pt")
        outputs = model(**inputs)
        if runtime is OnnxQuestionAnswerer:
            return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1).float().numpy()
        return outputs[0].float().numpy()

    encoders = {name: runtime(folder, quantized=name == "int8") for name in names}
    # One by one: padding has states, too, which nobody reads.
    found = {"torch": [by_torch([text])[0] for text in texts]}
    found |= {name: [encoder.outputs([text])[0] for text in texts] for name, encoder in encoders.items()}

    def agreement(one: str, other: str) -> float:
        pairs = zip(found[one], found[other], strict=True)
        if runtime is OnnxTextEncoder:
            cosines = [_cosine(*pair) for pair in pairs]
            return float(np.mean(cosines if other == "int8" else [cosine >= ALIKE for cosine in cosines]))
        return float(np.mean([_says_the_same(runtime, *pair) for pair in pairs]))

    return ExportFigures(
        texts=len(texts),
        full_difference=max(float(np.abs(a - b).max()) for a, b in zip(found["torch"], found["float32"], strict=True)),
        full_agreement=agreement("torch", "float32"),
        quantized_agreement=agreement("float32", "int8") if "int8" in found else None,
        milliseconds=milliseconds_of(by_torch, runtime, folder, names, texts),
        megabytes=megabytes_of(folder, names),
    )


def _says_the_same(runtime: type[OnnxEncoder], one: np.ndarray, other: np.ndarray) -> bool:
    if runtime is OnnxQuestionAnswerer:  # the likeliest beginning and end, padding left out by its scores
        return bool((one.argmax(axis=0) == other.argmax(axis=0)).all())
    return bool((one.argmax(axis=-1) == other.argmax(axis=-1)).all())


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of the means of two texts' states, `(length, width)`."""
    means = one.mean(axis=0), other.mean(axis=0)
    return float(means[0] @ means[1] / (np.linalg.norm(means[0]) * np.linalg.norm(means[1])))

"""
The card of an export: `README.md` of its folder.

As in the card of a model, every number in it comes from the record beside it, `export.json`.
"""

import os
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .run_record import write_atomically

TEMPLATES = Path(__file__).parent / "templates"
EXPORT_TEMPLATE = TEMPLATES / "export_card.md.jinja"
TRANSLATOR_EXPORT_TEMPLATE = TEMPLATES / "translator_export_card.md.jinja"

# Of an export, by its task: what runs it, and where that is.
EXPORT_RUNTIMES = {
    "text-classification": ("runtime", "OnnxTextClassifier"),
    "token-classification": ("runtime_encoder", "OnnxTokenClassifier"),
    "question-answering": ("runtime_answering", "OnnxQuestionAnswerer"),
    "feature-extraction": ("runtime_encoder", "OnnxTextEncoder"),
}


def write_export_card(folder: str | os.PathLike[str], record: dict[str, Any], model_name: str) -> Path:
    """
    Write `README.md` of the export of an encoder from its record, as a whole or not at all.

    Args:
        folder: of the export.
        record: what `export.json` says.
        model_name: of the model that was exported.

    Returns:
        The path of the card.
    """
    module, runtime = EXPORT_RUNTIMES[record["task"]]
    rows = _export_rows(record["figures"], "accuracy", ".4f") + [
        {"name": name, "milliseconds": f"{values['milliseconds']:.2f}", "megabytes": f"{values['megabytes']:.1f}"}
        | {"score": ""}
        for name, values in record["figures"]["others"].items()
    ]
    return _write_export_card(
        folder,
        record,
        EXPORT_TEMPLATE,
        library_name="transformers.js",
        model_name=model_name,
        rows=rows,
        has_score=bool(record["figures"]["accuracy"]),
        labels=record["labels"] if record["task"].endswith("classification") else [],
        module=module,
        runtime=runtime,
        example='"Who barks?", "The dog barks."' if record["task"] == "question-answering" else '"a text"',
        has_page=record["task"] == "text-classification",
        has_vectors=record["task"] == "feature-extraction",
    )


def write_translator_export_card(folder: str | os.PathLike[str], record: dict[str, Any], model_name: str) -> Path:
    """The same as [`write_export_card`], of a translator."""
    return _write_export_card(
        folder,
        record,
        TRANSLATOR_EXPORT_TEMPLATE,
        library_name="onnxruntime",
        model_name=model_name,
        rows=_export_rows(record["figures"], "bleu", ".1f"),
        has_score=bool(record["figures"]["bleu"]),
        num_beams=record["num_beams"],
    )


def _export_rows(figures: dict[str, Any], score: str, form: str) -> list[dict[str, str]]:
    """A row for each contestant, the slowest first."""
    return [
        {
            "name": name,
            "milliseconds": f"{milliseconds:.2f}",
            "megabytes": f"{figures['megabytes'][name]:.1f}" if name in figures["megabytes"] else "",
            "score": format(figures[score][name], form) if name in figures[score] else "",
        }
        for name, milliseconds in sorted(figures["milliseconds"].items(), key=lambda item: -item[1])
    ]


def _write_export_card(
    folder: str | os.PathLike[str], record: dict[str, Any], template: Path, library_name: str, **facts: Any
) -> Path:
    figures, machine = record["figures"], record["machine"]
    agreement = figures["quantized_agreement"]
    card = ModelCard.from_template(
        ModelCardData(library_name=library_name, pipeline_tag=record["task"], tags=["chinchilla_hf", "onnx"]),
        template_path=str(template),
        parameters=f"{record['parameters']:,}",
        texts=figures["texts"],
        machine=f"{machine['cpu']} ({', '.join(machine['cpu_features'])})",
        full_difference=f"{figures['full_difference']:.1e}",
        full_agreement=f"{figures['full_agreement']:.2%}",
        quantized_agreement=None if agreement is None else f"{agreement:.2%}",
        problems=record["problems"],
        **facts,
    )
    path = Path(folder) / "README.md"
    write_atomically(path, str(card).encode())
    return path

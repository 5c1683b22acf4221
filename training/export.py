"""
Export a text classifier to a folder that runs without torch: ONNX Runtime, and the browser by transformers.js.

    python training/export.py --model runs/reviews --dataset reviews.csv
    python training/export.py --model runs/reviews --dataset reviews.csv --quantize false --output_dir served

The folder has the model in float32 and in int8, the tokenizer, and `export.json` with the figures of a check on the
test texts. An export that does not compute what the checkpoint computes, that loses more than --largest_loss of its
accuracy, or that is not faster, is refused, and nothing is written, unless --force is given. In Python it is
`chinchilla_hf.runtime.OnnxTextClassifier(folder)`, which takes neither torch nor transformers; in a browser, what
`python -m http.server --directory FOLDER` serves.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer

from chinchilla_hf import ChinchillaForSequenceClassification
from chinchilla_hf.classification import LabelledArguments, load_data
from chinchilla_hf.compression.distillation import label_columns
from chinchilla_hf.conversion import load_or_convert
from chinchilla_hf.export import ExportFigures, export_classifier, export_folder
from chinchilla_hf.model_card import add_export
from chinchilla_hf.recipes import one_line_errors, parse_options, resolve_location


@dataclass
class ExportArguments:
    """Which checkpoint, and how."""

    _argument_group_name = "Export"

    model: str = field(metadata={"help": "The classifier: a folder, a Hub name or package://NAME/PATH."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder of the export. Default: export in --model."})
    max_texts: int = field(default=1000, metadata={"help": "Test texts to compare by."})
    quantize: bool = field(default=True, metadata={"help": "Also make the int8 model."})
    keep_full: bool = field(default=True, metadata={"help": "Leave the float32 model in the folder, beside int8."})
    transformers_js: str | None = field(
        default=None,
        metadata={"help": "A node_modules with @huggingface/transformers, so that the page needs no network."},
    )
    formats: list[str] = field(
        default_factory=list, metadata={"help": "Further formats: openvino, executorch (each has its extra)."}
    )
    largest_loss: float = field(default=0.005, metadata={"help": "Share of the accuracy that int8 may lose."})
    force: bool = field(default=False, metadata={"help": "Write what is refused otherwise, with its figures."})

    def __post_init__(self) -> None:
        if self.max_texts < 1:
            raise ValueError(f"max_texts is {self.max_texts}, expected at least 1")


def report(figures: ExportFigures) -> str:
    lines = [f"{'':<10}{'ms a text':>12}{'MB':>8}{'accuracy':>12}"]
    for name, milliseconds in figures.milliseconds.items():
        size = f"{figures.megabytes[name]:.1f}" if name in figures.megabytes else ""
        accuracy = f"{figures.accuracy[name]:.4f}" if name in figures.accuracy else ""
        lines.append(f"{name:<10}{milliseconds:>12.2f}{size:>8}{accuracy:>12}")
    agreement = f"float32 differs from torch by at most {figures.full_difference:.1e}"
    if figures.quantized_agreement is not None:
        agreement += f"; int8 says what float32 says of {figures.quantized_agreement:.2%} of {figures.texts} texts"
    others = [
        f"{name}: {values['milliseconds']:.2f} ms, {values['megabytes']:.1f} MB, differs from torch by at most "
        f"{values['difference']:.1e}, says the same of {values['agreement']:.2%}"
        for name, values in figures.others.items()
    ]
    return "\n".join([*lines, agreement, *others])


def main() -> None:
    data_options, options = parse_options((LabelledArguments, ExportArguments), __doc__)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    with one_line_errors():
        data = load_data(data_options)
        location = resolve_location(options.model)
        try:
            tokenizer = AutoTokenizer.from_pretrained(location)
            model = load_or_convert(location, ChinchillaForSequenceClassification).float()
        except (OSError, ValueError) as error:  # no such place, or no whole checkpoint there
            raise OSError(f"--model {options.model} cannot be loaded: {error}") from error
        columns = label_columns(model, data.label_names, data.problem_type)
        test = data.splits["test"].select(range(min(options.max_texts, len(data.splits["test"]))))
        texts = test["text"][:]
        if "text_pair" in test.column_names:
            texts = list(zip(texts, test["text_pair"][:], strict=True))
        has_classes = data.problem_type == "single_label_classification"
        labels = [columns[label] for label in test["labels"][:]] if has_classes else None
        folder = export_folder(options.model, options.output_dir)
        figures = export_classifier(
            model,
            tokenizer,
            folder,
            texts,
            labels,
            quantize=options.quantize,
            keep_full=options.keep_full,
            model_name=Path(options.model).name,
            transformers_js=options.transformers_js,
            formats=options.formats,
            largest_loss=options.largest_loss,
            force=options.force,
        )
    print(f"\n{report(figures)}\n\nthe export is in {folder}: chinchilla_hf.runtime.OnnxTextClassifier('{folder}')")
    if add_export(options.model, folder):
        print("its figures are in run.json and in the card of the model, too")


if __name__ == "__main__":
    main()

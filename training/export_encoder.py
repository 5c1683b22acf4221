"""
Export a classifier of words, a model that answers questions, or an encoder without a head, to a folder that runs on
ONNX Runtime, without torch.

    python training/export_encoder.py --model runs/tagger --texts sentences.txt
    python training/export_encoder.py --model runs/answers --texts questions_and_contexts.tsv
    python training/export_encoder.py --model runs/minilm_student --texts sentences.txt

The folder has the model in float32 and in int8, the tokenizer, laid out for transformers.js, and `export.json` with
the figures of a check on the texts. An export that does not give what the checkpoint gives, or that is not faster in
int8, is refused, and nothing is written, unless --force is given. In Python it is `OnnxTokenClassifier(folder)` or
`OnnxTextEncoder(folder)` of `chinchilla_hf.runtime_encoder`, or `OnnxQuestionAnswerer(folder)` of
`chinchilla_hf.runtime_answering`, which take neither torch nor transformers.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from chinchilla_hf import ChinchillaForQuestionAnswering, ChinchillaForTokenClassification, ChinchillaModel
from chinchilla_hf.conversion import load_or_convert
from chinchilla_hf.export import ExportFigures, export_folder
from chinchilla_hf.export_encoder import HEADS, export_encoder
from chinchilla_hf.model_card import add_export
from chinchilla_hf.recipes import one_line_errors, parse_options, resolve_location

# The end of an architecture's name -> what is exported of it; anything else is an encoder without its head.
KINDS = {
    "ForTokenClassification": ChinchillaForTokenClassification,
    "ForQuestionAnswering": ChinchillaForQuestionAnswering,
}


@dataclass
class ExportArguments:
    """Which checkpoint, and how."""

    _argument_group_name = "Export"

    model: str = field(metadata={"help": "The encoder: a folder, a Hub name or package://NAME/PATH."})
    texts: str = field(
        metadata={
            "help": "A text file to compare by, a text in each line; of answers, a question, a tab and a context."
        }
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder of the export. Default: export in --model."})
    max_texts: int = field(default=500, metadata={"help": "Texts to compare by."})
    quantize: bool = field(default=True, metadata={"help": "Also make the int8 model."})
    keep_full: bool = field(default=True, metadata={"help": "Leave the float32 model in the folder, beside int8."})
    force: bool = field(default=False, metadata={"help": "Write what is refused otherwise, with its figures."})

    def __post_init__(self) -> None:
        if self.max_texts < 1:
            raise ValueError(f"max_texts is {self.max_texts}, expected at least 1")


def report(figures: ExportFigures, of_vectors: bool) -> str:
    lines = [f"{'':<10}{'ms a text':>12}{'MB':>8}"]
    for name, milliseconds in figures.milliseconds.items():
        size = f"{figures.megabytes[name]:.1f}" if name in figures.megabytes else ""
        lines.append(f"{name:<10}{milliseconds:>12.2f}{size:>8}")
    agreement = f"float32 differs from torch by at most {figures.full_difference:.1e}"
    if figures.quantized_agreement is not None and of_vectors:
        agreement += f"; int8's vectors have a cosine of {figures.quantized_agreement:.4f} with float32's, on average"
    elif figures.quantized_agreement is not None:
        agreement += f"; int8 says what float32 says of {figures.quantized_agreement:.2%} of {figures.texts} texts"
    return "\n".join([*lines, agreement])


def main() -> None:
    (options,) = parse_options((ExportArguments,), __doc__)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    with one_line_errors():
        if not Path(options.texts).is_file():
            raise FileNotFoundError(f"there is no file {options.texts!r} (the current folder is {Path.cwd()})")
        texts = [line for line in Path(options.texts).read_text("utf-8").splitlines() if line.strip()]
        location = resolve_location(options.model)
        try:
            tokenizer = AutoTokenizer.from_pretrained(location)
            names = AutoConfig.from_pretrained(location).architectures or [""]
            kind = next((kind for head, kind in KINDS.items() if names[0].endswith(head)), ChinchillaModel)
            model = load_or_convert(location, kind)
        except (OSError, ValueError) as error:  # no such place, or no whole checkpoint there
            raise OSError(f"--model {options.model} cannot be loaded: {error}") from error
        texts = texts[: options.max_texts]
        if kind is ChinchillaForQuestionAnswering:
            texts = [tuple(line.split("\t", 1)) for line in texts]
            if any(len(pair) < 2 for pair in texts):
                raise ValueError(f"a line of --texts {options.texts} has no tab between a question and a context")
        folder = export_folder(options.model, options.output_dir)
        figures = export_encoder(
            model.float(),
            tokenizer,
            folder,
            texts,
            quantize=options.quantize,
            keep_full=options.keep_full,
            model_name=Path(options.model).name,
            force=options.force,
        )
    runtime = HEADS[kind][0]
    where = f"the export is in {folder}: {runtime.__module__}.{runtime.__name__}('{folder}')"
    print(f"\n{report(figures, kind is ChinchillaModel)}\n\n{where}")
    if add_export(options.model, folder):
        print("its figures are in run.json and in the card of the model, too")


if __name__ == "__main__":
    main()

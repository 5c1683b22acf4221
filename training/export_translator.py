"""
Export a translator to a folder that runs on ONNX Runtime, without torch.

    python training/export_translator.py --model runs/translation --texts test.en --references test.de

The folder has encoder and decoder, with its cache, in float32 and in int8, the tokenizers, and `export.json` with the
figures of a check: an export that translates a text as the checkpoint does not, that loses more than --largest_loss of
BLEU in int8, or that is not faster, is refused, and nothing is written, unless --force is given. In Python it is
`chinchilla_hf.runtime_translation.OnnxTranslator(folder)`, which takes neither torch nor transformers.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer

from chinchilla_hf import ChinchillaForConditionalGeneration
from chinchilla_hf.export import export_folder
from chinchilla_hf.export_translation import TranslatorFigures, export_translator
from chinchilla_hf.model_card import add_export
from chinchilla_hf.output_folder import TARGET_TOKENIZER
from chinchilla_hf.recipes import one_line_errors, parse_options, resolve_location


@dataclass
class ExportArguments:
    """Which checkpoint, and how."""

    _argument_group_name = "Export"

    model: str = field(metadata={"help": "The translator: a folder, a Hub name or package://NAME/PATH."})
    texts: str = field(metadata={"help": "A text file to translate for the comparison, a text in each line."})
    references: str | None = field(default=None, metadata={"help": "The translations of --texts, line by line."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder of the export. Default: export in --model."})
    max_texts: int = field(default=500, metadata={"help": "Texts to compare by."})
    quantize: bool = field(default=True, metadata={"help": "Also make the int8 models."})
    largest_loss: float = field(default=0.5, metadata={"help": "Points of BLEU that int8 may lose."})
    force: bool = field(default=False, metadata={"help": "Write what is refused otherwise, with its figures."})

    def __post_init__(self) -> None:
        if self.max_texts < 1:
            raise ValueError(f"max_texts is {self.max_texts}, expected at least 1")


def read_lines(path: str, count: int) -> list[str]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path!r} (the current folder is {Path.cwd()})")
    return Path(path).read_text("utf-8").splitlines()[:count]


def report(figures: TranslatorFigures) -> str:
    lines = [f"{'':<10}{'ms a text':>12}{'MB':>8}{'BLEU':>8}"]
    for name, milliseconds in figures.milliseconds.items():
        size = f"{figures.megabytes[name]:.1f}" if name in figures.megabytes else ""
        bleu = f"{figures.bleu[name]:.2f}" if name in figures.bleu else ""
        lines.append(f"{name:<10}{milliseconds:>12.1f}{size:>8}{bleu:>8}")
    agreement = (
        f"float32 differs from torch by at most {figures.full_difference:.1e}, and translates "
        f"{figures.full_agreement:.2%} of {figures.texts} texts as torch does"
    )
    if figures.quantized_agreement is not None:
        agreement += f"; int8 {figures.quantized_agreement:.2%} as float32 does"
    return "\n".join([*lines, agreement])


def main() -> None:
    (options,) = parse_options((ExportArguments,), __doc__)
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    with one_line_errors():
        texts = read_lines(options.texts, options.max_texts)
        references = None if options.references is None else read_lines(options.references, options.max_texts)
        location = resolve_location(options.model)
        try:
            tokenizer = AutoTokenizer.from_pretrained(location)
            model = ChinchillaForConditionalGeneration.from_pretrained(location).float()
            separate = getattr(model.config, TARGET_TOKENIZER, None)
            target = None if separate is None else AutoTokenizer.from_pretrained(location, subfolder=separate)
        except (OSError, ValueError) as error:  # no such place, or no whole checkpoint there
            raise OSError(f"--model {options.model} cannot be loaded: {error}") from error
        folder = export_folder(options.model, options.output_dir)
        figures = export_translator(
            model,
            tokenizer,
            folder,
            texts,
            references,
            target_tokenizer=target,
            quantize=options.quantize,
            largest_loss=options.largest_loss,
            model_name=Path(options.model).name,
            force=options.force,
        )
    print(f"\n{report(figures)}\n\nthe export is in {folder}: OnnxTranslator('{folder}')")
    if add_export(options.model, folder):
        print("its figures are in run.json and in the card of the model, too")


if __name__ == "__main__":
    main()

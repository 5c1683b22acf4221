"""
A checkpoint as a folder that runs without torch: on ONNX Runtime, from servers to telephones, and in the browser.

    export.json                   what was exported, and the figures of the check
    config.json, tokenizer.json   as transformers.js wants them: it reads the folder as that of a BERT
    onnx/model.onnx               float32, one file
    onnx/model_quantized.onnx     int8 weights, activations quantized as they come
    index.html                    a page that classifies in the browser
    README.md                     its card, with these figures

An export that does not compute what the checkpoint computes is no export: [`export_classifier`] compares it with torch
on your texts, and refuses what is wrong, loses too much accuracy, or is not faster.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from .export_card import write_export_card
from .export_edge import check_format, check_formats, write_format
from .metrics import predictions_from_logits
from .modeling_chinchilla import ChinchillaForSequenceClassification, ChinchillaPreTrainedModel
from .run_record import describe_machine, package_versions, write_atomically
from .runtime import EXPORT_RECORD, FORMAT, FULL, QUANTIZED, OnnxEncoder, OnnxTextClassifier

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "templates" / "classifier.html"
BROWSER_FILES = (
    ("@huggingface/transformers", "transformers.min.js"),
    ("onnxruntime-web", "ort-wasm-simd-threaded.asyncify.mjs"),
    ("onnxruntime-web", "ort-wasm-simd-threaded.asyncify.wasm"),
)
LARGEST_DIFFERENCE = 1e-4  # of float32 to torch
RECORD_FIELDS = ("problem_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


class ExportRefusedError(ValueError):
    """The export does not keep what it promises; the message says what it has, and what was asked for."""


@dataclasses.dataclass
class ExportFigures:
    """
    What the check of an export has found.

    Args:
        texts: that were compared.
        full_difference: largest difference of a float32 score from torch's.
        full_agreement: share of the texts of which float32 says what torch says.
        quantized_agreement: share of the texts of which int8 says what float32 says; not of numbers; of vectors, the
            mean cosine of both.
        accuracy: of torch, float32 and int8, where the texts have labels.
        milliseconds: the median time for one text, on one thread.
        megabytes: of the two models.
        others: of further formats, what `export_edge.check_format` finds.
    """

    texts: int
    full_difference: float
    full_agreement: float
    quantized_agreement: float | None = None
    accuracy: dict[str, float] = dataclasses.field(default_factory=dict)
    milliseconds: dict[str, float] = dataclasses.field(default_factory=dict)
    megabytes: dict[str, float] = dataclasses.field(default_factory=dict)
    others: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


def export_classifier(
    model: ChinchillaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    folder: str | os.PathLike[str],
    texts: Sequence[str | tuple[str, str]],
    labels: Sequence[int] | None = None,
    *,
    quantize: bool = True,
    keep_full: bool = True,
    model_name: str | None = None,
    transformers_js: str | os.PathLike[str] | None = None,
    formats: Sequence[str] = (),
    largest_loss: float = 0.005,
    force: bool = False,
) -> ExportFigures:
    """
    Export a text classifier, and check it.

    Args:
        model: in float32.
        tokenizer: of it.
        folder: made if it is not there; an older export in it is replaced when the new one is whole.
        texts: of the task, to compare by.
        labels: of the texts, class ids; then int8 may lose no more than `largest_loss` of the accuracy.
        quantize: also make the int8 model.
        keep_full: leave the float32 model in the folder, beside the int8 one.
        model_name: for the card; the model's class if not given.
        transformers_js: a `node_modules` with `@huggingface/transformers`, whose files go along, so that the page needs
            no network.
        formats: further ones, `"openvino"` and `"executorch"`; these have their own extras.
        largest_loss: share of the accuracy that int8 may lose.
        force: write it all the same; the figures say what is wrong.

    Raises:
        ExportRefusedError: float32 differs from torch by more than 1e-4 in a score or in what it says of a text; int8
            loses too much accuracy, or is not faster than float32 on this machine. Nothing is written.
        FileExistsError: `folder` holds something else than an export.
        FileNotFoundError: `transformers_js` lacks a file.
        ImportError: a package of the extra `export` is missing.
        ValueError: no texts, or neither model is to be left.
    """
    check_request(texts, quantize, keep_full)
    check_formats(formats)
    of_browser = [] if transformers_js is None else _browser_files(Path(transformers_js))
    with new_export(folder) as staging:
        write_models(model, tokenizer, staging, quantize)
        write_layout(model, tokenizer, staging, "BertForSequenceClassification")
        _write_page(staging, of_browser)
        write_record(model, tokenizer, staging, OnnxTextClassifier.task)  # the runtime reads it
        figures = check_export(model, tokenizer, staging, texts, labels)
        for name in formats:
            runners = write_format(name, model, tokenizer, staging, max_length_of(model, tokenizer))
            figures.others |= check_format(runners, model, tokenizer, texts)
        problems = problems_of(figures, largest_loss)
        finish_encoder(
            model, tokenizer, staging, OnnxTextClassifier.task, figures, problems, keep_full, model_name, force
        )
    return figures


def finish_encoder(
    model: ChinchillaPreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    staging: Path,
    task: str,
    figures: ExportFigures,
    problems: list[str],
    keep_full: bool,
    model_name: str | None,
    force: bool,
) -> None:
    """What is left to do of a checked export: record and card, unless it is refused."""
    refuse(problems, force)
    record = write_record(model, tokenizer, staging, task, figures, problems)
    write_export_card(staging, record, model_name or type(model).__name__)
    if not keep_full:
        (staging / FULL).unlink()


def refuse(problems: Sequence[str], force: bool) -> None:
    """
    Say what is wrong with an export, as a warning if it is to be written all the same.

    Raises:
        ExportRefusedError: there are problems, and no force.
    """
    if problems and not force:
        raise ExportRefusedError(f"{'; '.join(problems)}: nothing was written (force writes it all the same)")
    for problem in problems:
        logger.warning("%s", problem)


def check_request(texts: Sequence[Any], quantize: bool = True, keep_full: bool = True) -> None:
    """
    Raises:
        ImportError: a package of the extra `export` is missing.
        ValueError: no texts, or neither model is to be left.
    """
    if not (quantize or keep_full):
        raise ValueError("keep_full is False, but without quantize there is no other model: leave one of them True")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed: pip install 'chinchilla-hf[export]'") from error
    if not len(texts):
        raise ValueError("there are no texts to compare the export by: give some of the task")


def export_folder(model: str, output_dir: str | None) -> Path:
    """
    Where a script puts the export of `model`: where it is told to, or into the checkpoint's folder.

    Raises:
        ValueError: the model is no folder here, and nothing else was said.
    """
    if output_dir is not None:
        return Path(output_dir)
    if not Path(model).is_dir():
        raise ValueError(f"--model {model} is no folder that the export could be put into: give --output_dir")
    return Path(model) / "export"


@contextlib.contextmanager
def new_export(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """
    A folder to write an export in, which takes the place of `folder`, and of an older export in it, when it is whole.

    Raises:
        FileExistsError: `folder` holds something else than an export.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / EXPORT_RECORD).is_file():
        raise FileExistsError(f"{folder} holds something else than an export: choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield staging
        if folder.exists():
            shutil.rmtree(folder)
        umask = os.umask(0)
        os.umask(umask)
        staging.chmod(0o777 & ~umask)  # mkdtemp's is for this user alone, but a server may be another one
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_onnx(model: nn.Module, inputs: dict[str, torch.Tensor], path: Path) -> None:
    """Export `model`, in evaluation mode, to one file, with batch and length as they come."""
    import onnx
    from transformers.exporters import OnnxConfig, OnnxExporter

    logging.getLogger("onnx_ir").setLevel(logging.WARNING)  # a line for every tensor
    program, _ = OnnxExporter().export_program(model, inputs, config=OnnxConfig(dynamic=True))
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        OnnxExporter.save_program(program, Path(scratch) / path.name)
        onnx.save(onnx.load(Path(scratch) / path.name), str(path))  # its weights inside


def quantize_weights(full: Path, path: Path) -> None:
    """Write the model in the file `full` to `path` with int8 weights; activations are quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    root = logging.getLogger()  # which ONNX Runtime writes a line for every tensor to
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            prepared = Path(scratch) / "prepared.onnx"
            quant_pre_process(str(full), str(prepared), skip_symbolic_shape=True)
            # Signed weights are twice as fast as unsigned ones where the processor has VNNI.
            quantize_dynamic(str(prepared), str(path), weight_type=QuantType.QInt8)
    finally:
        root.setLevel(level)


def write_models(
    model: ChinchillaPreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, quantize: bool
) -> None:
    """The encoder as ONNX, in float32 and, if asked for, in int8."""
    names = [name for name in tokenizer.model_input_names if name in ("input_ids", "attention_mask", "token_type_ids")]
    texts, longest = ["one text", "and another one, which is longer"], min(16, model.config.max_position_embeddings)
    example = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    write_onnx(model.eval(), {name: example[name] for name in names}, folder / FULL)
    if quantize:
        quantize_weights(folder / FULL, folder / QUANTIZED)


def _browser_files(node_modules: Path) -> list[Path]:
    """What a page needs of transformers.js, which comes with ONNX Runtime for WebAssembly."""
    found = []
    for package, name in BROWSER_FILES:
        paths = sorted(node_modules.glob(f"**/{package}/dist/{name}"))
        if not paths:
            raise FileNotFoundError(
                f"{node_modules} has no {package}/dist/{name}: give the node_modules of npm install --ignore-scripts "
                "@huggingface/transformers"
            )
        found.append(min(paths, key=lambda path: len(path.parts)))
    return found


def write_layout(
    model: ChinchillaPreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, architecture: str
) -> None:
    """Tokenizer and config as transformers.js takes them: of a model that it does not know it makes none."""
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        if path.is_file() and path.name not in ("tokenizer.json", "tokenizer_config.json"):
            path.unlink()
    config = model.config.to_dict()
    kept = (*RECORD_FIELDS, "id2label", "label2id", "max_position_embeddings", "pad_token_id", "type_vocab_size")
    web = {"model_type": "bert", "architectures": [architecture]}
    web |= {name: config[name] for name in kept if name in config}
    (folder / "config.json").write_text(json.dumps(web, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_page(folder: Path, of_browser: Sequence[Path]) -> None:
    """A page for the browser, with the files that it needs of transformers.js, if they are given."""
    shutil.copyfile(PAGE, folder / "index.html")
    if of_browser:
        (folder / "transformers.js").mkdir()
        for path in of_browser:
            shutil.copyfile(path, folder / "transformers.js" / path.name)


def max_length_of(model: ChinchillaPreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens of the longest text that both take."""
    return min(tokenizer.model_max_length, model.config.max_position_embeddings)


def write_record(
    model: ChinchillaPreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    task: str,
    figures: ExportFigures | None = None,
    problems: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `export.json`; what it says."""
    config = model.config
    record: dict[str, Any] = {
        "format": FORMAT,
        "task": task,
        "labels": [config.id2label[i] for i in range(config.num_labels)],
        "max_length": max_length_of(model, tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "question_answering": getattr(config, "question_answering", None) or {},
        "problem_type": config.problem_type or "single_label_classification",
        "parameters": model.num_parameters(),
        "figures": None if figures is None else dataclasses.asdict(figures),
        "problems": list(problems),
        "machine": describe_machine("cpu"),
        "versions": package_versions(),
    }
    write_atomically(folder / EXPORT_RECORD, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
    return record


@torch.inference_mode()
def check_export(
    model: ChinchillaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    folder: str | os.PathLike[str],
    texts: Sequence[str | tuple[str, str]],
    labels: Sequence[int] | None = None,
    batch_size: int = 32,
) -> ExportFigures:
    """Compare the export in `folder` with `model`, on `texts`; see [`ExportFigures`]."""
    folder = Path(folder)
    contestants: dict[str, OnnxTextClassifier] = {"float32": OnnxTextClassifier(folder, quantized=False)}
    if (folder / QUANTIZED).is_file():
        contestants["int8"] = OnnxTextClassifier(folder, quantized=True)
    model.eval()

    def torch_logits(rows: Sequence[Any]) -> np.ndarray:
        columns = list(zip(*rows, strict=True)) if isinstance(rows[0], tuple) else [tuple(rows)]
        inputs = tokenizer(*map(list, columns), padding=True, truncation=True, return_tensors="pt")
        return model(**inputs).logits.float().numpy()

    givers: dict[str, Callable[[Sequence[Any]], np.ndarray]] = {"torch": torch_logits}
    givers |= {name: contestant.outputs for name, contestant in contestants.items()}
    logits = {
        name: np.concatenate([give(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)])
        for name, give in givers.items()
    }
    problem_type = model.config.problem_type or "single_label_classification"
    says = {name: predictions_from_logits(values, problem_type) for name, values in logits.items()}

    has_classes = problem_type != "regression"  # of numbers, int8 gives hardly any as float32 does

    def agreement(one: str, other: str) -> float:
        if not has_classes:
            return float(np.isclose(says[one], says[other], atol=LARGEST_DIFFERENCE).mean())
        same = says[one] == says[other]
        return float(same.reshape(len(same), -1).all(axis=1).mean())

    figures = ExportFigures(
        texts=len(texts),
        full_difference=float(np.abs(logits["torch"] - logits["float32"]).max()),
        full_agreement=agreement("torch", "float32"),
        quantized_agreement=agreement("float32", "int8") if "int8" in logits and has_classes else None,
        milliseconds=milliseconds_of(torch_logits, OnnxTextClassifier, folder, list(contestants), texts),
        megabytes=megabytes_of(folder, list(contestants)),
    )
    if labels is not None and problem_type == "single_label_classification":
        figures.accuracy = {name: float((values == np.asarray(labels)).mean()) for name, values in says.items()}
    return figures


def megabytes_of(folder: Path, names: list[str]) -> dict[str, float]:
    return {name: (folder / (QUANTIZED if name == "int8" else FULL)).stat().st_size / 1e6 for name in names}


def milliseconds_of(
    by_torch: Callable[[Sequence[Any]], np.ndarray],
    runtime: type[OnnxEncoder],
    folder: Path,
    names: list[str],
    texts: Sequence[Any],
) -> dict[str, float]:
    """The median time of one text on one thread, by torch and by the models of the export."""
    givers: dict[str, Callable[[Sequence[Any]], Any]] = {"torch": by_torch}
    givers |= {name: runtime(folder, quantized=name == "int8", num_threads=1).outputs for name in names}
    return median_milliseconds(givers, texts, calls=50, warm_up=10)


def median_milliseconds(
    givers: dict[str, Callable[[Sequence[Any]], Any]], texts: Sequence[Any], calls: int, warm_up: int
) -> dict[str, float]:
    """The median time of one text on one thread of torch, all `givers` taking turns with each text."""
    times: dict[str, list[float]] = {name: [] for name in givers}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in range(warm_up + calls):
            for name, give in givers.items():
                start = time.perf_counter()
                give([texts[number % len(texts)]])
                times[name].append(1e3 * (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
    return {name: statistics.median(values[warm_up:]) for name, values in times.items()}


def problems_of(figures: ExportFigures, largest_loss: float) -> list[str]:
    """What the export of an encoder promises and this one does not keep."""
    problems = common_problems(figures.full_difference, figures.milliseconds)
    for name, values in figures.others.items():
        if name.endswith("float32") and values["difference"] > LARGEST_DIFFERENCE:
            problems.append(_difference_of(f"a score of {name}", values["difference"]))
    if figures.full_agreement < 1:
        problems.append(f"float32 says what torch says of {figures.full_agreement:.2%} of the texts, expected of all")
    if "int8" in figures.accuracy and figures.accuracy["float32"] - figures.accuracy["int8"] > largest_loss:
        problems.append(
            f"int8 has an accuracy of {figures.accuracy['int8']:.4f} and float32 {figures.accuracy['float32']:.4f}, "
            f"expected a loss of at most {largest_loss:g}"
        )
    return problems


def common_problems(full_difference: float, milliseconds: dict[str, float]) -> list[str]:
    """What no export may do: give other scores in float32, or be no faster in int8."""
    problems = []
    if full_difference > LARGEST_DIFFERENCE:
        problems.append(_difference_of("a float32 score", full_difference))
    if "int8" in milliseconds and milliseconds["int8"] >= milliseconds["float32"]:
        problems.append(
            f"int8 takes {milliseconds['int8']:.2f} ms a text and float32 {milliseconds['float32']:.2f}, expected less"
        )
    return problems


def _difference_of(what: str, difference: float) -> str:
    return f"{what} differs from torch's by {difference:.1e}, expected at most {LARGEST_DIFFERENCE:.0e}"

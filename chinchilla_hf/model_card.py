"""
The model card of a pretrained model, a classifier of texts or of words, a translator, a model that answers questions,
or an export: `README.md` of its folder, its page on the Hub.

Everything in it comes from the record beside it, so that no number can stand there that no run has given.
"""

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .run_record import RunRecord, write_atomically

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.jinja"
TRANSLATION_TEMPLATE = TEMPLATE.with_name("translation_card.md.jinja")
ANSWERING_TEMPLATE = TEMPLATE.with_name("answering_card.md.jinja")
EXPORT_TEMPLATE = TEMPLATE.with_name("export_card.md.jinja")
TRANSLATOR_EXPORT_TEMPLATE = TEMPLATE.with_name("translator_export_card.md.jinja")
TAGGING_TEMPLATE = TEMPLATE.with_name("tagging_card.md.jinja")
PRETRAINING_TEMPLATE = TEMPLATE.with_name("pretraining_card.md.jinja")

# Of an export, by its task: what runs it, and where that is.
EXPORT_RUNTIMES = {
    "text-classification": ("runtime", "OnnxTextClassifier"),
    "token-classification": ("runtime_encoder", "OnnxTokenClassifier"),
    "question-answering": ("runtime_answering", "OnnxQuestionAnswerer"),
    "feature-extraction": ("runtime_encoder", "OnnxTextEncoder"),
}

# Our metric -> its name in the card, and the name of its family in the Hub's list of metrics.
METRIC_NAMES = {
    "accuracy": ("Accuracy", "accuracy"),
    "subset_accuracy": ("Accuracy, all labels of a text right", "accuracy"),
    "micro_f1": ("Micro F1", "f1"),
    "macro_f1": ("Macro F1", "f1"),
    "weighted_f1": ("Weighted F1", "f1"),
    "mse": ("Mean squared error", "mse"),
    "mae": ("Mean absolute error", "mae"),
    "r2": ("R²", "r_squared"),
    "pearson": ("Pearson correlation", "pearsonr"),
    "spearman": ("Spearman correlation", "spearmanr"),
}
# The same for answers to questions: SQuAD's official names, those of version 1 and of version 2.
ANSWERING_METRIC_NAMES = {
    "exact_match": ("Exact match", "exact_match"),
    "exact": ("Exact match", "exact_match"),
    "f1": ("F1", "f1"),
    "HasAns_exact": ("Exact match, questions with an answer", "exact_match"),
    "HasAns_f1": ("F1, questions with an answer", "f1"),
    "NoAns_f1": ("Right, questions without an answer", "accuracy"),
}
# The same for labels of words; `f1` and its parts are over all entities.
TAGGING_METRIC_NAMES = {"f1": "F1", "precision": "Precision", "recall": "Recall", "accuracy": "Accuracy, of words"}
# The same for pretraining, on held-out documents.
PRETRAINING_METRIC_NAMES = {
    "loss": "Loss, nats a predicted token",
    "masked_accuracy": "Accuracy, of masked tokens",
    "next_token_accuracy": "Accuracy, of the next token",
    "next_sentence_accuracy": "Accuracy, of whether two texts follow each other",
}
# The names in the record of what the card says about the training, and how it says it.
TRAINING_NAMES = {
    "steps": "Steps",
    "epochs": "Epochs",
    "examples": "Examples seen",
    "tokens": "Tokens seen",
    "seconds": "Seconds",
    "flops": "FLOPs",
    "seed": "Seed",
    "resumed": "Times resumed",
}
# Task -> the Auto class of its models, and what a row of its data is called.
AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "translation": "AutoModelForSeq2SeqLM",
    "fill-mask": "AutoModelForMaskedLM",
    "text-generation": "AutoModelForCausalLM",
}
ROW_WORDS = {"token-classification": "sentences", "question-answering": "questions", "translation": "pairs"}
_LOCAL_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".arrow", ".gz", ".zip")


def write_model_card(
    record: RunRecord,
    path: str | os.PathLike[str],
    *,
    model_name: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    image: str = "confusion_matrix.png",
) -> None:
    """
    Write the card of a fine-tuned text classifier, as a whole or not at all.

    Args:
        record: of a finished run; see [`RunRecord`] for the keys. What it does not hold, the card does not say.
        path: the card, `README.md` in the checkpoint folder.
        model_name: title, and what to load: `"me/my-classifier"`; the name of the folder if not given.
        license: identifier on the Hub (`"apache-2.0"`); only you know it, so there is no default.
        language: code (`"en"`), or several.
        image: file name of the confusion matrix, shown if it is beside the card.

    Raises:
        ValueError: the run is not finished.
        OSError: the card cannot be written; an older one is whole.
    """
    _check_finished(record)
    path = Path(path)
    fields = record.to_dict()
    scores, data, base_model = fields["scores"], fields["data"], fields["model"].get("base_model")
    test_scores = {
        name: value for name, value in scores.get("test", {}).items() if name in METRIC_NAMES and value is not None
    }
    label_names = data.get("label_names") or []
    problem_type = fields["model"].get("config", {}).get("problem_type")
    _write_card(
        fields,
        path,
        TEMPLATE,
        task="text-classification",
        metrics=[(*METRIC_NAMES[name], value) for name, value in test_scores.items()],
        model_name=model_name,
        license=license,
        language=language,
        summary=_summary(problem_type, len(label_names), base_model, _data_name(fields)),
        text_pairs=bool(data.get("text_pairs")),
        # Regression has no probability, and multi-label more than one answer.
        pipeline_options={
            "regression": ', function_to_apply="none"',
            "multi_label_classification": ", top_k=None",
        }.get(problem_type, ""),
        score_rows=_score_rows(scores),
        intervals=scores.get("test_interval"),
        baseline=scores.get("baseline"),
        verdict=_verdict(scores),
        image=image if (path.parent / image).is_file() else None,
        labels=[_code(name) for name in label_names],
    )


def write_translation_card(
    record: RunRecord,
    path: str | os.PathLike[str],
    *,
    samples: Sequence[tuple[str, str, str]],
    model_name: str | None = None,
    license: str | None = None,
    image: str = "loss.png",
) -> None:
    """
    Write the card of a translator, as a whole or not at all.

    Args:
        record: of a finished run of `training/translate.py`.
        path: the card, `README.md` in the checkpoint folder.
        samples: sources, references and translations to show.
        model_name: title, and what to load; the name of the folder if not given.
        license: identifier on the Hub; only you know it, so there is no default.
        image: file name of the curves, shown if it is beside the card.

    Raises:
        ValueError: the run is not finished.
        OSError: the card cannot be written; an older one is whole.
    """
    _check_finished(record)
    path = Path(path)
    fields = record.to_dict()
    source, target = fields["data"]["languages"]
    test = fields["scores"]["test"]
    _write_card(
        fields,
        path,
        TRANSLATION_TEMPLATE,
        task="translation",
        metrics=[("BLEU", "bleu", test["bleu"]), ("chrF", "chrf", test["chrf"])],
        model_name=model_name,
        license=license,
        language=[source, target],
        source_language=source,
        target_language=target,
        num_beams=fields["arguments"]["num_beams"],
        score_rows=[
            (name, f"{values['bleu']:.2f}", f"{values['chrf']:.2f}") for name, values in fields["scores"].items()
        ],
        bleu_signature=test["bleu_signature"],
        chrf_signature=test["chrf_signature"],
        image=image if (path.parent / image).is_file() else None,
        samples=[tuple(map(_code, sample)) for sample in samples],
    )


def write_answering_card(
    record: RunRecord,
    path: str | os.PathLike[str],
    *,
    samples: Sequence[tuple[str, str, str]],
    model_name: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
) -> None:
    """
    Write the card of a model that answers questions, as a whole or not at all.

    Args:
        record: of a finished run of `training/answer.py`.
        path: the card, `README.md` in the checkpoint folder.
        samples: questions, right answers and the model's answers to show; an empty text for no answer.
        model_name: title, and what to load; the name of the folder if not given.
        license: identifier on the Hub; only you know it, so there is no default.
        language: code (`"en"`), or several.

    Raises:
        ValueError: the run is not finished.
        OSError: the card cannot be written; an older one is whole.
    """
    _check_finished(record)
    fields = record.to_dict()
    scores = fields["scores"]
    shown = {name: title for name, title in ANSWERING_METRIC_NAMES.items() if name in scores["test"]}
    _write_card(
        fields,
        Path(path),
        ANSWERING_TEMPLATE,
        task="question-answering",
        metrics=[(*title, scores["test"][name]) for name, title in shown.items()],
        model_name=model_name,
        license=license,
        language=language,
        settings=fields["training"].get("question_answering", {}),
        score_rows=[
            (title, *(f"{scores[split][name]:.2f}" for split in ("validation", "test")))
            for name, (title, _) in shown.items()
        ],
        samples=[tuple(_code(text) if text else "(no answer)" for text in sample) for sample in samples],
    )


def write_tagging_card(
    record: RunRecord,
    path: str | os.PathLike[str],
    *,
    model_name: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
) -> None:
    """
    Write the card of a model that labels words, as a whole or not at all.

    Args:
        record: of a finished run of `training/tag.py`.
        path: the card, `README.md` in the checkpoint folder.
        model_name: title, and what to load; the name of the folder if not given.
        license: identifier on the Hub; only you know it, so there is no default.
        language: code (`"en"`), or several.

    Raises:
        ValueError: the run is not finished.
        OSError: the card cannot be written; an older one is whole.
    """
    _check_finished(record)
    fields = record.to_dict()
    scores = fields["scores"]
    baseline = scores.get("baseline") or {}
    splits = (scores["validation"], scores["test"], baseline.get("test"))
    _write_card(
        fields,
        Path(path),
        TAGGING_TEMPLATE,
        task="token-classification",
        metrics=[(title, name, scores["test"][name]) for name, title in TAGGING_METRIC_NAMES.items()],
        model_name=model_name,
        license=license,
        language=language,
        score_rows=[
            (title, *(_score(name, values, None) for values in splits)) for name, title in TAGGING_METRIC_NAMES.items()
        ],
        baseline=baseline.get("model"),
        kinds=[
            (_code(kind), *(_score(name, values, None) for name in ("precision", "recall", "f1")), values["number"])
            for kind, values in scores.get("kinds", {}).items()
            if values["number"]
        ],
        labels=[_code(name) for name in fields["data"].get("label_names", [])],
    )


def write_pretraining_card(
    record: RunRecord,
    path: str | os.PathLike[str],
    *,
    model_name: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    image: str = "loss.png",
) -> None:
    """
    Write the card of a pretrained encoder or decoder, as a whole or not at all. Where the run was planned, it says what
    was predicted and what came out.

    Args:
        record: of a finished run of `training/pretrain.py`.
        path: the card, `README.md` in the checkpoint folder.
        model_name: title, and what to load; the name of the folder if not given.
        license: identifier on the Hub; only you know it, so there is no default.
        language: code (`"en"`), or several.
        image: file name of the curves, shown if it is beside the card.

    Raises:
        ValueError: the run is not finished.
        OSError: the card cannot be written; an older one is whole.
    """
    _check_finished(record)
    path = Path(path)
    fields = record.to_dict()
    validation = fields["scores"]["validation"]
    _write_card(
        fields,
        path,
        PRETRAINING_TEMPLATE,
        task=fields["task"],
        metrics=[],  # the Hub's are of test sets, which pretraining has none of
        model_name=model_name,
        license=license,
        language=language,
        decoder=fields["task"] == "text-generation",
        score_rows=[
            (title, f"{validation[name]:.4f}") for name, title in PRETRAINING_METRIC_NAMES.items() if name in validation
        ],
        plan_rows=_plan_rows(fields["plan"]),
        image=image if (path.parent / image).is_file() else None,
    )


def _plan_rows(plan: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was predicted, and what came out."""
    if not plan:
        return []
    predicted, actual = plan["predicted"], plan["actual"]
    low, high = predicted["loss_interval"]
    rows = [("Loss", f"{predicted['loss']:.4f} ({low:.4f} to {high:.4f})", f"{actual['loss']:.4f}")]
    for key in ("seconds", "tokens", "flops"):
        if predicted[key] is not None:
            expected, found = (_number(values[key], exponent=key == "flops") for values in (predicted, actual))
            rows.append((TRAINING_NAMES[key], expected, found))
    return rows


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


def _write_card(
    fields: dict[str, Any],
    path: Path,
    template: Path,
    *,
    task: str,
    metrics: Sequence[tuple[str, str, float]],
    model_name: str | None,
    license: str | None,
    language: str | list[str] | None,
    **of_template: Any,
) -> None:
    """
    Fill in what all cards have, and what `template` has of its own.

    Args:
        fields: of the run record.
        path: the card.
        template: of the task.
        task: as the Hub names it.
        metrics: title, name of the family in the Hub's list, and test score of each.
        model_name, license, language: as for [`write_model_card`].
        of_template: what only this template asks for.
    """
    model_name = model_name or path.resolve().parent.name
    base_model, data_name = fields["model"].get("base_model"), _data_name(fields)
    hub_data = _hub_name(data_name)
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=["chinchilla", "chinchilla-hf"],
        base_model=_hub_name(base_model),
        datasets=hub_data,
        license=license,
        language=language,
        metrics=sorted({family for _, family, _ in metrics}) or None,
        model_name=model_name,
        eval_results=[
            EvalResult(
                task_type=task,
                # The Hub wants an id; for data that is not there, any word will do.
                dataset_type=hub_data or "unknown",
                dataset_name=data_name,
                dataset_split="test",
                metric_type=family,
                metric_name=title,
                metric_value=score,
            )
            for title, family, score in metrics
        ]
        or None,
    )
    text = (
        _templates()
        .get_template(template.name)
        .render(
            card_data=card_data.to_yaml(),
            model_name=model_name,
            base_model=base_model and _code(base_model),
            data_name=_code(data_name),
            rows=fields["data"].get("rows", {}),
            row_word=ROW_WORDS.get(task, "rows"),
            fingerprint=fields["data"].get("fingerprint"),
            license=license,
            command=fields["command"],
            facts=_facts(fields),
            auto_class=AUTO_CLASSES[task],
            version=fields["versions"].get("chinchilla_hf"),
            **of_template,
        )
    )
    text = re.sub(r"\n{3,}", "\n\n", text)  # of blocks that are empty
    card = ModelCard(text)  # which reads the metadata back
    write_atomically(path, f"{str(card).rstrip()}\n".encode())


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=False)


def _data_name(fields: dict[str, Any]) -> str:
    return str(fields["data"].get("name", "unnamed data"))


def _check_finished(record: RunRecord) -> None:
    if record.status != "finished":
        raise ValueError(
            f"status of the run record is {record.status!r}, but a card is written of a 'finished' run: "
            "let the run end, or resume it"
        )


def _hub_name(name: str | None) -> str | None:
    """`name` if it looks like `owner/name` on the Hub and is no file or folder here, else `None`."""
    if not name or name.count("/") != 1 or name.lower().endswith(_LOCAL_SUFFIXES) or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _code(text: Any) -> str:
    """`text` as code in one line of Markdown, whatever is in it."""
    line = " ".join(str(text).split())
    # A fence of more backticks than the text has in a row (CommonMark, code spans).
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if "`" in line or not line else ""
    return f"{fence}{space}{line}{space}{fence}"


def _summary(problem_type: str | None, labels: int, base_model: str | None, data_name: str) -> str:
    what = {
        "regression": "A model that gives a text a number",
        "multi_label_classification": f"A text classifier with {labels} labels, any number of which a text may have",
    }.get(problem_type or "", f"A text classifier with {labels} classes")
    origin = f", fine-tuned from {_code(base_model)}" if base_model else ", trained from scratch"
    return f"{what}{origin} on {_code(data_name)}."


def _score_rows(scores: dict[str, Any]) -> list[dict[str, str]]:
    """Rows of the table: name of a metric, what the model has, what the baseline has."""
    baseline = scores.get("baseline") or {}
    return [
        {
            "name": METRIC_NAMES[name][0],
            "model": _score(name, scores["test"], scores.get("test_interval")),
            "baseline": _score(name, baseline.get("test"), baseline.get("test_interval")),
        }
        for name in scores.get("test", {})
        if name in METRIC_NAMES
    ]


def _score(name: str, values: dict[str, float] | None, intervals: dict[str, list[float]] | None) -> str:
    value = (values or {}).get(name)
    if value is None:
        return "–"
    interval = (intervals or {}).get(name)
    return f"{value:.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")


def _verdict(scores: dict[str, Any]) -> str | None:
    """One sentence where the cheap model is as good: a reader of the table should not have to find it out."""
    baseline = (scores.get("baseline") or {}).get("test", {})
    for name in ("accuracy", "micro_f1", "r2"):
        ours, theirs = scores.get("test", {}).get(name), baseline.get(name)
        if ours is not None and theirs is not None:
            return None if ours > theirs else "The baseline is as good or better here, and far cheaper to run."
    return None


def _facts(fields: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the table about the training."""
    training, machine, versions = fields["training"], fields["machine"], fields["versions"]
    facts = []
    if "parameters" in fields["model"]:
        trained = fields["model"].get("trained_parameters", fields["model"]["parameters"])
        facts.append(
            (
                "Model",
                f"{fields['model'].get('class', 'Model')}, {fields['model']['parameters']:,} parameters"
                + (f", {trained:,} trained" if trained != fields["model"]["parameters"] else ""),
            )
        )
    for key, name in TRAINING_NAMES.items():
        if training.get(key) is not None:
            facts.append((name, _number(training[key], exponent=key == "flops")))
    if training.get("energy"):
        hours, watts = training["energy"]["watt_hours"], training["energy"]["assumed_watts"]
        facts.append(("Energy, estimated", f"{hours:,.1f} Wh, if the machine takes {watts:g} W"))
    machine_parts = [
        str(machine[key]) + (" threads" if key == "threads" else "")
        for key in ("gpu", "cpu", "threads")
        if machine.get(key)
    ]
    if machine_parts:
        facts.append(("Machine", ", ".join(machine_parts)))
    if versions:
        facts.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return facts


def _number(value: Any, exponent: bool) -> str:
    if exponent:
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"

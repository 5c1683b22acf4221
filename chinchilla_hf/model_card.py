"""
The model card of a run, whatever its task: `README.md` of its folder, its page on the Hub.

    write_model_card(RunRecord.read("runs/tweets/run.json"), "runs/tweets/README.md", license="apache-2.0")

Everything in it comes from the record beside it, so that no number can stand there that no run has given.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .output_folder import RUN_RECORD
from .run_record import RunRecord, write_atomically
from .runtime import EXPORT_RECORD
from .sentence_folder import SENTENCE_MODULES

TEMPLATES = Path(__file__).parent / "templates"

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
# The same for encoders that were distilled, on held-out documents.
ENCODING_METRIC_NAMES = {
    "loss": "Loss",
    "similarity_correlation": "Rank correlation with the teacher, of how alike two texts are",
    "vector_cosine": "Cosine of the vector of a text with the teacher's, the mean",
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
# What stands in an export's figures -> what it is called.
EXPORT_NAMES = {
    "torch": "PyTorch, float32",
    "float32": "ONNX Runtime, float32",
    "int8": "ONNX Runtime, int8",
}
LOSSES, CONFUSIONS = "loss.png", "confusion_matrix.png"
_LOCAL_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".arrow", ".gz", ".zip")


@dataclasses.dataclass(frozen=True)
class _Task:
    """
    What the cards of a task have of their own.

    Args:
        template: in `templates`.
        facts: from the fields of the record and the folder of the card, what the template asks for; `metrics` among it:
            title, name of the family in the Hub's list, and test score of each.
        auto_class: that loads the model.
        rows: what a row of its data is called.
    """

    template: str
    facts: Callable[[dict[str, Any], Path], dict[str, Any]]
    auto_class: str
    rows: str = "rows"


def write_model_card(
    record: RunRecord,
    path: str | os.PathLike[str],
    *,
    model_name: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    hub_names: Collection[str] | None = None,
    **metadata: Any,
) -> None:
    """
    Write the card of a finished run, as a whole or not at all.

    Args:
        record: of the run; see [`RunRecord`] for the keys. What it does not hold, the card does not say.
        path: the card, `README.md` in the checkpoint folder. Pictures are shown that are beside it.
        model_name: title, and what to load: `"me/my-classifier"`; if not given, the run's `hub_model_id`, or the name
            of the folder.
        license: identifier on the Hub (`"apache-2.0"`); only you know it, so without it and the run's option of this
            name the card names none.
        language: code (`"en"`), or several; if not given, the run's option of this name.
        hub_names: those of the data and of the model that the run began with, where they are on the Hub; if not given,
            those that look so and are no path here.
        metadata: more of it, such as `license_name`.

    Raises:
        ValueError: the run is not finished, or of a task that has no card.
        OSError: the card cannot be written; an older one is whole.
    """
    if record.status != "finished":
        raise ValueError(
            f"status of the run record is {record.status!r}, but a card is written of a 'finished' run: "
            "let the run end, or resume it"
        )
    if record.task not in TASKS:
        raise ValueError(f"the run's task is {record.task!r}, but there are cards of {', '.join(TASKS)}")
    task, path = TASKS[record.task], Path(path)
    fields = record.to_dict()
    options = fields["arguments"]
    model_name = model_name or options.get("hub_model_id") or path.resolve().parent.name
    license = license or options.get("license")
    base_model, data_name = fields["model"].get("base_model"), _data_name(fields)
    hub_data, hub_model = (
        _hub_name(name) if hub_names is None or name in hub_names else None for name in (data_name, base_model)
    )
    facts = task.facts(fields, path.parent)
    metrics = facts.pop("metrics", [])
    card_data = ModelCardData(
        library_name=facts.pop("library_name", "transformers"),
        pipeline_tag=facts.pop("pipeline_tag", record.task),
        tags=["chinchilla", "chinchilla-hf"],
        base_model=hub_model,
        datasets=hub_data,
        license=license,
        language=language or options.get("language") or fields["data"].get("languages"),
        metrics=sorted({family for _, family, _ in metrics}) or None,
        model_name=model_name,
        eval_results=[
            EvalResult(
                task_type=record.task,
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
        **{name: value for name, value in metadata.items() if value is not None},
    )
    text = (
        _templates()
        .get_template(task.template)
        .render(
            card_data=card_data.to_yaml(),
            model_name=model_name,
            base_model=base_model and _code(base_model),
            data_name=_code(data_name),
            rows=fields["data"].get("rows", {}),
            row_word=task.rows,
            fingerprint=fields["data"].get("fingerprint"),
            data_description=fields["data"].get("description"),
            license=license,
            command=fields["command"],
            facts=_facts(fields),
            auto_class=task.auto_class,
            version=fields["versions"].get("chinchilla_hf"),
            runtimes=_runtimes(fields["exported"]),
            image=LOSSES if (path.parent / LOSSES).is_file() else None,
            **facts,
        )
    )
    text = re.sub(r"\n{3,}", "\n\n", text)  # of blocks that are empty
    card = ModelCard(text)  # which reads the metadata back
    write_atomically(path, f"{str(card).rstrip()}\n".encode())


def add_export(folder: str | os.PathLike[str], export: str | os.PathLike[str]) -> bool:
    """
    Put the figures of an export into the record and the card of the run that it is of; whether there is such a run.

    Args:
        folder: of the checkpoint.
        export: folder of the export.

    Raises:
        OSError: record or card cannot be written.
    """
    folder = Path(folder)
    path, card_path = folder / RUN_RECORD, folder / "README.md"
    if not path.is_file():
        return False
    record = RunRecord.read(path)
    if record.status != "finished" or record.task not in TASKS:
        return False
    weights = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    said = json.loads(Path(export, EXPORT_RECORD).read_text(encoding="utf-8"))
    figures = said["figures"]
    record.exported = {name: figures[name] for name in ("texts", "milliseconds", "others") if name in figures}
    record.exported["megabytes"] = {"torch": weights / 1e6, **figures["megabytes"]}
    record.exported["machine"] = said["machine"]
    record.write(path)
    rewrite_model_card(record, card_path)
    return True


def rewrite_model_card(record: RunRecord, path: str | os.PathLike[str]) -> None:
    """
    [`write_model_card`] in place of an older card, of which licence, languages and links to the Hub are kept: what is
    a path on the machine of the run may look like a name where it is not.
    """
    known = ModelCard.load(Path(path)).data.to_dict() if Path(path).is_file() else {}
    kept = {name: known[name] for name in ("license", "license_name", "language") if name in known}
    if known:
        links = (known.get("base_model"), known.get("datasets"))  # a name or, of other cards, several
        kept["hub_names"] = [name for link in links for name in ([link] if isinstance(link, str) else link or [])]
    write_model_card(record, path, **kept)


def _runtimes(exported: dict[str, Any]) -> dict[str, Any]:
    """Rows of the table of runtimes, the slowest first, and what they were measured on."""
    if not exported:
        return {}
    sizes = exported["megabytes"]
    rows = [
        (EXPORT_NAMES.get(name, name), milliseconds, sizes.get(name))
        for name, milliseconds in exported["milliseconds"].items()
    ]
    rows += [(name, value["milliseconds"], value["megabytes"]) for name, value in exported.get("others", {}).items()]
    return {
        "rows": [
            (name, f"{milliseconds:.2f}", "" if size is None else f"{size:.1f}")
            for name, milliseconds, size in sorted(rows, key=lambda row: -row[1])
        ],
        "texts": exported["texts"],
        "machine": exported["machine"]["cpu"],
    }


def _classification(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    scores, data = fields["scores"], fields["data"]
    label_names = data.get("label_names") or []
    problem_type = fields["model"].get("config", {}).get("problem_type")
    return {
        "metrics": [
            (*METRIC_NAMES[name], value)
            for name, value in scores.get("test", {}).items()
            if name in METRIC_NAMES and value is not None
        ],
        "summary": _summary(problem_type, len(label_names), fields["model"], _data_name(fields)),
        "text_pairs": bool(data.get("text_pairs")),
        # Regression has no probability, and multi-label more than one answer.
        "pipeline_options": {
            "regression": ', function_to_apply="none"',
            "multi_label_classification": ", top_k=None",
        }.get(problem_type, ""),
        "score_rows": _score_rows(scores),
        "intervals": scores.get("test_interval"),
        "teacher_scores": scores.get("teacher"),
        "baseline": scores.get("baseline"),
        "verdict": _verdict(scores),
        "confusions": CONFUSIONS if (folder / CONFUSIONS).is_file() else None,
        "labels": [_code(name) for name in label_names],
    }


def _translation(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    source, target = fields["data"]["languages"]
    scores = fields["scores"]
    test, baseline = scores["test"], scores.get("baseline")
    rows = {name: scores[name] for name in ("validation", "test") if name in scores}
    if baseline:
        rows[f"test, {baseline['model']}"] = baseline["test"]
    return {
        "metrics": [("BLEU", "bleu", test["bleu"]), ("chrF", "chrf", test["chrf"])],
        "source_language": source,
        "target_language": target,
        "num_beams": fields["arguments"]["num_beams"],
        "score_rows": [
            (name, *(_with_interval(values, metric) for metric in ("bleu", "chrf"))) for name, values in rows.items()
        ],
        "with_intervals": "bleu_interval" in test,
        "bleu_signature": test["bleu_signature"],
        "chrf_signature": test["chrf_signature"],
        "samples": [tuple(map(_code, sample)) for sample in fields["samples"]],
    }


def _with_interval(values: dict[str, Any], metric: str) -> str:
    interval = values.get(f"{metric}_interval")
    told = f"{values[metric]:.2f}"
    return told if interval is None else f"{told} ({interval[0]:.2f} to {interval[1]:.2f})"


def _answering(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    scores = fields["scores"]
    shown = {name: title for name, title in ANSWERING_METRIC_NAMES.items() if name in scores["test"]}
    return {
        "metrics": [(*title, scores["test"][name]) for name, title in shown.items()],
        "settings": fields["training"].get("question_answering", {}),
        "score_rows": [
            (title, *(f"{scores[split][name]:.2f}" for split in ("validation", "test")))
            for name, (title, _) in shown.items()
        ],
        "samples": [tuple(_code(text) if text else "(no answer)" for text in sample) for sample in fields["samples"]],
    }


def _tagging(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    scores = fields["scores"]
    baseline = scores.get("baseline") or {}
    splits = (scores["validation"], scores["test"], baseline.get("test"))
    return {
        "metrics": [(title, name, scores["test"][name]) for name, title in TAGGING_METRIC_NAMES.items()],
        "score_rows": [
            (title, *(_score(name, values, None) for values in splits)) for name, title in TAGGING_METRIC_NAMES.items()
        ],
        "baseline": baseline.get("model"),
        "kinds": [
            (_code(kind), *(_score(name, values, None) for name in ("precision", "recall", "f1")), values["number"])
            for kind, values in scores.get("kinds", {}).items()
            if values["number"]
        ],
        "labels": [_code(name) for name in fields["data"].get("label_names", [])],
    }


def _pretraining(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    validation = fields["scores"]["validation"]  # the Hub's metrics are of test sets, which pretraining has none of
    return {
        "decoder": fields["task"] == "text-generation",
        "score_rows": [
            (title, f"{validation[name]:.4f}") for name, title in PRETRAINING_METRIC_NAMES.items() if name in validation
        ],
        "plan_rows": _plan_rows(fields["plan"]),
    }


def _encoding(fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    validation, model = fields["scores"]["validation"], fields["model"]
    facts: dict[str, Any] = {
        "teacher": _code(model["teacher"]["base_model"]),
        "sizes": [(name, of["parameters"]) for name, of in (("this model", model), ("its teacher", model["teacher"]))],
        "score_rows": [
            (title, f"{validation[name]:.4f}") for name, title in ENCODING_METRIC_NAMES.items() if name in validation
        ],
        "max_length": fields["arguments"].get("max_length"),
        "hidden_size": model["config"]["hidden_size"],
        "compares": (folder / SENTENCE_MODULES).is_file(),
    }
    if facts["compares"]:
        facts |= {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity"}
    return facts


def _plan_rows(plan: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was predicted, and what came out."""
    if not plan:
        return []
    predicted, actual = plan["predicted"], plan["actual"]
    low, high = predicted["loss_interval"]
    rows = [("Loss", f"{predicted['loss']:.4f} ({low:.4f} to {high:.4f})", f"{actual['loss']:.4f}")]
    if "predicted_loss" in actual:
        low, high = actual["predicted_loss_interval"]
        expected = f"{actual['predicted_loss']:.4f} ({low:.4f} to {high:.4f})"
        rows.append(("Loss, for the tokens that it saw", expected, f"{actual['loss']:.4f}"))
    for key in ("seconds", "tokens", "flops"):
        if predicted[key] is not None:
            expected, found = (_number(values[key], exponent=key == "flops") for values in (predicted, actual))
            rows.append((TRAINING_NAMES[key], expected, found))
    return rows


# Task of a run -> its card.
TASKS = {
    "text-classification": _Task("model_card.md.jinja", _classification, "AutoModelForSequenceClassification"),
    "token-classification": _Task("tagging_card.md.jinja", _tagging, "AutoModelForTokenClassification", "sentences"),
    "question-answering": _Task("answering_card.md.jinja", _answering, "AutoModelForQuestionAnswering", "questions"),
    "translation": _Task("translation_card.md.jinja", _translation, "AutoModelForSeq2SeqLM", "pairs"),
    "fill-mask": _Task("pretraining_card.md.jinja", _pretraining, "AutoModelForMaskedLM"),
    "feature-extraction": _Task("encoder_card.md.jinja", _encoding, "AutoModel", "texts"),
    "text-generation": _Task("pretraining_card.md.jinja", _pretraining, "AutoModelForCausalLM"),
}


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=False)


def _data_name(fields: dict[str, Any]) -> str:
    return str(fields["data"].get("name", "unnamed data"))


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


def _summary(problem_type: str | None, labels: int, model: dict[str, Any], data_name: str) -> str:
    what = {
        "regression": "A model that gives a text a number",
        "multi_label_classification": f"A text classifier with {labels} labels, any number of which a text may have",
    }.get(problem_type or "", f"A text classifier with {labels} classes")
    base_model, teacher = model.get("base_model"), model.get("teacher")
    origin = f", fine-tuned from {_code(base_model)}" if base_model else ", trained from scratch"
    taught = ""
    if teacher:
        taught = f" It was taught by {_code(teacher['base_model'])}, which has {teacher['parameters']:,} parameters."
    return f"{what}{origin} on {_code(data_name)}.{taught}"


def _score_rows(scores: dict[str, Any]) -> list[dict[str, str]]:
    """Rows of the table: name of a metric, what the model has, what its teacher and the baseline have."""
    baseline, teacher = scores.get("baseline") or {}, scores.get("teacher") or {}
    return [
        {
            "name": METRIC_NAMES[name][0],
            "model": _score(name, scores["test"], scores.get("test_interval")),
            "teacher": _score(name, teacher.get("test"), None),
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
        str(machine[key]) + ("" if key != "threads" else " thread" if machine[key] == 1 else " threads")
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

"""
Metrics of text classification, regression, token classification and translation, without the Hub.

`evaluate.load("accuracy")` downloads a script; [`TextClassification`], [`TokenClassification`] and [`Translation`] are
the same kind of object with their code here. The values come from scikit-learn, SciPy, seqeval and sacreBLEU. What a
metric of classification is called depends on the kind of problem, named as in `config.problem_type` of Transformers.
"""

import io
import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics

from .run_record import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import EvalPrediction

# Problem type -> the metric that chooses among fitted heads and among baselines. Greater is better for all three.
MAIN_METRIC = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "micro_f1",
    "regression": "r2",
}


def check_problem_type(problem_type: str) -> None:
    """Raise `ValueError` unless `problem_type` is one of Transformers' three."""
    if problem_type not in MAIN_METRIC:
        raise ValueError(f"problem_type is {problem_type!r}, but must be one of {', '.join(MAIN_METRIC)}: choose one")


def text_metrics(predictions: Any, references: Any, problem_type: str) -> dict[str, float]:
    """
    All metrics of one kind of problem.

    Args:
        predictions: `(rows,)` class ids or names, `(rows, labels)` of 0 and 1 for multi-label, `(rows,)` numbers for
            regression.
        references: the same, of the truth.
        problem_type: a key of `MAIN_METRIC`.

    Returns:
        `accuracy`, `macro_f1`, `weighted_f1`; or, for multi-label, `subset_accuracy` (all labels of a row right),
        `micro_f1`, `macro_f1`; or `mse`, `mae`, `r2`, `pearson`, `spearman`. An undefined correlation is NaN.

    Raises:
        ValueError: an unknown problem type, no rows, or shapes that do not fit together.
    """
    check_problem_type(problem_type)
    predictions, references = np.asarray(predictions), np.asarray(references)
    dimensions = 2 if problem_type == "multi_label_classification" else 1
    if predictions.shape != references.shape or references.ndim != dimensions or len(references) == 0:
        raise ValueError(
            f"predictions have shape {predictions.shape} and references {references.shape}, but {problem_type} needs "
            f"the same {'(rows, labels)' if dimensions == 2 else '(rows,)'} for both, with at least one row: "
            "check that both come from the same split"
        )
    if problem_type == "regression":
        mse = sklearn_metrics.mean_squared_error(references, predictions)
        # Of one row, or where all values are equal, these are not defined; the libraries would also warn.
        spread = len(references) > 1 and np.ptp(references) > 0
        correlated = spread and np.ptp(predictions) > 0
        values = {
            "mse": mse,
            "mae": sklearn_metrics.mean_absolute_error(references, predictions),
            "r2": sklearn_metrics.r2_score(references, predictions) if spread else np.nan,
            "pearson": stats.pearsonr(references, predictions).statistic if correlated else np.nan,
            "spearman": stats.spearmanr(references, predictions).statistic if correlated else np.nan,
        }
    else:
        # zero_division=0 is what scikit-learn does by default for a class that is never predicted, less its warning.
        f1 = {
            f"{average}_f1": sklearn_metrics.f1_score(references, predictions, average=average, zero_division=0)
            for average in (("micro", "macro") if dimensions == 2 else ("macro", "weighted"))
        }
        accuracy = "subset_accuracy" if dimensions == 2 else "accuracy"
        values = {accuracy: sklearn_metrics.accuracy_score(references, predictions), **f1}
    return {name: float(value) for name, value in values.items()}


class _LocalMetric(evaluate.Metric):
    """An `evaluate` metric that, unless `keep_in_memory=False` or with several processes, leaves the disk alone."""

    def __init__(self, config_name: str | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("keep_in_memory", kwargs.get("num_process", 1) == 1)
        super().__init__(config_name, **kwargs)

    def _build_data_dir(self) -> str:
        # The base class makes a folder in the cache even where it will keep everything in memory.
        return "" if self.keep_in_memory else super()._build_data_dir()

    def _finalize(self) -> None:
        if self.keep_in_memory and self.writer is None:
            raise ValueError("there are no rows to score: call add or add_batch first, or pass them to compute")
        super()._finalize()


class TextClassification(_LocalMetric):
    """
    The metrics of [`text_metrics`] as an `evaluate` metric: `compute`, `add`, `add_batch`, `evaluate.combine`.

    Args:
        config_name: the problem type; single-label classification if not given.
        kwargs: see `evaluate.Metric`. Unless `keep_in_memory=False`, or several processes, nothing is written to the
            user's cache.

    Example:

    ```python
    >>> TextClassification().compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])["accuracy"]
    0.75
    ```
    """

    def __init__(self, config_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(config_name or "single_label_classification", **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        check_problem_type(self.config_name)
        value: Any = datasets.Value("float64" if self.config_name == "regression" else "int64")
        if self.config_name == "multi_label_classification":
            value = datasets.Sequence(value)
        return evaluate.MetricInfo(
            description="Accuracy and F1, or errors and correlations, of a text classifier.",
            citation="",
            inputs_description=(
                "predictions, references: one class id a row; for multi-label one list of 0 and 1 a row; "
                "for regression one number a row."
            ),
            features=datasets.Features({"predictions": value, "references": value}),
            reference_urls=["https://scikit-learn.org/stable/modules/model_evaluation.html"],
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add rows; see `evaluate.Metric.add_batch`. Raises `ValueError` where ids are expected but scores come."""
        if self.config_name != "regression":
            for name, values in (("predictions", predictions), ("references", references)):
                array = np.asarray(values)
                # The base class would cut 0.9 down to 0 without a word.
                if array.dtype.kind == "f" and not np.array_equal(array, np.trunc(array)):
                    raise ValueError(
                        f"{name} hold {array[array != np.trunc(array)].flat[0]}, but {self.config_name} needs whole "
                        "numbers: pass class ids (argmax) or 0 and 1 (logits > 0), not scores"
                    )
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return text_metrics(predictions, references, self.config_name)


def translation_metrics(
    predictions: Sequence[str], references: Sequence[str], target_language: str | None = None, *, n_bootstrap: int = 1
) -> dict[str, Any]:
    """
    BLEU and chrF of translations, by sacreBLEU (Post 2018), against one reference each.

    Args:
        predictions, references: detokenised texts, as a reader would get them.
        target_language: code; Chinese, Japanese and Korean have no spaces and need tokenizers of their own.
        n_bootstrap: samples of the texts for intervals of 95%; 1: none.

    Returns:
        `bleu` and `chrf`, 0 to 100, and `bleu_signature`, `chrf_signature`: what to quote beside the figures; with
        samples also `bleu_interval` and `chrf_interval`, lowest and highest.

    Raises:
        ValueError: no rows, or different numbers of them.
    """
    from sacrebleu.metrics import BLEU, CHRF

    if len(predictions) != len(references) or not references:
        raise ValueError(
            f"there are {len(predictions)} predictions and {len(references)} references, but a translation is scored "
            "against a reference each: check that both come from the same split"
        )
    tokenizer = {"zh": "zh", "ja": "char", "ko": "char"}.get((target_language or "").split("-")[0].split("_")[0], "13a")
    scores: dict[str, Any] = {}
    for name, metric in (("bleu", BLEU(tokenize=tokenizer)), ("chrf", CHRF())):
        found = metric.corpus_score(list(predictions), [list(references)], n_bootstrap=n_bootstrap)
        scores[name] = float(found.score)
        scores[f"{name}_signature"] = str(metric.get_signature())
        if n_bootstrap > 1:
            scores[f"{name}_interval"] = [float(found._mean - found._ci), float(found._mean + found._ci)]
    return scores


class Translation(_LocalMetric):
    """
    The metrics of [`translation_metrics`] as an `evaluate` metric.

    Args:
        config_name: code of the target language; see [`translation_metrics`].
        kwargs: see `evaluate.Metric`.

    Example:

    ```python
    >>> texts = ["Ein Hund bellt sehr laut."]
    >>> Translation().compute(predictions=texts, references=texts)["chrf"]
    100.0
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value("string")
        return evaluate.MetricInfo(
            description="BLEU and chrF of translations.",
            citation="",
            inputs_description="predictions, references: one detokenised text a row.",
            features=datasets.Features({"predictions": value, "references": value}),
            reference_urls=["https://github.com/mjpost/sacrebleu"],
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        language = None if self.config_name in (None, "default") else self.config_name
        return translation_metrics(predictions, references, language)


def tagging_metrics(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """
    Precision, recall and F1 of entities, by seqeval (Nakayama 2018), which counts as the script of the CoNLL tasks.

    Labels with a prefix (`B-PER`, `I-PER`) are entities as seqeval reads them, in IOB1, IOB2 or BIOES. Of plain labels,
    where there is an `O`, words in a row with the same other label are one entity; where there is none, as for parts
    of speech, every word is one.

    Args:
        predictions, references: the labels of every sentence, of as many words.

    Returns:
        What `evaluate.load("seqeval")` gives: `overall_precision`, `overall_recall` and `overall_f1` over all entities,
        `overall_accuracy`, the share of words with the right label, and for every kind of entity a dictionary with
        `precision`, `recall`, `f1` and `number`, of those in the references.

    Raises:
        ValueError: no sentences, or predictions that do not fit the references; the message names the sentence.
    """
    from seqeval.metrics import accuracy_score, classification_report

    if len(predictions) != len(references) or not references:
        raise ValueError(
            f"there are {len(predictions)} sentences of predictions and {len(references)} of references, but needs as "
            "many of both, at least one: check that both come from the same split"
        )
    for number, (guessed, true) in enumerate(zip(predictions, references, strict=True)):
        if len(guessed) != len(true):
            raise ValueError(
                f"sentence {number} has {len(guessed)} predictions, but {len(true)} references: give a label a word"
            )
    labels = {label for row in references for label in row} | {label for row in predictions for label in row}
    if any(label.startswith(("B-", "I-", "E-", "S-")) for label in labels):
        prefix = ""
    else:
        prefix = "I-" if "O" in labels else "B-"
    right, predicted = (
        [[label if label == "O" else f"{prefix}{label}" for label in row] for row in rows]
        for rows in (references, predictions)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # without any entity: the mean over no kinds, which is not used
        report = classification_report(right, predicted, output_dict=True, zero_division=0)
    averages = {name: report.pop(name) for name in list(report) if name.endswith(" avg")}
    scores: dict[str, Any] = {
        name: {
            "precision": float(values["precision"]),
            "recall": float(values["recall"]),
            "f1": float(values["f1-score"]),
            "number": int(values["support"]),
        }
        for name, values in report.items()
    }
    overall = averages["micro avg"]
    for name, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        scores[f"overall_{name}"] = float(overall[theirs])
    scores["overall_accuracy"] = float(accuracy_score(right, predicted))
    return scores


class TokenClassification(_LocalMetric):
    """
    The metrics of [`tagging_metrics`] as an `evaluate` metric.

    Example:

    ```python
    >>> references = [["B-PER", "I-PER", "O"]]
    >>> TokenClassification().compute(predictions=[["B-PER", "O", "O"]], references=references)["overall_f1"]
    0.0
    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description="Precision, recall and F1 of entities.",
            citation="",
            inputs_description="predictions, references: a list of labels a sentence, one a word.",
            features=datasets.Features({"predictions": value, "references": value}),
            reference_urls=["https://github.com/chakki-works/seqeval"],
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, Any]:
        return tagging_metrics(predictions, references)


def tag_sequences(
    predictions: np.ndarray, labels: np.ndarray, label_names: Sequence[str]
) -> tuple[list[list[str]], list[list[str]]]:
    """
    Names of predictions and of labels, sentence by sentence, of the words that have a label.

    Args:
        predictions, labels: `(sentences, length)` ids; -100 in `labels` where there is nothing to predict.
        label_names: name of every label, in the order of the ids.
    """
    names = np.array(list(label_names), dtype=object)
    rows = [
        (predicted[right != -100], right[right != -100]) for predicted, right in zip(predictions, labels, strict=True)
    ]
    return [names[predicted].tolist() for predicted, _ in rows], [names[right].tolist() for _, right in rows]


def tagging_compute_metrics(label_names: Sequence[str]) -> "Callable[[EvalPrediction], dict[str, float]]":
    """
    `compute_metrics` beside [`token_predictions`], for a Trainer that fine-tunes a token classification model: `f1`,
    `precision`, `recall` and `accuracy`, over all entities.
    """

    def compute_metrics(prediction: "EvalPrediction") -> dict[str, float]:
        sequences = tag_sequences(np.asarray(prediction.predictions), np.asarray(prediction.label_ids), label_names)
        scores = tagging_metrics(*sequences)
        return {name: scores[f"overall_{name}"] for name in ("f1", "precision", "recall", "accuracy")}

    return compute_metrics


def predictions_from_logits(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """
    What a model that gives `logits` of shape `(rows, labels)` says: `(rows,)` class ids; for multi-label
    `(rows, labels)` of 0 and 1, 1 above a logit of 0, which is a probability of one half; for regression `(rows,)`.

    Raises:
        ValueError: an unknown problem type, logits that are not finite, or more than one number a row to regress.
    """
    check_problem_type(problem_type)
    bad_rows = int((~np.isfinite(logits)).reshape(len(logits), -1).any(axis=1).sum())
    if bad_rows:  # argmax of NaN is 0, which would score as an honest guess of the first class
        raise ValueError(
            f"the logits of {bad_rows} of {len(logits)} rows are not finite, so the training has diverged: "
            "go back to an earlier checkpoint and lower the learning rate"
        )
    if problem_type == "single_label_classification":
        return logits.argmax(axis=-1)
    if problem_type == "multi_label_classification":
        return (logits > 0).astype(np.int64)
    if logits.size != len(logits):
        raise ValueError(f"the logits have shape {logits.shape}, but regression needs one a row: set num_labels=1")
    return logits.reshape(len(logits))


def classification_compute_metrics(problem_type: str) -> "Callable[[EvalPrediction], dict[str, float]]":
    """
    `compute_metrics` for a Trainer that fine-tunes a sequence classification model.

    Raises:
        ValueError: an unknown problem type, now; what [`predictions_from_logits`] and [`text_metrics`] refuse, later.
    """
    check_problem_type(problem_type)

    def compute_metrics(prediction: "EvalPrediction") -> dict[str, float]:
        # A model that returns hidden states or attentions too gives a tuple, logits first.
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        labels = np.asarray(prediction.label_ids)
        if problem_type == "regression":
            labels = labels.reshape(len(labels))
        elif problem_type == "multi_label_classification":
            labels = labels.astype(np.int64)  # the loss wants floats, the metrics want labels
        return text_metrics(predictions_from_logits(np.asarray(logits), problem_type), labels, problem_type)

    return compute_metrics


def token_predictions(logits: Any, labels: Any) -> Any:
    """
    `preprocess_logits_for_metrics` of a Trainer that pretrains: the most likely token or class where there is a label,
    and -100 elsewhere, so that an evaluation keeps `(batch, length)` numbers and not a score for every token there is.

    Args:
        logits: `(labelled positions, classes)`, or `(batch, length, classes)`; or a tuple of such, one an objective.
        labels: `(batch, length)`, -100 where there is nothing to predict; or a tuple of such.
    """
    if isinstance(labels, tuple):
        return tuple(token_predictions(*pair) for pair in zip(logits, labels, strict=True))
    labelled = labels != -100
    if logits.ndim == 3:
        logits = logits[labelled]
    predictions = labels.new_full(labels.shape, -100)
    predictions[labelled] = logits.argmax(dim=-1)
    return predictions


def next_token_predictions(logits: Any, labels: Any) -> Any:
    """
    As [`token_predictions`], for a decoder: at every position the most likely token after those before it.

    Args:
        logits: `(batch, length, classes)`; those of a position are for the next one.
        labels: `(batch, length)`, -100 where there is nothing to predict.
    """
    predictions = labels.clone()
    predictions[:, 1:] = logits[:, :-1].argmax(dim=-1)
    return predictions.masked_fill(labels == -100, -100)


def pretraining_compute_metrics(
    prediction: "EvalPrediction", names: tuple[str, ...] = ("masked_accuracy", "next_sentence_accuracy")
) -> dict[str, float]:
    """
    `compute_metrics` beside [`token_predictions`]: of every kind of label, under its name, the share that is predicted.
    """
    labels, predictions = (
        part if isinstance(part, tuple) else (part,) for part in (prediction.label_ids, prediction.predictions)
    )
    return {
        name: float((predicted[label != -100] == label[label != -100]).mean())
        for name, label, predicted in zip(
            names,
            map(np.asarray, labels),
            map(np.asarray, predictions),
            strict=False,
        )
    }


def confidence_interval(accuracy: float, rows: int, confidence_level: float = 0.95) -> tuple[float, float]:
    """
    Wilson's score interval of an accuracy that was measured on `rows` rows (Wilson 1927, JASA 22:209-212).

    It says how far another test set of the same size and kind may fall from this one; it knows nothing of the
    luck of the training run.

    Raises:
        ValueError: an accuracy outside 0 to 1, or no rows.
    """
    if not 0 <= accuracy <= 1 or rows < 1:
        raise ValueError(
            f"accuracy is {accuracy} on {rows} rows, but must be from 0 to 1 on at least one row: "
            "pass the share of right answers, not their number or a percentage"
        )
    interval = stats.binomtest(round(accuracy * rows), rows).proportion_ci(confidence_level, method="wilson")
    return float(interval.low), float(interval.high)


# Above the first number of classes, counts do not fit into the cells; above the second, names not along the axes.
_MAX_CLASSES_WITH_COUNTS = 12
_MAX_CLASSES_WITH_NAMES = 40
_LISTED_PAIRS = 20
_LONGEST_NAME = 26


def plot_confusion_matrix(
    references: Sequence[int] | np.ndarray,
    predictions: Sequence[int] | np.ndarray,
    label_names: Sequence[str],
    path: str | os.PathLike[str],
) -> None:
    """
    Write a PNG of the confusion matrix: a row a true class, coloured by the share of the row, right answers blue and
    wrong ones red. With few classes every cell says its count and its percentage of the row; with many, a list beside
    the matrix names the pairs that are confused most.

    The picture is drawn without pyplot, so that the caller's backend and open figures stay as they are.

    Args:
        references: `(rows,)` ids of the true classes.
        predictions: `(rows,)` ids of the predicted classes.
        label_names: name of every class, in the order of the ids.
        path: the PNG; replaced only when the new picture is complete.

    Raises:
        ValueError: ids without a name, or shapes that do not fit together.
    """
    references, predictions = np.asarray(references), np.asarray(predictions)
    if references.ndim != 1 or references.shape != predictions.shape or len(references) == 0:
        raise ValueError(
            f"references have shape {references.shape} and predictions {predictions.shape}, but a confusion matrix "
            "needs the same (rows,) for both, with at least one row: pass one class id a row"
        )
    ids = np.concatenate([references, predictions])
    if ids.min() < 0 or ids.max() >= len(label_names):
        raise ValueError(
            f"class ids go from {ids.min()} to {ids.max()}, but there are {len(label_names)} label names: "
            "pass one name for every class"
        )
    counts = np.zeros((len(label_names), len(label_names)), dtype=np.int64)
    np.add.at(counts, (references, predictions), 1)
    picture = io.BytesIO()
    # No Software entry: the same matrix gives the same bytes.
    _confusion_figure(counts, label_names).savefig(
        picture, format="png", bbox_inches="tight", pad_inches=0.15, metadata={"Software": None}
    )
    write_atomically(path, picture.getvalue())


def _confusion_figure(counts: np.ndarray, label_names: Sequence[str]) -> "Figure":
    """The figure of `counts`, `(classes, classes)`, true class first."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    classes = len(counts)
    names = _drawable_names(label_names)
    has_pairs = classes > _MAX_CLASSES_WITH_COUNTS
    side = float(np.clip(1.1 * classes, 4.0, 7.0)) if not has_pairs else (8.0 if classes <= 40 else 7.2)
    figure = Figure(figsize=(side + (4.6 if has_pairs else 1.4), side + 0.6), dpi=150, layout="constrained")
    if has_pairs:
        axes, list_axes = figure.subplots(1, 2, width_ratios=(side, 4.0))
    else:
        axes = figure.subplots()

    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    right = np.eye(classes, dtype=bool)
    # One sheet of blue and one of red. Errors are few in any one cell, so red starts at a visible pink.
    blues = LinearSegmentedColormap.from_list("right", ["#deebf7", "#4292c6", "#08519c"])
    reds = LinearSegmentedColormap.from_list("wrong", ["#fdd5c4", "#fb6a4a", "#a50f15"])
    axes.imshow(np.ma.masked_where(~right, shares), cmap=blues, vmin=0, vmax=1)
    axes.imshow(np.ma.masked_where(right | (counts == 0), shares), cmap=reds, vmin=0, vmax=0.5)

    correct = int(np.trace(counts))
    axes.set_title(f"{correct:,} of {counts.sum():,} right ({correct / counts.sum():.1%})", fontsize=11)
    suffix = "" if classes <= _MAX_CLASSES_WITH_NAMES else " (class number)"
    axes.set_xlabel(f"predicted{suffix}")
    axes.set_ylabel(f"true{suffix}")
    if classes <= _MAX_CLASSES_WITH_NAMES:
        size = 9 if classes <= _MAX_CLASSES_WITH_COUNTS else 7
        turned = (
            {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) * classes > 40 else {}
        )
        axes.set_xticks(range(classes), names, fontsize=size, parse_math=False, **turned)
        axes.set_yticks(range(classes), names, fontsize=size, parse_math=False)
    if has_pairs:
        _list_confused_pairs(list_axes, counts, names)
        return figure
    size = 11 if classes <= 5 else 9 if classes <= 8 else 7
    for row, column in np.ndindex(classes, classes):
        count, share = counts[row, column], shares[row, column]
        color = "#888888" if count == 0 else "white" if share > (0.6 if row == column else 0.35) else "black"
        text = f"{count:,}\n{share:.0%}" if count else "0"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)
    return figure


def plot_loss_curve(
    log_history: Sequence[dict[str, float]], path: str | os.PathLike[str], unit: str | None = "nats a token"
) -> None:
    """
    Draw the losses of a run by its steps, as PNG, and write the file as a whole or not at all. BLEU, where it was
    measured, gets a picture of its own below.

    Args:
        log_history: `trainer.state.log_history`.
        path: of the picture.
        unit: of the loss.

    Raises:
        ValueError: there is no loss in it.
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    curves = {
        label: [(entry["step"], entry[key]) for entry in log_history if key in entry and np.isfinite(entry[key])]
        for key, label in (("loss", "training"), ("eval_loss", "validation"))
    }
    if not any(curves.values()):
        raise ValueError("the log holds no loss: train first, with logging_steps below the number of steps")
    bleu = [(entry["step"], entry["eval_bleu"]) for entry in log_history if "eval_bleu" in entry]
    figure = Figure(figsize=(6.4, 6 if bleu else 4), dpi=150, layout="constrained")
    axes, *below = figure.subplots(2 if bleu else 1, squeeze=False, sharex=True)[:, 0]
    for (label, points), style in zip(curves.items(), ("-", "o-"), strict=True):
        if points:
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, style, label=f"{label} (last: {losses[-1]:.3f})", markersize=3, linewidth=1.2)
    axes.set_ylabel("loss" if unit is None else f"loss ({unit})")
    axes.legend()
    for lower in below:
        steps, scores = zip(*bleu, strict=True)
        lower.plot(steps, scores, "o-", label=f"validation (last: {scores[-1]:.1f})", markersize=3, linewidth=1.2)
        lower.set_ylabel("BLEU")
        lower.legend()
    for each in (axes, *below):
        each.grid(alpha=0.3)
    (below or [axes])[-1].set_xlabel("step")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(path, content.getvalue())


def _list_confused_pairs(axes: Any, counts: np.ndarray, names: Sequence[str]) -> None:
    """Write the most frequent errors into `axes`, one line a pair of classes."""
    axes.set_axis_off()
    errors = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-errors, axis=None, kind="stable")[:_LISTED_PAIRS]
    pairs = [(row, column) for row, column in zip(*np.unravel_index(order, errors.shape), strict=True)]
    pairs = [(row, column) for row, column in pairs if errors[row, column] > 0]
    axes.text(0.07, 1, "most confused: true → predicted" if pairs else "no errors", fontsize=9, va="top", weight="bold")
    for line, (row, column) in enumerate(pairs, start=1):
        share = errors[row, column] / counts[row].sum()
        height = 1 - line / (_LISTED_PAIRS + 1)
        axes.text(0.14, height, f"{errors[row, column]:,}", fontsize=8, ha="right", va="top")
        axes.text(0.17, height, f"({share:.0%})", fontsize=8, va="top", color="#666666")
        axes.text(0.32, height, f"{names[row]} → {names[column]}", fontsize=8, va="top", parse_math=False)


def _drawable_names(label_names: Sequence[str]) -> list[str]:
    """Names on one line, short enough, and by number where the default font has no shapes for them (Chinese)."""
    from matplotlib import font_manager

    shapes = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    names = []
    for number, label_name in enumerate(label_names):
        name = " ".join(str(label_name).split())
        if len(name) > _LONGEST_NAME:
            name = f"{name[: _LONGEST_NAME - 1]}…"
        names.append(name if name and all(ord(character) in shapes for character in name) else f"class {number}")
    return names

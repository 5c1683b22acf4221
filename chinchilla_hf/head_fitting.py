"""
The classifier of a fine-tuning fitted before it: a linear model on what the encoder makes of the texts as it is.

A classifier of random weights sends its errors through a pretrained encoder from the first step on, and distorts what
that knew, most of all where there are many classes and few texts of each. Fitted first, it starts from the best that
the features give, and the training improves both: linear probing, then fine-tuning (LP-FT; Kumar et al. 2022,
"Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", arXiv 2202.10054).
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression, Ridge

from .metrics import MAIN_METRIC, check_problem_type, predictions_from_logits, text_metrics
from .modeling_chinchilla import ChinchillaForSequenceClassification

logger = logging.getLogger(__name__)

# Strengths of the penalty to choose from, the strongest first: C of the logistic regression, 1 / alpha of the ridge.
# For features with channels of a mean square near 1, as those of both kinds of pooler.
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
# Far more than L-BFGS takes to its default tolerance: 27 to 69 steps for CLINC150, whatever the penalty.
MAX_ITERATIONS = 1000


@dataclasses.dataclass(frozen=True)
class FittedHead:
    """
    What [`fit_head`] chose.

    Args:
        strength: C of the logistic regression or 1 / alpha of the ridge: greater is a weaker penalty.
        validation_score: on the validation rows, the main metric of the kind of problem, see `metrics.MAIN_METRIC`.
        seconds: wall time of everything, the features included.
    """

    strength: float
    validation_score: float
    seconds: float


def fit_head(
    model: ChinchillaForSequenceClassification,
    train: Dataset,
    validation: Dataset,
    collate: Callable[[list[dict[str, Any]]], Any],
    *,
    batch_size: int = 128,
    bf16: bool = False,
) -> FittedHead:
    """
    Write into `model.classifier` the linear model that fits the pooled vectors of the training texts best.

    Logistic regression for classes and for labels (one a label), ridge regression for numbers. The penalty is the one
    of `STRENGTHS` that does best on the validation rows, and of equals the strongest. Nothing else of `model` changes,
    nor does the state of torch's random generator. In a distributed run, call it in the main process, before
    `Trainer.train`: `DistributedDataParallel` sends the weights of that process to all when it takes the model.

    Args:
        model: on the device to work on; `config.problem_type` and `config.num_labels` say what is fitted.
        train: tokenized rows: `input_ids`, `attention_mask` and whatever else the tokenizer gives; `labels`, a class id
            below `num_labels`, or `num_labels` of 0 and 1, or numbers.
        validation: likewise.
        collate: makes a padded batch of rows without labels, as `DataCollatorWithPadding` does.
        batch_size: rows in a step.
        bf16: compute the vectors under bfloat16 autocast, as the training does with this option.

    Raises:
        ValueError: the labels are not as the problem type says, or a class has no training row: the linear model
            would know nothing of it. Checked before any vector is computed.
    """
    start = time.perf_counter()
    config = model.config
    labels = {name: _labels(rows, config) for name, rows in (("train", train), ("validation", validation))}
    missing = sorted(set(range(config.num_labels)) - set(labels["train"].tolist())) if labels["train"].ndim == 1 else []
    if missing:
        raise ValueError(
            f"classes {missing} have no row in train, so no linear model can be fitted for them: leave "
            "--fit_head_first out, or use more rows"
        )
    train_features = pooled_features(model, train, collate, batch_size=batch_size, bf16=bf16)
    validation_features = pooled_features(model, validation, collate, batch_size=batch_size, bf16=bf16)
    best_score = -np.inf
    for strength in STRENGTHS:
        weight, bias = fit_linear(train_features, labels["train"], config.problem_type, strength)
        predictions = predictions_from_logits(validation_features @ weight.T + bias, config.problem_type)
        references = labels["validation"].reshape(predictions.shape)
        score = text_metrics(predictions, references, config.problem_type)[MAIN_METRIC[config.problem_type]]
        logger.info("classifier with strength %g: %s %.4f", strength, MAIN_METRIC[config.problem_type], score)
        if score > best_score or strength == STRENGTHS[0]:  # a score can be NaN
            best_score, best = score, (strength, weight, bias)
    strength, weight, bias = best
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(weight))
        model.classifier.bias.copy_(torch.from_numpy(bias))
    return FittedHead(strength, best_score, time.perf_counter() - start)


@torch.no_grad()
def pooled_features(
    model: ChinchillaForSequenceClassification,
    rows: Dataset,
    collate: Callable[[list[dict[str, Any]]], Any],
    *,
    batch_size: int = 128,
    bf16: bool = False,
) -> np.ndarray:
    """
    What the classifier of `model` reads of every row without dropout, `(rows, hidden_size)` in float32.

    Arguments as for [`fit_head`]. `model` is left in the mode, training or evaluation, that it was in.
    """
    columns = [name for name in rows.column_names if name in ("input_ids", "attention_mask", "token_type_ids")]
    rows = rows.select_columns(columns)
    lengths = [len(ids) for ids in rows["input_ids"]]
    order = np.argsort(lengths, kind="stable")  # texts of like length share a batch: little is padding
    features = np.empty((len(rows), model.config.hidden_size), dtype=np.float32)
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(rows), batch_size):
            chosen = order[first : first + batch_size]
            batch = collate([rows[int(row)] for row in chosen])
            inputs = {name: value.to(model.device) for name, value in batch.items()}
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                pooled = model.base_model(**inputs).pooler_output
            features[chosen] = pooled.float().cpu().numpy()
    finally:
        model.train(was_training)
    return features


def fit_linear(
    features: np.ndarray, labels: np.ndarray, problem_type: str, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """
    Weights and bias of a linear model of `features`, in their dtype, for a `torch.nn.Linear`.

    Args:
        features: `(rows, hidden_size)`.
        labels: `(rows,)` class ids, all of 0 to their largest among them; `(rows, num_labels)` of 0 and 1, or of
            numbers.
        problem_type: `"single_label_classification"`, `"multi_label_classification"` or `"regression"`.
        strength: C of the logistic regression or 1 / alpha of the ridge.

    Returns:
        `(num_labels, hidden_size)` and `(num_labels,)`. Their logits are the decision function of the estimator. For
        two classes, whose estimator has one, they are plus and minus half of it: the same probabilities.

    Raises:
        ValueError: there is no such problem type.
    """
    check_problem_type(problem_type)
    if problem_type == "regression":
        ridge = Ridge(alpha=1 / strength).fit(features, labels)
        weight, bias = ridge.coef_, ridge.intercept_
    elif problem_type == "single_label_classification":
        weight, bias = _logistic_regression(features, labels, strength)
        if len(bias) == 1:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    else:
        fits = [_one_label(features, column, strength) for column in labels.T]
        weight = np.concatenate([weight for weight, _ in fits])
        bias = np.concatenate([bias for _, bias in fits])
    return weight.astype(features.dtype), bias.astype(features.dtype)


def _logistic_regression(features: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    estimator = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(features, labels)
    return estimator.coef_, estimator.intercept_


def _one_label(features: np.ndarray, column: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Of a label that all rows have, or none, the features say nothing: its bias is the log of its odds, smoothed."""
    if column.min() < column.max():
        return _logistic_regression(features, column, strength)
    with_label = column.sum()
    odds = (with_label + 0.5) / (len(column) - with_label + 0.5)
    return np.zeros((1, features.shape[1])), np.log([odds])


def _labels(rows: Dataset, config: Any) -> np.ndarray:
    """Labels of `rows` in the shape that [`fit_linear`] takes, after a check of it."""
    check_problem_type(config.problem_type)
    labels = np.asarray(rows["labels"][:])
    if config.problem_type == "single_label_classification":
        expected = f"class ids from 0 to {config.num_labels - 1} of shape ({len(rows)},)"
        right = labels.ndim == 1 and labels.dtype.kind in "iu" and 0 <= labels.min() <= labels.max() < config.num_labels
    else:
        labels = labels.reshape(len(labels), -1).astype(np.float32)
        expected = f"numbers of shape ({len(rows)}, {config.num_labels})"
        right = labels.shape[1] == config.num_labels
    if not right:
        raise ValueError(
            f"labels are {labels.dtype} of shape {labels.shape}, from {labels.min()} to {labels.max()}, but "
            f"problem_type {config.problem_type!r} with {config.num_labels} labels expects {expected}: check "
            "num_labels and problem_type"
        )
    return labels


@torch.no_grad()
def scale_regression_head(model: ChinchillaForSequenceClassification, labels: Any) -> None:
    """
    Give what a fresh head predicts the mean and the spread of the labels, where the training would have to find them.

    Args:
        model: its head has random weights.
        labels: `(rows,)` or `(rows, num_labels)` numbers of the training rows.
    """
    values = torch.as_tensor(np.asarray(labels), dtype=torch.float).view(len(labels), -1)
    model.classifier.weight.mul_(values.std(dim=0, keepdim=True).T)
    model.classifier.bias.copy_(values.mean(dim=0))

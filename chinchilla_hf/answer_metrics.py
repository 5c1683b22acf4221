"""
Exact match and F1 of answers to questions, as SQuAD's official scripts compute them, without the Hub.

`evaluate.load("squad")` and `"squad_v2"` download a script; [`QuestionAnswering`] is the same kind of object with its
code here. SQuAD 1.1: Rajpurkar et al. 2016; SQuAD 2, with questions that have no answer: Rajpurkar et al. 2018.

F1 counts words between spaces, as the official scripts do. In a script without spaces an answer is one word, and F1
says no more than exact match.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import datasets
import evaluate
import numpy as np

from .metrics import _LocalMetric

if TYPE_CHECKING:
    from .data.questions import QuestionWindows

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation (ASCII), English articles and needless spaces: what the scores compare."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    """1 if both are the same once normalized, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def word_f1(prediction: str, reference: str) -> float:
    """F1 of the words that both have, once normalized; 1 if neither has one, as in SQuAD 2."""
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * shared / (len(predicted) + len(expected))


def _word_f1_of_squad_1(prediction: str, reference: str) -> float:
    # Its script has no case for an answer of which nothing is left: no word is shared.
    return word_f1(prediction, reference) if normalize_answer(reference) else 0.0


def question_answering_metrics(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    no_answer_scores: Sequence[float] | None = None,
    no_answer_threshold: float = 1.0,
) -> dict[str, float]:
    """
    The scores of SQuAD 1.1, or with `no_answer_scores` those of SQuAD 2, from 0 to 100, with the official names.

    Args:
        predictions: an answer to each question, also to one that may have none.
        references: the right answers to each; none where the context has no answer.
        no_answer_scores: how much speaks for no answer, on any scale. Where it is above the threshold, there is no
            answer in place of the prediction.
        no_answer_threshold: see above; the official 1.0 is for probabilities, and changes nothing.

    Returns:
        `exact_match` and `f1`; or `exact`, `f1` and `total`, the same of questions with an answer (`HasAns_exact`, ...)
        and without (`NoAns_exact`, ...) where there are such, and the best threshold for either score, with what it
        gives: `best_exact`, `best_exact_thresh`, `best_f1`, `best_f1_thresh`.

    Raises:
        ValueError: no rows, different numbers of them, or, without `no_answer_scores`, a question without an answer.
    """
    if len(predictions) != len(references) or not len(references):
        raise ValueError(
            f"there are {len(predictions)} predictions and {len(references)} references, but every question has one of "
            "both: check that both come from the same split"
        )
    if no_answer_scores is None:
        without = sum(not answers for answers in references)
        if without:
            raise ValueError(
                f"{without} of {len(references)} questions have no answer, which SQuAD 1.1 does not know: pass "
                "no_answer_scores, for the scores of SQuAD 2"
            )
        values = {
            "exact_match": _best(exact_match, predictions, references),
            "f1": _best(_word_f1_of_squad_1, predictions, references),
        }
        return {name: 100 * float(array.mean()) for name, array in values.items()}

    null_scores = np.asarray(no_answer_scores, dtype=np.float64)
    if len(null_scores) != len(references):
        raise ValueError(
            f"there are {len(null_scores)} no_answer_scores and {len(references)} questions: give one each"
        )
    # The official script takes an answer of which nothing is left for none.
    right = [[answer for answer in answers if normalize_answer(answer)] for answers in references]
    has_answer = np.array([bool(answers) for answers in right])
    right = [answers or [""] for answers in right]
    raw = {"exact": _best(exact_match, predictions, right), "f1": _best(word_f1, predictions, right)}
    refused = null_scores > no_answer_threshold
    final = {name: np.where(refused, ~has_answer, values) for name, values in raw.items()}
    scores = {name: 100 * float(values.mean()) for name, values in final.items()} | {"total": len(references)}
    for prefix, chosen in (("HasAns", has_answer), ("NoAns", ~has_answer)):
        if chosen.any():
            scores |= {f"{prefix}_{name}": 100 * float(values[chosen].mean()) for name, values in final.items()}
            scores[f"{prefix}_total"] = int(chosen.sum())
    answered = np.array([bool(prediction) for prediction in predictions])
    for name, unrefused in raw.items():
        score, threshold = _best_threshold(unrefused, has_answer, answered, null_scores)
        scores |= {f"best_{name}": score, f"best_{name}_thresh": threshold}
    return scores


def _best(score: Any, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Of each question, the score against the reference that fits best."""
    return np.array(
        [
            max(score(prediction, answer) for answer in answers)
            for prediction, answers in zip(predictions, references, strict=True)
        ]
    )


def _best_threshold(
    values: np.ndarray, has_answer: np.ndarray, answered: np.ndarray, null_scores: np.ndarray
) -> tuple[float, float]:
    """
    The threshold with the highest mean score, and that score.

    As the official script goes about it: at first no question is answered, then one after the other, the surest first;
    each adds its score, or costs one where it has no answer but is given one. Between equals the lower threshold wins.
    """
    order = np.argsort(null_scores, kind="stable")
    gains = np.where(has_answer, values, -answered.astype(np.float64))[order]
    sums = np.concatenate([[0.0], np.cumsum(gains)]) + (~has_answer).sum()
    best = int(sums.argmax())
    lowest = float(null_scores.min())
    refuses_all = 0.0 if lowest > 0 else lowest - 1.0  # 0 is the official one, for probabilities
    threshold = null_scores[order[best - 1]] if best else refuses_all
    return 100 * float(sums[best]) / len(values), float(threshold)


def score_windows(
    windows: "QuestionWindows",
    logits: tuple[Any, Any],
    max_answer_length: int,
    with_null: bool = False,
    no_answer_threshold: float | None = None,
) -> tuple[dict[str, float], list[str]]:
    """
    The scores of a model on a split, and its answers.

    Args:
        windows: the split.
        logits: of starts and ends, each `(windows, length)`, as a Trainer predicts them.
        max_answer_length: in tokens.
        with_null: whether the model was trained on questions without an answer; scores are then those of SQuAD 2.
        no_answer_threshold: in logits, above which there is no answer; the one that gives the best F1 on this split if
            not given.

    Returns:
        As [`question_answering_metrics`], and with `with_null` the `no_answer_threshold`; one answer a question, empty
        where the score of no answer is above the threshold.
    """
    ranked = windows.rank(*logits, max_answer_length, with_null)
    texts = windows.texts(ranked)
    references = [reference["answers"]["text"] for reference in windows.references]
    if not with_null:
        return question_answering_metrics(texts, references), texts
    null_scores = [spans.no_answer_score for spans in ranked]
    if no_answer_threshold is None:
        best = question_answering_metrics(texts, references, null_scores)["best_f1_thresh"]
        # As far from the last answer that it lets through as from the first that it does not.
        no_answer_threshold = (best + min((score for score in null_scores if score > best), default=best)) / 2
    scores = question_answering_metrics(texts, references, null_scores, no_answer_threshold)
    answers = ["" if score > no_answer_threshold else text for text, score in zip(texts, null_scores, strict=True)]
    return scores | {"no_answer_threshold": no_answer_threshold}, answers


class QuestionAnswering(_LocalMetric):
    """
    The metrics of [`question_answering_metrics`] as an `evaluate` metric, with the interface of `squad` and `squad_v2`.

    Args:
        config_name: `"squad"` or `"squad_v2"`; the former if not given.
        kwargs: see `evaluate.Metric`.

    Example:

    ```python
    >>> predictions = [{"id": "1", "prediction_text": "the dog"}]
    >>> references = [{"id": "1", "answers": {"text": ["a dog"], "answer_start": [4]}}]
    >>> QuestionAnswering().compute(predictions=predictions, references=references)
    {'exact_match': 100.0, 'f1': 100.0}
    ```
    """

    def __init__(self, config_name: str | None = None, **kwargs: Any) -> None:
        super().__init__(config_name or "squad", **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in ("squad", "squad_v2"):
            raise ValueError(f"config_name is {self.config_name!r}, but must be squad or squad_v2: choose one")
        text = datasets.Value("string")
        prediction = {"id": text, "prediction_text": text}
        if self.config_name == "squad_v2":
            prediction["no_answer_probability"] = datasets.Value("float64")
        answers = {"text": [text], "answer_start": [datasets.Value("int64")]}
        return evaluate.MetricInfo(
            description="Exact match and F1 of answers, as SQuAD's official scripts compute them.",
            citation="",
            inputs_description=(
                "predictions: id, prediction_text and, for squad_v2, no_answer_probability; references: id and answers."
            ),
            features=datasets.Features({"predictions": prediction, "references": {"id": text, "answers": answers}}),
            reference_urls=["https://rajpurkar.github.io/SQuAD-explorer/"],
        )

    def _compute(self, predictions: Any, references: Any, no_answer_threshold: float = 1.0) -> dict[str, float]:
        found = {prediction["id"]: prediction for prediction in predictions}
        missing = [reference["id"] for reference in references if reference["id"] not in found]
        if missing or len(found) != len(predictions):
            raise ValueError(
                f"{len(missing)} questions have no prediction (such as {missing[0]!r}): give one for each"
                if missing
                else "two predictions have the same id: give one for each question"
            )
        found_in_order = [found[reference["id"]] for reference in references]
        return question_answering_metrics(
            [prediction["prediction_text"] for prediction in found_in_order],
            [reference["answers"]["text"] for reference in references],
            [prediction["no_answer_probability"] for prediction in found_in_order]
            if self.config_name == "squad_v2"
            else None,
            no_answer_threshold,
        )

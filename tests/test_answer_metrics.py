"""Scores of answers: worked by hand after the rules of SQuAD's official scripts."""

import evaluate
import numpy as np
import pytest

from chinchilla_hf.answer_metrics import (
    QuestionAnswering,
    exact_match,
    normalize_answer,
    question_answering_metrics,
    word_f1,
)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Dog!", "dog"),
        ("a cat, an owl; the theatre", "cat owl theatre"),
        ("U.S.A.", "usa"),
        ("well-known", "wellknown"),
        ("the", ""),
        ("“Straße”", "“straße”"),  # only ASCII punctuation goes
        ("狗在跑。", "狗在跑。"),
        ("an\u00a0owl\n", "owl"),
    ],
)
def test_normalization(text, normalized):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "reference", "exact", "f1"),
    [
        ("the dog", "A dog.", 1, 1),
        ("big dog", "dog", 0, 2 / 3),
        ("dog dog cat", "dog", 0, 1 / 2),  # a word counts as often as both have it
        ("cat", "dog", 0, 0),
        ("", "dog", 0, 0),
        ("", "", 1, 1),
        ("the", "", 1, 1),
        ("狗在跑", "狗在", 0, 0),  # no spaces: one word
    ],
)
def test_scores_of_one_answer(prediction, reference, exact, f1):
    assert exact_match(prediction, reference) == exact
    assert word_f1(prediction, reference) == pytest.approx(f1)


def test_squad_1():
    scores = question_answering_metrics(["the dog", "big cat", "x"], [["dog", "cat"], ["a hat", "cat"], ["y"]])
    assert scores == pytest.approx({"exact_match": 100 / 3, "f1": 100 * (1 + 2 / 3) / 3})
    # Where nothing is left of both, its script finds no word in common.
    assert question_answering_metrics(["a"], [["the"]]) == {"exact_match": 100, "f1": 0}


REFERENCES = [["dog"], ["cat", "black cat"], [], []]
PREDICTIONS = ["dog", "black", "hat", ""]


def test_squad_2():
    scores = question_answering_metrics(PREDICTIONS, REFERENCES, [0.1, 0.6, 0.9, 0.2], no_answer_threshold=0.5)
    # The second is refused though it has an answer, the third rightly; the fourth says nothing anyway.
    assert scores == pytest.approx(
        {
            "exact": 75.0,
            "f1": 75.0,
            "total": 4,
            "HasAns_exact": 50.0,
            "HasAns_f1": 50.0,
            "HasAns_total": 2,
            "NoAns_exact": 100.0,
            "NoAns_f1": 100.0,
            "NoAns_total": 2,
            # Up to 0.1, "dog" is right beside two without an answer; up to 0.6 "black" adds its F1 of 2/3, no match.
            "best_exact": 75.0,
            "best_exact_thresh": 0.1,
            "best_f1": 100 * (3 + 2 / 3) / 4,
            "best_f1_thresh": 0.6,
        }
    )
    unchanged = question_answering_metrics(PREDICTIONS, REFERENCES, [0.1, 0.6, 0.9, 0.2])
    assert unchanged["exact"] == 50.0 and unchanged["f1"] == pytest.approx(100 * (1 + 2 / 3 + 0 + 1) / 4)


def test_only_one_kind_of_question():
    scores = question_answering_metrics(["dog"], [["dog"]], [0.0])
    assert scores["HasAns_total"] == 1 and "NoAns_total" not in scores and scores["best_f1"] == 100
    scores = question_answering_metrics(["dog"], [["the"]], [0.3])  # nothing is left of the answer: there is none
    assert "HasAns_total" not in scores and scores["NoAns_f1"] == 0
    assert scores["best_f1"] == 100 and scores["best_f1_thresh"] == 0.0
    assert question_answering_metrics(["dog"], [[]], [-3.0])["best_f1_thresh"] < -3


def test_no_threshold_is_better_than_the_best():
    rng = np.random.default_rng(0)
    references = [["dog"] if has else [] for has in rng.random(200) < 0.6]
    predictions = ["dog" if right else "big dog" for right in rng.random(200) < 0.5]
    scores = rng.normal(size=200) + [0.0 if answers else 1.0 for answers in references]
    found = question_answering_metrics(predictions, references, scores)
    for name in ("exact", "f1"):
        tried = [question_answering_metrics(predictions, references, scores, t)[name] for t in [*scores, -9.0]]
        assert found[f"best_{name}"] == pytest.approx(max(tried))
        at_best = question_answering_metrics(predictions, references, scores, found[f"best_{name}_thresh"])
        assert at_best[name] == pytest.approx(max(tried))


def answers(*texts: str) -> dict:
    return {"text": list(texts), "answer_start": [0] * len(texts)}


def test_evaluates_interface(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)
    predictions = [{"id": str(i), "prediction_text": text} for i, text in enumerate(PREDICTIONS)]
    references = [{"id": str(i), "answers": answers(*texts)} for i, texts in enumerate(REFERENCES)]
    first = QuestionAnswering().compute(predictions=predictions[:2], references=references[:2])
    assert first == question_answering_metrics(PREDICTIONS[:2], REFERENCES[:2])
    # Another order, row by row, and the second version.
    metric = QuestionAnswering("squad_v2")
    null_scores = [0.1, 0.6, 0.9, 0.2]
    for number in (2, 0, 3, 1):
        prediction = predictions[number] | {"no_answer_probability": null_scores[number]}
        metric.add(prediction=prediction, reference=references[number])
    expected = question_answering_metrics(PREDICTIONS, REFERENCES, null_scores, 0.5)
    assert metric.compute(no_answer_threshold=0.5) == pytest.approx(expected)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        question_answering_metrics(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="0 predictions and 0 references"):
        question_answering_metrics([], [])
    with pytest.raises(ValueError, match=r"1 of 2 questions have no answer, which SQuAD 1\.1 does not know"):
        question_answering_metrics(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="1 no_answer_scores and 2 questions"):
        question_answering_metrics(["a", "b"], [["a"], []], [0.5])
    with pytest.raises(ValueError, match="config_name is 'squad_v3'"):
        QuestionAnswering("squad_v3")
    reference = {"id": "1", "answers": answers("a")}
    with pytest.raises(ValueError, match=r"1 questions have no prediction \(such as '1'\)"):
        QuestionAnswering().compute(predictions=[{"id": "2", "prediction_text": "a"}], references=[reference])
    twice = [{"id": "1", "prediction_text": "a"}] * 2
    with pytest.raises(ValueError, match="two predictions have the same id"):
        QuestionAnswering().compute(predictions=twice, references=[reference] * 2)

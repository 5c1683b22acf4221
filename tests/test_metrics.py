import math
import os
import warnings

import evaluate
import matplotlib
import matplotlib.image
import numpy as np
import pytest
import seqeval.metrics
import torch
from sklearn.metrics import f1_score
from transformers import EvalPrediction

from chinchilla_hf import metrics, run_record
from chinchilla_hf.metrics import (
    TextClassification,
    TokenClassification,
    Translation,
    classification_compute_metrics,
    confidence_interval,
    next_token_predictions,
    plot_confusion_matrix,
    plot_loss_curve,
    pretraining_compute_metrics,
    tagging_compute_metrics,
    tagging_metrics,
    text_metrics,
    token_predictions,
    translation_metrics,
)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_single_label_values():
    # Class 0: precision 1, recall 2/3; class 1: precision 1/2, recall 1.
    values = text_metrics([0, 1, 1, 0], [0, 1, 0, 0], "single_label_classification")
    assert values == pytest.approx({"accuracy": 3 / 4, "macro_f1": (0.8 + 2 / 3) / 2, "weighted_f1": 0.6 + 1 / 6})
    assert all(type(value) is float for value in values.values())


def test_values_equal_scikit_learn_on_many_classes_with_one_never_predicted():
    rng = np.random.default_rng(0)
    references, predictions = rng.integers(0, 20, 500), rng.integers(0, 19, 500)
    values = text_metrics(predictions, references, "single_label_classification")
    per_class = [f1_score(references == c, predictions == c, zero_division=0) for c in range(20)]
    assert values["macro_f1"] == pytest.approx(np.mean(per_class))
    assert values["weighted_f1"] == pytest.approx(np.average(per_class, weights=np.bincount(references)))
    assert values["accuracy"] == np.mean(references == predictions)


def test_multi_label_values():
    # Two of three rows wholly right; 4 labels found of 5, nothing invented; F1 by label 1, 1, 2/3.
    references = [[1, 0, 1], [0, 1, 1], [1, 1, 0]]
    predictions = [[1, 0, 1], [0, 1, 0], [1, 1, 0]]
    values = text_metrics(predictions, references, "multi_label_classification")
    assert values == pytest.approx({"subset_accuracy": 2 / 3, "micro_f1": 10 / 11, "macro_f1": (1 + 1 + 2 / 3) / 3})


def test_regression_values():
    values = text_metrics([0.5, 1.0, 2.0], [1.0, 2.0, 3.0], "regression")
    x, y = np.array([0.5, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])
    x, y = x - x.mean(), y - y.mean()
    pearson = x @ y / math.sqrt((x @ x) * (y @ y))
    expected = {"mse": 2.25 / 3, "mae": 2.5 / 3, "r2": 1 - 2.25 / 2, "pearson": pearson, "spearman": 1.0}
    assert values == pytest.approx(expected)


@pytest.mark.parametrize("rows", [([1.0, 1.0], [1.0, 2.0]), ([1.0], [2.0])])
def test_undefined_correlation_is_nan_without_a_warning(rows):
    values = text_metrics(*rows, "regression")
    assert math.isnan(values["pearson"]) and math.isnan(values["spearman"])
    assert math.isfinite(values["mse"])


@pytest.mark.parametrize(
    ("problem_type", "predictions", "references", "message"),
    [
        ("single_label", [0], [0], "'single_label', but must be one of single_label_classification"),
        ("single_label_classification", [0, 1], [0], r"\(2,\) and references \(1,\)"),
        ("single_label_classification", [], [], "at least one row"),
        ("multi_label_classification", [0, 1], [0, 1], r"\(rows, labels\)"),
    ],
)
def test_bad_input_says_what_is_expected(problem_type, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        text_metrics(predictions, references, problem_type)


def test_evaluate_metric_in_batches_and_at_once():
    metric = TextClassification()
    at_once = metric.compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
    metric.add_batch(predictions=np.array([0, 1]), references=[0, 1])
    metric.add(prediction=1, reference=0)
    metric.add(prediction=0, reference=0)
    assert metric.compute() == at_once == text_metrics([0, 1, 1, 0], [0, 1, 0, 0], "single_label_classification")
    combined = evaluate.combine([TextClassification()])
    assert combined.compute(predictions=[0, 1], references=[0, 1])["accuracy"] == 1.0


def test_evaluate_metric_of_the_other_problem_types():
    multi_label = TextClassification("multi_label_classification")
    multi_label.add_batch(predictions=np.array([[0, 1], [1, 1]]), references=[[0, 1], [1, 0]])
    assert multi_label.compute()["subset_accuracy"] == 0.5
    regression = TextClassification("regression").compute(predictions=[0.5, 2.5], references=[1, 2])
    assert regression["mse"] == 0.25


def test_evaluate_metric_leaves_the_cache_alone(tmp_path):
    TextClassification(cache_dir=str(tmp_path)).compute(predictions=[0], references=[0])
    assert os.listdir(tmp_path) == []
    # The same through files, for several processes.
    on_disk = TextClassification(cache_dir=str(tmp_path), keep_in_memory=False)
    assert on_disk.compute(predictions=[0], references=[0])["accuracy"] == 1.0


def test_evaluate_metric_refuses_what_it_would_get_wrong():
    with pytest.raises(ValueError, match=r"predictions hold 0\.9.*argmax"):
        TextClassification().compute(predictions=[0.9, 0.2], references=[1, 0])
    with pytest.raises(ValueError, match="no rows to score"):
        TextClassification().compute()
    with pytest.raises(ValueError, match="must be one of"):
        TextClassification("binary")


def test_trainer_metrics_from_logits():
    single = classification_compute_metrics("single_label_classification")
    logits = np.array([[0.1, 2.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert single(EvalPrediction(logits, np.array([1, 0, 0])))["accuracy"] == pytest.approx(2 / 3)
    # With output_hidden_states, the logits come first.
    assert single(EvalPrediction((logits, logits), np.array([1, 0, 2])))["accuracy"] == 1.0

    multi = classification_compute_metrics("multi_label_classification")
    values = multi(EvalPrediction(np.array([[0.3, -2.0], [-0.1, 1.0]]), np.array([[1.0, 0.0], [1.0, 1.0]])))
    assert values["subset_accuracy"] == 0.5 and values["micro_f1"] == pytest.approx(0.8)

    regression = classification_compute_metrics("regression")
    for labels in (np.array([1.0, 2.0]), np.array([[1.0], [2.0]])):
        assert regression(EvalPrediction(np.array([[1.5], [2.5]]), labels))["mse"] == 0.25


def test_trainer_metrics_refuse_nan_and_wide_regression():
    with pytest.raises(ValueError, match="1 of 2 rows are not finite"):
        classification_compute_metrics("single_label_classification")(
            EvalPrediction(np.array([[np.nan, 0.0], [1.0, 0.0]]), np.array([0, 0]))
        )
    with pytest.raises(ValueError, match="num_labels=1"):
        classification_compute_metrics("regression")(EvalPrediction(np.zeros((3, 2)), np.zeros(3)))
    with pytest.raises(ValueError, match="must be one of"):
        classification_compute_metrics("classification")


def test_wilson_interval_by_hand():
    # Wilson 1927: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.959964.
    z, p, n = 1.959964, 0.9, 50
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = ((centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n))
    assert confidence_interval(0.9, 50) == pytest.approx(expected, abs=1e-6)
    assert confidence_interval(1.0, 10)[1] == 1.0
    for accuracy, rows in ((45, 50), (0.5, 0)):
        with pytest.raises(ValueError, match="from 0 to 1"):
            confidence_interval(accuracy, rows)


def random_confusions(classes, rows):
    rng = np.random.default_rng(0)
    references = rng.integers(0, classes, rows)
    wrong = (references + rng.integers(1, classes, rows)) % classes
    return references, np.where(rng.random(rows) < 0.9, references, wrong)


@pytest.mark.parametrize(
    ("classes", "least", "most"), [(1, 300, 1200), (3, 500, 1200), (30, 900, 2500), (150, 900, 2500)]
)
def test_confusion_matrix_is_a_picture_of_sensible_size(tmp_path, classes, least, most):
    references, predictions = random_confusions(classes, 2000) if classes > 1 else ([0, 0], [0, 0])
    path = tmp_path / "matrix.png"
    plot_confusion_matrix(references, predictions, [f"a rather long class name {i}" for i in range(classes)], path)
    height, width, _ = matplotlib.image.imread(path).shape
    assert least <= height <= most and least <= width <= most
    assert os.listdir(tmp_path) == ["matrix.png"]


def texts_of(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_confusion_matrix_has_a_row_a_true_class(tmp_path, monkeypatch):
    drawn = []
    figure = metrics._confusion_figure
    monkeypatch.setattr(
        metrics, "_confusion_figure", lambda counts, names: drawn.append(counts) or figure(counts, names)
    )
    plot_confusion_matrix([0, 0, 0, 1], [0, 1, 1, 1], ["a", "b"], tmp_path / "matrix.png")
    assert drawn[0].tolist() == [[1, 2], [0, 1]]


def test_confusion_matrix_with_few_classes_has_counts_and_shares_in_the_cells():
    figure = metrics._confusion_figure(np.array([[6, 2], [0, 4]]), ["no", "yes"])
    assert texts_of(figure) == ["6\n75%", "2\n25%", "0", "4\n100%"]
    (axes,) = figure.axes
    assert axes.get_title() == "10 of 12 right (83.3%)"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["no", "yes"]
    # Right answers are blue and wrong ones red.
    right, wrong = (image.cmap(0.8) for image in axes.images)
    assert right[2] > right[0] and wrong[0] > wrong[2]


def test_confusion_matrix_with_many_classes_lists_the_worst_pairs_instead():
    counts = np.eye(150, dtype=int) * 10
    counts[7, 3], counts[100, 149] = 5, 9
    figure = metrics._confusion_figure(counts, [f"intent_{i}" for i in range(150)])
    assert texts_of(figure) == [
        *("most confused: true → predicted",),
        *("9", "(47%)", "intent_100 → intent_149"),
        *("5", "(33%)", "intent_7 → intent_3"),
    ]
    assert len(figure.axes[0].get_xticks()) < 20


def test_confusion_matrix_survives_any_label_name(tmp_path):
    # Formula marks, and signs that the font lacks: drawn as they are, and by number.
    names = ["$\\frac$", "你好", "two\nlines", ""]
    assert metrics._drawable_names(names) == ["$\\frac$", "class 1", "two lines", "class 3"]
    plot_confusion_matrix([0, 1, 2, 3], [0, 1, 2, 2], names, tmp_path / "matrix.png")
    assert len(metrics._drawable_names(["x" * 300])[0]) < 30


def test_confusion_matrix_leaves_the_backend_of_the_caller_alone(tmp_path):
    before = matplotlib.rcParams._get_backend_or_none()
    plot_confusion_matrix([0, 1], [0, 1], ["a", "b"], tmp_path / "matrix.png")
    assert matplotlib.rcParams._get_backend_or_none() == before


def test_a_failed_picture_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "matrix.png"
    plot_confusion_matrix([0, 1], [0, 1], ["a", "b"], path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(run_record.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        plot_confusion_matrix([0, 1], [1, 0], ["a", "b"], path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["matrix.png"]


@pytest.mark.parametrize(
    ("references", "predictions", "message"),
    [([0, 2], [0, 1], "from 0 to 2, but there are 2 label names"), ([0], [0, 1], r"\(1,\)"), ([], [], "at least one")],
)
def test_confusion_matrix_refuses_ids_without_a_name(tmp_path, references, predictions, message):
    with pytest.raises(ValueError, match=message):
        plot_confusion_matrix(references, predictions, ["a", "b"], tmp_path / "matrix.png")
    assert os.listdir(tmp_path) == []


# Masked tokens


@pytest.mark.parametrize("sparse", [True, False])
def test_masked_token_predictions_keep_the_place_of_the_labels(sparse):
    labels = torch.tensor([[-100, 3, -100], [1, -100, 2]])
    logits = torch.zeros(2, 3, 5)
    logits[0, 1, 3] = logits[1, 0, 4] = logits[1, 2, 2] = 1.0
    predictions = token_predictions(logits[labels != -100] if sparse else logits, labels)
    assert predictions.tolist() == [[-100, 3, -100], [4, -100, 2]]
    prediction = EvalPrediction(predictions=predictions.numpy(), label_ids=labels.numpy())
    assert pretraining_compute_metrics(prediction) == {"masked_accuracy": pytest.approx(2 / 3)}


def test_predictions_of_a_decoder_stand_where_their_labels_do():
    labels = torch.tensor([[-100, 3, 2, -100], [-100, 1, -100, 2]])
    logits = torch.zeros(2, 4, 5)
    logits[0, 0, 3] = logits[0, 1, 4] = logits[1, 0, 1] = logits[1, 2, 2] = 1.0
    predictions = next_token_predictions(logits, labels)
    assert predictions.tolist() == [[-100, 3, 4, -100], [-100, 1, -100, 2]]
    prediction = EvalPrediction(predictions=predictions.numpy(), label_ids=labels.numpy())
    assert pretraining_compute_metrics(prediction, ("next_token_accuracy",)) == {"next_token_accuracy": 0.75}


def test_two_objectives_have_an_accuracy_each():
    labels = torch.tensor([[-100, 3], [1, -100]]), torch.tensor([[0, -100], [1, -100]])
    logits = torch.eye(5)[[3, 1]], torch.eye(2)[[1, 1]]
    predictions = token_predictions(logits, labels)
    assert [part.tolist() for part in predictions] == [[[-100, 3], [1, -100]], [[1, -100], [1, -100]]]
    prediction = EvalPrediction(tuple(part.numpy() for part in predictions), tuple(part.numpy() for part in labels))
    assert pretraining_compute_metrics(prediction) == {"masked_accuracy": 1.0, "next_sentence_accuracy": 0.5}


def test_the_loss_curve_is_drawn_and_written_whole(tmp_path):
    history = [{"step": i, "loss": 5 / i} for i in range(1, 9)] + [{"step": 8, "eval_loss": 0.7}, {"step": 8, "x": 1}]
    plot_loss_curve(history, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
    with pytest.raises(ValueError, match="holds no loss"):
        plot_loss_curve([{"step": 1, "eval_accuracy": 0.5}], tmp_path / "other.png")


def test_translation_scores_are_those_of_sacrebleu():
    from sacrebleu import corpus_bleu, corpus_chrf

    references = ["Ein Hund läuft über die Wiese.", "Zwei Männer sitzen auf einer Bank."]
    predictions = ["Ein Hund rennt über die Wiese.", "Zwei Männer sitzen auf einer Bank."]
    scores = Translation().compute(predictions=predictions, references=references)
    assert scores["bleu"] == corpus_bleu(predictions, [references]).score
    assert scores["chrf"] == corpus_chrf(predictions, [references]).score
    assert "tok:13a" in scores["bleu_signature"] and "nc:6" in scores["chrf_signature"]
    assert "tok:zh" in Translation("zh").compute(predictions=["狗"], references=["狗"])["bleu_signature"]
    with pytest.raises(ValueError, match="1 predictions and 2 references"):
        translation_metrics(["a"], references)


def test_intervals_of_translation_scores_narrow_with_the_texts():
    references = [f"Der Hund mit der Nummer {i} läuft heute über die Wiese." for i in range(200)]
    predictions = [text if i % 2 else text.replace("läuft heute", "rennt") for i, text in enumerate(references)]
    widths = []
    for rows in (50, 200):
        scores = translation_metrics(predictions[:rows], references[:rows], n_bootstrap=300)
        for name in ("bleu", "chrf"):
            low, high = scores[f"{name}_interval"]
            assert low < scores[name] < high
        widths.append(high - low)
    assert 1.5 < widths[0] / widths[1] < 2.7  # twice as wide with a quarter of the texts
    assert scores == translation_metrics(predictions, references, n_bootstrap=300)
    assert "bleu_interval" not in translation_metrics(predictions, references)


# ---- Entities ----


def test_entities_are_scored_as_by_seqeval():
    references = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "B-LOC", "I-LOC"]]
    predictions = [["B-PER", "I-PER", "O", "O"], ["B-LOC", "I-LOC", "I-LOC"]]
    scores = tagging_metrics(predictions, references)
    # One of three entities that are found is right, of four that are there.
    assert scores["overall_precision"] == 0.5 and scores["overall_recall"] == 0.25
    assert scores["overall_f1"] == pytest.approx(seqeval.metrics.f1_score(references, predictions)) == 1 / 3
    assert scores["overall_accuracy"] == 5 / 7
    assert scores["PER"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "number": 1}
    assert scores["LOC"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "number": 3}


def test_plain_labels_are_runs_where_there_is_an_o_and_words_where_there_is_none():
    scores = tagging_metrics([["LOC", "LOC", "O", "O"]], [["LOC", "LOC", "O", "PER"]])
    assert scores["LOC"]["number"] == 1 and scores["overall_recall"] == 0.5 and scores["overall_precision"] == 1
    scores = tagging_metrics([["NN", "NNS", "VBZ"]], [["NN", "NN", "VBZ"]])
    assert scores["NN"]["number"] == 2 and scores["VBZ"]["f1"] == 1
    assert scores["overall_f1"] == pytest.approx(2 / 3) == scores["overall_accuracy"]


def test_sentences_without_any_entity_have_no_f1_and_no_warning():
    scores = tagging_metrics([["O", "O"]], [["O", "O"]])
    assert scores["overall_f1"] == 0 and scores["overall_accuracy"] == 1


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "0 sentences of predictions and 0 of references"),
        ([["O"]], [["O"], ["O"]], "1 sentences of predictions and 2 of references"),
        ([["O"], ["O"]], [["O"], ["O", "O"]], "sentence 1 has 1 predictions, but 2 references"),
    ],
)
def test_entities_that_do_not_fit_together_are_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        tagging_metrics(predictions, references)


def test_entities_through_the_interface_of_evaluate():
    metric = TokenClassification()
    metric.add_batch(predictions=[["B-PER", "O"]], references=[["B-PER", "O"]])
    metric.add(prediction=["B-LOC"], reference=["O"])
    assert metric.compute() == tagging_metrics([["B-PER", "O"], ["B-LOC"]], [["B-PER", "O"], ["O"]])


def test_trainer_metrics_of_entities_skip_what_has_no_label():
    labels = np.array([[-100, 1, -100, 2, 0, -100], [-100, 1, 0, -100, -100, -100]])
    predictions = np.array([[0, 1, 0, 2, 0, 2], [2, 1, 1, 0, 0, 0]])
    scores = tagging_compute_metrics(["O", "B-X", "I-X"])(EvalPrediction(predictions, labels))
    assert scores == {"f1": pytest.approx(0.8), "precision": pytest.approx(2 / 3), "recall": 1.0, "accuracy": 0.8}

"""The classifier that is fitted before the training: the model then says what scikit-learn's estimator says."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_config
from datasets import Dataset
from sklearn.linear_model import LogisticRegression, Ridge

from chinchilla_hf import ChinchillaForSequenceClassification, head_fitting
from chinchilla_hf.head_fitting import STRENGTHS, fit_head, fit_linear, pooled_features, scale_regression_head
from chinchilla_hf.metrics import text_metrics


def make_model(problem_type: str, num_labels: int, **settings) -> ChinchillaForSequenceClassification:
    settings = {"pooling": "mean", "pooler_type": "normalized", **settings}
    config = make_tiny_config(problem_type=problem_type, num_labels=num_labels, hidden_dropout=0.5, **settings)
    return ChinchillaForSequenceClassification(config)


def make_rows(labels, seed: int = 0) -> Dataset:
    """Rows of 3 to 12 tokens; where a label is a whole number, half of the tokens tell it."""
    generator = torch.Generator().manual_seed(seed)
    rows = {"input_ids": [], "attention_mask": [], "labels": list(labels), "length": []}
    for label in labels:
        ids = torch.randint(40, 100, (int(torch.randint(3, 13, (), generator=generator)),), generator=generator)
        ids[::2] = 10 + int(np.dot(np.atleast_1d(label), 2 ** np.arange(np.size(label))))
        rows["input_ids"].append(ids.tolist())
        rows["attention_mask"].append([1] * len(ids))
        rows["length"].append(len(ids))
    return Dataset.from_dict(rows)


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    length = max(len(row["input_ids"]) for row in rows)
    return {name: torch.tensor([row[name] + [0] * (length - len(row[name])) for row in rows]) for name in rows[0]}


CLASSES = [i % 3 for i in range(60)]
SEVERAL = [[float(i % 2), float(i % 3 == 0)] for i in range(60)]
NUMBERS = [(i % 7) / 2 for i in range(60)]


def logits_of(model: ChinchillaForSequenceClassification, rows: Dataset) -> np.ndarray:
    """One row at a time, as the pipeline does."""
    model.eval()
    columns = ("input_ids", "attention_mask")
    with torch.no_grad():
        return np.concatenate([model(**collate([{name: row[name] for name in columns}])).logits for row in rows])


@pytest.mark.parametrize("pooler_type", ["dense", "normalized"])
def test_the_model_says_what_logistic_regression_says(pooler_type):
    model = make_model("single_label_classification", 3, pooler_type=pooler_type)
    train, validation = make_rows(CLASSES), make_rows(CLASSES[:20], seed=1)
    head = fit_head(model, train, validation, collate, batch_size=16)
    estimator = LogisticRegression(C=head.strength, max_iter=1000)
    estimator.fit(pooled_features(model, train, collate), CLASSES)
    expected = estimator.decision_function(pooled_features(model, validation, collate))
    logits = logits_of(model, validation)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    assert head.validation_score == text_metrics(logits.argmax(-1), CLASSES[:20], model.config.problem_type)["accuracy"]
    assert head.validation_score > 0.9 and head.strength in STRENGTHS


def test_of_two_classes_the_difference_is_the_decision_function():
    features = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    labels = (features[:, 0] + features[:, 1] > 0.3).astype(int)
    weight, bias = fit_linear(features, labels, "single_label_classification", 1.0)
    estimator = LogisticRegression(C=1.0, max_iter=1000).fit(features, labels)
    logits = features @ weight.T + bias
    assert weight.shape == (2, 8) and weight.dtype == bias.dtype == np.float32
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], estimator.decision_function(features), rtol=1e-5, atol=1e-5)
    probabilities = torch.from_numpy(logits).softmax(-1)
    np.testing.assert_allclose(probabilities, estimator.predict_proba(features), rtol=1e-4, atol=1e-5)


def test_several_labels_are_one_logistic_regression_each():
    model = make_model("multi_label_classification", 2)
    train = make_rows(SEVERAL)
    head = fit_head(model, train, train, collate)
    features = pooled_features(model, train, collate)
    logits = logits_of(model, train)
    for label, column in enumerate(np.array(SEVERAL).T):
        estimator = LogisticRegression(C=head.strength, max_iter=1000).fit(features, column)
        np.testing.assert_allclose(logits[:, label], estimator.decision_function(features), rtol=1e-3, atol=1e-3)
    assert head.validation_score > 0.9


def test_a_label_that_no_text_has_stays_unlikely():
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    labels = np.stack([features[:, 0] > 0, np.zeros(30), np.ones(30)], axis=1).astype(np.float32)
    weight, bias = fit_linear(features, labels, "multi_label_classification", 1.0)
    assert weight.shape == (3, 4) and weight[0].any() and not weight[1:].any()
    np.testing.assert_allclose(bias[1:], [np.log(0.5 / 30.5), np.log(30.5 / 0.5)], rtol=1e-6)


def test_numbers_are_a_ridge_regression():
    model = make_model("regression", 1)
    train = make_rows(NUMBERS)
    head = fit_head(model, train, train, collate)
    features = pooled_features(model, train, collate)
    expected = Ridge(alpha=1 / head.strength).fit(features, NUMBERS).predict(features)
    np.testing.assert_allclose(logits_of(model, train)[:, 0], expected, rtol=1e-3, atol=1e-3)
    assert head.strength == STRENGTHS[-1]  # on the rows that it is fitted to, the weakest penalty does best


def test_features_are_what_the_classifier_reads():
    model = make_model("single_label_classification", 3).train()
    rows = make_rows(CLASSES)
    state = torch.get_rng_state()
    features = pooled_features(model, rows, collate, batch_size=7)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    model.eval()
    with torch.no_grad():
        for row in (0, 17, 59):
            alone = model.model(torch.tensor([rows[row]["input_ids"]])).pooler_output[0]
            np.testing.assert_allclose(features[row], alone, rtol=1e-4, atol=1e-5)
    half = pooled_features(model, rows, collate, bf16=True)
    assert half.dtype == np.float32 and 0 < np.abs(half - features).max() < 0.1


def test_nothing_but_the_classifier_changes():
    model = make_model("single_label_classification", 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit_head(model, make_rows(CLASSES), make_rows(CLASSES), collate)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert model.classifier.weight.requires_grad


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "message"),
    [
        ("single_label_classification", 4, CLASSES, r"classes \[3\] have no row in train"),
        ("single_label_classification", 2, CLASSES, r"from 0 to 2, .* with 2 labels expects class ids from 0 to 1"),
        ("single_label_classification", 3, NUMBERS, r"labels are float64 .* expects class ids"),
        (
            "multi_label_classification",
            3,
            SEVERAL,
            r"shape \(60, 2\), .* with 3 labels expects numbers of shape \(60, 3\)",
        ),
        ("regression", 1, SEVERAL, r"shape \(60, 2\), .* with 1 labels expects numbers of shape \(60, 1\)"),
        (None, 3, CLASSES, "problem_type is None, but must be one of single_label_classification"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_any_work(problem_type, num_labels, labels, message, monkeypatch):
    monkeypatch.setattr(head_fitting, "pooled_features", lambda *_, **__: pytest.fail("vectors were computed"))
    with pytest.raises(ValueError, match=message):
        fit_head(make_model(problem_type, num_labels), make_rows(labels), make_rows(labels), collate)


def test_a_scaled_head_begins_with_the_mean_and_the_spread_of_the_labels():
    torch.manual_seed(0)
    config = make_tiny_config(num_labels=2, problem_type="regression", initializer_range=0.2)
    model = ChinchillaForSequenceClassification(config).eval()
    ids = torch.randint(5, 100, (64, 10))
    labels = np.random.default_rng(0).normal([100, -3], [40, 0.5], size=(500, 2))
    with torch.no_grad():
        before = model(ids).logits
        scale_regression_head(model, labels)
        after = model(ids).logits
    mean, spread = (
        torch.tensor(value, dtype=torch.float) for value in (labels.mean(axis=0), labels.std(axis=0, ddof=1))
    )
    torch.testing.assert_close(after, before * spread + mean, atol=1e-3, rtol=1e-4)

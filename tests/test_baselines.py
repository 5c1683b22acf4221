import warnings

import numpy as np
import pytest

from chinchilla_hf import baselines
from chinchilla_hf.baselines import tfidf_baseline, word_baseline
from chinchilla_hf.metrics import confidence_interval, tagging_metrics, text_metrics

NOUNS = ["cat", "dog", "train", "garden", "river", "violin", "lamp", "window", "bridge", "sailor", "teacher", "onion"]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def sentences(rows, seed, words=("good", "plain", "bad")):
    """Texts with one telling word each, and its number."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(words), rows)
    return [f"the {rng.choice(NOUNS)} is {words[label]} by the {rng.choice(NOUNS)}" for label in labels], labels


def test_learns_what_words_tell_and_scores_it_like_metrics():
    train, test = sentences(300, 0), sentences(100, 1)
    result = tfidf_baseline(*train, *test)
    assert result.metrics == text_metrics(result.predictions, test[1], "single_label_classification")
    assert result.metrics["accuracy"] == 1.0 and result.predictions.shape == (100,)
    assert result.scores() == {
        "model": result.model,
        "test": result.metrics,
        "test_interval": {"accuracy": list(confidence_interval(1.0, 100))},
        "seconds": result.seconds,
    }
    assert result.seconds > 0


def test_labels_may_be_names():
    names = np.array(["pos", "neutral", "neg"])
    (train, train_labels), (test, test_labels) = sentences(200, 0), sentences(50, 1)
    result = tfidf_baseline(train, names[train_labels].tolist(), test, names[test_labels].tolist())
    assert result.metrics["accuracy"] == 1.0 and result.predictions[0] in names


@pytest.mark.parametrize("words", [("!", "?"), ("unbelievable", "believable"), ("好", "坏")])
def test_marks_parts_of_words_and_chinese_count(words):
    # Within a longer run of letters, so that only characters tell the Chinese ones apart.
    train, test = sentences(200, 0, words), sentences(50, 1, words)
    if words[0] == "好":
        train, test = (([text.replace(" ", "的") for text in texts], labels) for texts, labels in (train, test))
    assert tfidf_baseline(*train, *test).metrics["accuracy"] == 1.0


def test_multi_label_with_a_constant_label():
    def data(rows, seed):
        texts, labels = sentences(rows, seed)
        return texts, np.stack([labels != 2, labels != 0, np.zeros(rows), np.ones(rows)], axis=1).astype(int)

    (train, train_labels), (test, test_labels) = data(300, 0), data(60, 1)
    result = tfidf_baseline(train, train_labels, test, test_labels, problem_type="multi_label_classification")
    assert result.predictions.shape == (60, 4)
    assert result.metrics["subset_accuracy"] == 1.0
    assert list(result.scores()["test_interval"]) == ["subset_accuracy"]
    assert "SVM a label" in result.model


def test_regression():
    (train, train_labels), (test, test_labels) = sentences(300, 0), sentences(60, 1)
    result = tfidf_baseline(train, train_labels * 1.5, test, test_labels * 1.5, problem_type="regression")
    assert result.metrics["r2"] > 0.95 and result.scores()["test_interval"] == {}
    assert "ridge" in result.model


def test_pairs_are_told_apart_by_what_the_two_sides_share():
    def pairs(rows, seed):
        rng = np.random.default_rng(seed)
        left = [" ".join(rng.choice(NOUNS, 3, replace=False)) for _ in range(rows)]
        same = rng.integers(0, 2, rows)
        others = [" ".join(rng.choice(NOUNS, 3, replace=False)) for _ in range(rows)]
        right = [" ".join(reversed(a.split())) if equal else b for a, b, equal in zip(left, others, same, strict=True)]
        return left, right, same

    left, right, labels = pairs(400, 0)
    test_left, test_right, test_labels = pairs(100, 1)
    result = tfidf_baseline(left, labels, test_left, test_labels, train_text_pairs=right, test_text_pairs=test_right)
    # Neither side alone says anything.
    assert result.metrics["accuracy"] > 0.95
    assert tfidf_baseline(left, labels, test_left, test_labels).metrics["accuracy"] < 0.7


def test_the_sides_of_a_pair_are_told_apart():
    (left, labels), (right, _) = sentences(300, 0), sentences(300, 5)
    (test_left, test_labels), (test_right, _) = sentences(100, 1), sentences(100, 6)
    for first, second, test_first, test_second in (
        (left, right, test_left, test_right),
        (right, left, test_right, test_left),
    ):
        result = tfidf_baseline(
            first, labels, test_first, test_labels, train_text_pairs=second, test_text_pairs=test_second
        )
        assert result.metrics["accuracy"] == 1.0


def test_the_penalty_is_chosen_on_train_rows_alone(monkeypatch):
    train, (test, test_labels) = sentences(300, 0), sentences(100, 1)
    scored = []

    def spy(predictions, references, problem_type):
        scored.append(list(references))
        # As if the weakest penalty were the only good one.
        return {"accuracy": len(scored) / 10}

    monkeypatch.setattr(baselines, "text_metrics", spy)
    result = tfidf_baseline(*train, test, test_labels)
    assert [len(rows) for rows in scored] == [60, 60, 60, 100]
    assert scored[0] == scored[1] == scored[2] and scored[3] == list(test_labels)
    assert "(C=1)" in result.model


def test_the_same_seed_gives_the_same_answer():
    train, test = sentences(200, 0, NOUNS), sentences(50, 1, NOUNS)
    first, second = (tfidf_baseline(*train, *test, seed=3) for _ in range(2))
    assert first.model == second.model and np.array_equal(first.predictions, second.predictions)


def test_a_handful_of_rows_is_enough():
    result = tfidf_baseline(["good", "bad", "good one"], [1, 0, 1], ["good", "bad"], [1, 0])
    assert result.metrics["accuracy"] == 1.0 and "(C=0.3)" in result.model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_texts": ["a", None]}, "text 1 of train is None, but must be a string"),
        ({"train_texts": ["a"]}, "train has 1 texts and 2 labels"),
        ({"test_texts": [], "test_labels": []}, "at least one"),
        ({"train_labels": [1, 1]}, "all train rows have the label"),
        ({"train_text_pairs": ["a", "b"]}, "one of train and test only"),
        ({"problem_type": "ner"}, "'ner', but must be one of"),
    ],
)
def test_bad_input_says_what_is_expected(changes, message):
    given = {"train_texts": ["a", "b"], "train_labels": [0, 1], "test_texts": ["a"], "test_labels": [0], **changes}
    with pytest.raises(ValueError, match=message):
        tfidf_baseline(**given)


# ---- Words of a sentence ----


def tagged(rows, seed):
    """Names after `by` are places, others are not: the word itself does not tell."""
    rng = np.random.default_rng(seed)
    tokens = [["the", rng.choice(NOUNS), rng.choice(["by", "and"]), rng.choice(NOUNS), "."] for _ in range(rows)]
    return tokens, [["O", "O", "O", "B-PLACE" if row[2] == "by" else "O", "O"] for row in tokens]


def test_words_are_labelled_by_those_around_them():
    train, test = tagged(200, 0), tagged(50, 1)
    result = word_baseline(*train, *test)
    assert result.predictions == test[1] and result.metrics["overall_f1"] == 1.0
    assert result.metrics == tagging_metrics(result.predictions, test[1]) and result.seconds > 0
    assert "linear SVM" in result.model.replace("Linear", "linear")
    assert word_baseline(*train, *test).predictions == result.predictions


def test_ends_and_shapes_of_words_count():
    words = [f"{stem}{end}" for stem in ("lang", "kalt", "gelb", "rund") for end in ("heit", "lich")]
    labels = [["N" if word.endswith("heit") else "A"] for word in words]
    unseen = [["Neuheit"], ["neulich"]]
    result = word_baseline([[word] for word in words] * 5, labels * 5, unseen, [["N"], ["A"]])
    assert result.metrics["overall_accuracy"] == 1.0


def test_words_with_one_label_are_refused():
    with pytest.raises(ValueError, match=r"all train words have the label \['O'\]"):
        word_baseline([["a", "b"]], [["O", "O"]], [["a"]], [["O"]])


def test_of_symbols_it_counts():
    """How many there are of "b" and "B", which TF-IDF of rows of length 1 would lose, and lower case, too."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abB"), size=rng.integers(1, 30))) for _ in range(300)]
    labels = [text.count("b") - 2.0 * text.count("B") for text in texts]
    baseline = tfidf_baseline(
        texts[:200], labels[:200], texts[200:], labels[200:], problem_type="regression", symbols=list
    )
    assert baseline.metrics["r2"] > 0.999 and baseline.model.startswith("n-grams of symbols + ridge")

"""
What a classifier is worth is what it adds over the cheap thing: a linear model, seconds on one core. For texts it is on
TF-IDF, for the words of a sentence on the words around each.

The settings for texts were compared on CLINC150 (150 intents) and on 37,000 tweets (3 sentiments): words and characters
together score 1 to 2 points of accuracy above either alone, longer n-grams add nothing, and logistic regression is no
better than the linear SVM and takes four times as long.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC

from .metrics import MAIN_METRIC, check_problem_type, confidence_interval, tagging_metrics, text_metrics

# Strengths of the penalty to choose from: C of the SVM (greater is weaker), alpha of the ridge (greater is stronger).
# CLINC150 is best at C=1, the tweets at 0.3, SICK (sentence pairs) at 0.1 and at alpha=3; beyond, all are worse.
SVM_C = (0.1, 0.3, 1.0)
RIDGE_ALPHA = (1.0, 3.0, 10.0)
# Of n-grams of symbols, which may say nearly all, as the atoms of a molecule, or hardly anything, as moves of a price.
SYMBOLS_C = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
SYMBOLS_ALPHA = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
# The choice between them is as good on part of a large data set, and the fits are what takes the time.
MAX_TUNING_ROWS = 10_000
# Below this, a fifth of the rows is too small to choose by.
MIN_TUNING_ROWS = 50
# An n-gram of characters that stands in one text only teaches nothing about another, and there are many of them. In a
# small data set, though, most n-grams do.
MIN_ROWS_FOR_RARE = 1_000


@dataclasses.dataclass(frozen=True)
class TfidfBaseline:
    """
    How well [`tfidf_baseline`] did.

    Args:
        model: what it was, with the penalty that it chose, for a table: `"TF-IDF + linear SVM (C=1)"`.
        metrics: the values of `chinchilla_hf.metrics.text_metrics` on the test rows.
        predictions: what it says of each test row, shaped like the test labels.
        seconds: wall time of everything, choice of the penalty included.
    """

    model: str
    metrics: dict[str, float]
    predictions: np.ndarray
    seconds: float

    def scores(self) -> dict[str, Any]:
        """What a [`RunRecord`] keeps under `scores["baseline"]`."""
        intervals = {
            name: list(confidence_interval(self.metrics[name], len(self.predictions)))
            for name in ("accuracy", "subset_accuracy")
            if name in self.metrics
        }
        return {"model": self.model, "test": self.metrics, "test_interval": intervals, "seconds": self.seconds}


def tfidf_baseline(
    train_texts: Sequence[str],
    train_labels: Any,
    test_texts: Sequence[str],
    test_labels: Any,
    *,
    problem_type: str = "single_label_classification",
    seed: int = 0,
    train_text_pairs: Sequence[str] | None = None,
    test_text_pairs: Sequence[str] | None = None,
    symbols: Callable[[str], list[str]] | None = None,
) -> TfidfBaseline:
    """
    Train a linear model on TF-IDF of words (1-2) and of characters within words (1-4), and score it on the test rows.

    Of what is not prose, on how often each symbol, pair and triple of symbols occurs: there, how much there is of a
    thing may be what counts.

    The penalty is chosen on train rows that are left out for that; the test rows are used once, at the end. Of symbols,
    these are the last rows: what follows in time may be much like what it follows.

    Args:
        train_texts: `(rows,)` texts.
        train_labels: `(rows,)` class ids or names, `(rows, labels)` of 0 and 1 for multi-label, or `(rows,)` numbers.
        test_texts: as for training.
        test_labels: as for training.
        problem_type: `"single_label_classification"`, `"multi_label_classification"` or `"regression"`.
        seed: of the choice of the rows that are left out, and of the SVM.
        train_text_pairs: the second text of every row, for pairs. Each side has features of its own, and so has what
            the sides share and what only one of them has: the answer is hardly ever in one side.
        test_text_pairs: as for training.
        symbols: cuts what is not prose into its symbols.

    Raises:
        ValueError: texts that are not strings, numbers of rows that differ, one side of a pair missing, or a single
            class.
    """
    check_problem_type(problem_type)
    train_columns = _columns("train", train_texts, train_text_pairs, train_labels)
    test_columns = _columns("test", test_texts, test_text_pairs, test_labels)
    if len(train_columns) != len(test_columns):
        raise ValueError("text pairs were given for one of train and test only: give them for both or for neither")
    train_labels, test_labels = np.asarray(train_labels), np.asarray(test_labels)
    if problem_type == "single_label_classification" and len(np.unique(train_labels)) < 2:
        raise ValueError(
            f"all train rows have the label {train_labels[0]!r}, but a classifier needs two: check the data"
        )

    start = time.perf_counter()
    vectorizers = _vectorizers(len(train_columns[0]), symbols)
    train_features, test_features = _features(vectorizers, train_columns, test_columns)
    models = list(_models(problem_type, seed, of_symbols=symbols is not None))
    fitted, held_out = _tuning_rows(train_labels, problem_type, seed, in_order=symbols is not None)
    best = _choose(models, train_features, train_labels, problem_type, fitted, held_out)
    predictions = _fit(best, train_features, train_labels).predict(test_features)
    return TfidfBaseline(
        model=_name(best, "TF-IDF" if symbols is None else "n-grams of symbols"),
        metrics=text_metrics(predictions, test_labels, problem_type),
        predictions=predictions,
        seconds=time.perf_counter() - start,
    )


def _columns(split: str, texts: Sequence[str], pairs: Sequence[str] | None, labels: Any) -> list[Sequence[str]]:
    columns = [texts] if pairs is None else [texts, pairs]
    for column in columns:
        if len(column) != len(labels) or len(column) == 0:
            raise ValueError(
                f"{split} has {len(column)} texts and {len(labels)} labels, but needs as many of both, at least one: "
                "pass the columns of one split"
            )
        for row, text in enumerate(column):
            if not isinstance(text, str):
                raise ValueError(f"text {row} of {split} is {text!r}, but must be a string: drop or fill empty cells")
    return columns


def _models(problem_type: str, seed: int, of_symbols: bool) -> Iterator[Any]:
    """Untrained models, one a strength of the penalty."""
    if problem_type == "regression":
        yield from (Ridge(alpha=alpha) for alpha in (SYMBOLS_ALPHA if of_symbols else RIDGE_ALPHA))
        return
    for C in SYMBOLS_C if of_symbols else SVM_C:
        # A looser stop than the default 1e-4: the same accuracy, on the tweets in half the time.
        svm = LinearSVC(C=C, tol=1e-2, random_state=seed)
        yield OneVsRestClassifier(svm) if problem_type == "multi_label_classification" else svm


def _name(model: Any, features: str) -> str:
    if isinstance(model, Ridge):
        return f"{features} + ridge regression (alpha={model.alpha:g})"
    if isinstance(model, OneVsRestClassifier):
        return f"{features} + a linear SVM a label (C={model.estimator.C:g})"
    return f"{features} + linear SVM (C={model.C:g})"


def _fit(model: Any, features: sparse.csr_matrix, labels: np.ndarray) -> Any:
    with warnings.catch_warnings():
        # A label that all rows have, or none: its constant answer is the right one.
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples", category=UserWarning)
        warnings.filterwarnings("ignore", message="Label not .* is present in all training", category=UserWarning)
        return model.fit(features, labels)


def _tuning_rows(labels: np.ndarray, problem_type: str, seed: int, in_order: bool) -> tuple[np.ndarray, np.ndarray]:
    """Train rows to fit to, and others to choose by: the last ones if `in_order`, unless a class is in these alone."""
    rows = len(labels)
    count = min(rows * 4 // 5, MAX_TUNING_ROWS)
    if in_order and problem_type == "single_label_classification":
        in_order = set(np.unique(labels[:count])) == set(np.unique(labels))
    order = np.arange(rows) if in_order else np.random.default_rng(seed).permutation(rows)
    return order[:count], order[count:]


def _choose(
    models: list[Any],
    features: sparse.csr_matrix,
    labels: np.ndarray,
    problem_type: str,
    fitted: np.ndarray,
    held_out: np.ndarray,
) -> Any:
    """The model that does best on train rows that it was not fitted to; the middle one where there are too few."""
    one_class = problem_type == "single_label_classification" and len(np.unique(labels[fitted])) < 2
    if len(labels) < MIN_TUNING_ROWS or one_class:
        return models[len(models) // 2]

    def held_out_score(model: Any) -> float:
        predictions = _fit(model, features[fitted], labels[fitted]).predict(features[held_out])
        score = text_metrics(predictions, labels[held_out], problem_type)[MAIN_METRIC[problem_type]]
        return -np.inf if np.isnan(score) else score

    return max(models, key=held_out_score)


def _vectorizers(train_rows: int, symbols: Callable[[str], list[str]] | None) -> list[CountVectorizer]:
    min_df = 2 if train_rows >= MIN_ROWS_FOR_RARE else 1
    if symbols is not None:
        options = {"tokenizer": symbols, "token_pattern": None, "lowercase": False}
        return [CountVectorizer(ngram_range=(1, 3), min_df=min_df, dtype=np.float64, **options)]
    return [
        # Marks stand for themselves: "!" and ":)" say much about a sentiment.
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]"),
        # Single characters are words in Chinese.
        TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, min_df=min_df),
    ]


def _features(
    vectorizers: list[CountVectorizer], train_columns: list[Sequence[str]], test_columns: list[Sequence[str]]
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """`(rows, features)` of train and test. Only train texts decide which n-grams there are and what they weigh."""
    train_blocks, test_blocks = [], []
    for vectorizer in vectorizers:
        vectorizer.fit([text for column in train_columns for text in column])
        train_blocks += _blocks([vectorizer.transform(column) for column in train_columns])
        test_blocks += _blocks([vectorizer.transform(column) for column in test_columns])
    return sparse.hstack(train_blocks, format="csr"), sparse.hstack(test_blocks, format="csr")


def _blocks(sides: list[sparse.csr_matrix]) -> list[Any]:
    """
    Features of one text: as they are. Of a pair: each side, what both share (product), what one has (difference), and
    the cosine. On SICK the sides alone give an accuracy of 0.60, and all of these 0.85.
    """
    if len(sides) == 1:
        return sides
    left, right = sides
    shared = left.multiply(right).tocsr()
    # Rows of TF-IDF have length 1, so the sum of the product is the cosine.
    return [left, right, normalize(shared), normalize(abs(left - right)), sparse.csr_matrix(shared.sum(axis=1))]


@dataclasses.dataclass(frozen=True)
class WordBaseline:
    """
    How well [`word_baseline`] did.

    Args:
        model: what it was, for a table.
        metrics: the values of `chinchilla_hf.metrics.tagging_metrics` on the test sentences.
        predictions: what it says of every word.
        seconds: wall time of everything.
    """

    model: str
    metrics: dict[str, Any]
    predictions: list[list[str]]
    seconds: float


def word_baseline(
    train_tokens: Sequence[Sequence[str]],
    train_labels: Sequence[Sequence[str]],
    test_tokens: Sequence[Sequence[str]],
    test_labels: Sequence[Sequence[str]],
    *,
    seed: int = 42,
) -> WordBaseline:
    """
    Label words by a linear SVM on the word, its ends and its shape, and on the words beside it, each word on its own.

    Args:
        train_tokens, train_labels: the words of every sentence, and their labels.
        test_tokens, test_labels: the same, to be scored.
        seed: of the solver.

    Raises:
        ValueError: no sentences, or all training words have the same label.
    """
    start = time.perf_counter()
    labels = [label for row in train_labels for label in row]
    if len(set(labels)) < 2:
        raise ValueError(f"all train words have the label {labels[:1]}, but a classifier needs two: check the data")
    vectorizer = DictVectorizer(dtype=np.float32)
    features = vectorizer.fit_transform(_word_features(train_tokens))
    features.indices = features.indices.astype(np.int32)  # the solver takes no others
    features.indptr = features.indptr.astype(np.int32)
    # On words of CoNLL-2000 held out of its training sentences: F1 0.914, and 0.908 with C=0.05.
    model = LinearSVC(C=0.1, tol=0.1, random_state=seed).fit(features, labels)
    flat = iter(model.predict(vectorizer.transform(_word_features(test_tokens))).tolist())
    predictions = [[next(flat) for _ in row] for row in test_tokens]
    return WordBaseline(
        model="Linear SVM on words (C=0.1)",
        metrics=tagging_metrics(predictions, test_labels),
        predictions=predictions,
        seconds=time.perf_counter() - start,
    )


def _word_features(sentences: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Of every word: itself, its beginning, end and kinds of characters, and the two words on either side."""
    edge = ["", ""]
    for tokens in sentences:
        padded = [*edge, *tokens, *edge]
        lower = [token.lower() for token in padded]
        for i in range(2, len(padded) - 2):
            word = padded[i]
            # Aa9- for a word like Covid-19: characters of one kind in a row count once.
            kinds = ["A" if c.isupper() else "a" if c.isalpha() else "9" if c.isdigit() else c for c in word]
            shape = "".join(c for c, before in zip(kinds, ["", *kinds], strict=False) if c != before)
            features: dict[str, Any] = {f"word{offset}": lower[i + offset] for offset in (-2, -1, 0, 1, 2)}
            features |= {f"end{n}": lower[i][-n:] for n in (1, 2, 3, 4)} | {"begin": lower[i][:3], "shape": shape}
            features |= {"before": " ".join(lower[i - 1 : i + 1]), "after": " ".join(lower[i : i + 2])}
            features |= {"end before": lower[i - 1][-3:], "end after": lower[i + 1][-3:]}
            yield features

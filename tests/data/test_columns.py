"""Columns of texts and labels: found, given, and those that do not fit."""

import logging

import pytest
from labelled_files import MORE, TEXTS, YES_NO, all_rows, lines, table, write_columns

from chinchilla_hf.data.labelled import load_labelled

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.mark.parametrize(
    ("columns", "texts", "label"),
    [
        ({"text": TEXTS, "label": YES_NO}, ("text",), "label"),
        ({"Sentiment": YES_NO, "confidence": [0.5, 1.0] * 10, "Tweet": TEXTS}, ("Tweet",), "Sentiment"),
        ({"id": TEXTS, "title": MORE, "text": TEXTS, "label": YES_NO, "label_text": YES_NO}, ("text",), "label"),
        ({"review": TEXTS, "title": MORE, "stars": [1, 5] * 10}, ("review",), "stars"),
        ({"sentence_A": TEXTS, "sentence_B": MORE, "label": YES_NO}, ("sentence_A", "sentence_B"), "label"),
        ({"premise": TEXTS, "hypothesis": MORE, "label": YES_NO}, ("premise", "hypothesis"), "label"),
        ({"question": TEXTS, "answer": MORE, "class": YES_NO}, ("question", "answer"), "class"),
        ({"uuid": MORE, "number": list(range(20)), "speech": TEXTS, "party": YES_NO}, ("speech",), "party"),
        ({"speech": TEXTS, "party": [3, 7] * 10, "weight": [0.5, 1.5] * 10}, ("speech",), "party"),
        ({"said": [YES_NO[0], *YES_NO[1:]], "n": [1, 2] * 10}, ("said",), "n"),
    ],
)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_columns_are_found(tmp_path, columns, texts, label, form, caplog):
    path = tmp_path / f"a.{form}"
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.write_bytes(table(rows, ",") if form == "csv" else lines(rows))
    with caplog.at_level(logging.INFO):
        data = load_labelled(str(path), drop_duplicates=False)
    assert (data.text_columns, data.label_column) == (texts, label)
    assert list(data.splits["test"].column_names) == [*["text", "text_pair"][: len(texts)], "labels"]
    assert f"text: {' + '.join(texts)}; label: {label}" in caplog.text


def test_columns_given(tmp_path):
    path = write_columns(
        tmp_path / "a.jsonl", text=TEXTS, other=MORE, label=YES_NO, party=["x", "y", "x", "y", "y"] * 4
    )
    data = load_labelled(path, text_column="other", label_column="party")
    assert sorted(all_rows(data)) == sorted(zip(MORE, ["x", "y", "x", "y", "y"] * 4, strict=True))
    pairs = load_labelled(path, text_column="other", text_pair_column="text")
    assert sorted(all_rows(pairs)) == sorted(zip(MORE, TEXTS, YES_NO, strict=True))


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"text": TEXTS, "label": YES_NO},
            {"label_column": "x"},
            r"label_column is 'x', but .* text \(string\), label",
        ),
        ({"text": TEXTS, "label": YES_NO}, {"text_column": "x"}, "text_column is 'x', but the columns are text"),
        ({"text": TEXTS, "label": YES_NO}, {"text_pair_column": "text"}, "text_column is not given: pass both"),
        ({"text": TEXTS, "label": YES_NO}, {"text_column": "text", "label_column": "text"}, "must be different"),
        (
            {"text": [1, 2] * 10, "label": YES_NO},
            {"text_column": "text"},
            "'text' of split 'train' holds int64, not text",
        ),
        ({"text": [["a"]] * 20, "label": YES_NO}, {"text_column": "text"}, "holds List, not text"),
        ({"text": [1, 2] * 10, "label": [0, 1] * 10}, {}, r"which column is the text; .* text \(int64\).*text_column"),
        ({"sentence": TEXTS, "tweet": MORE, "label": YES_NO}, {}, "which column is the text.* pass text_column"),
        ({"abc": TEXTS, "xyz": MORE, "label": YES_NO}, {}, "which column is the text.* pass text_column"),
        (
            {"text": TEXTS, "sentiment": YES_NO, "stars": YES_NO},
            {},
            r"the label \(sentiment stars\).*pass label_column",
        ),
        ({"text": TEXTS, "party": YES_NO, "state": [1, 2] * 10}, {}, r"the label \(party state\).*pass label_column"),
        ({"text": TEXTS, "party": MORE}, {}, "which column is the label; .*pass label_column"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, columns, options, message):
    with pytest.raises(ValueError, match=message):
        load_labelled(write_columns(tmp_path / "a.jsonl", **columns), **options)

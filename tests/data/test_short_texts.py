"""Sentences and spans of words: all of a document, no text twice, and the same ones every time."""

import pytest

from chinchilla_hf.data.short_texts import short_texts

DOCUMENT = "A dog barks. The cat, which is old and sleeps a lot; sees it!\nHello\none two -- " + "long words here " * 9


def texts(*documents: str, **options: object) -> list[str]:
    return [row["text"] for row in short_texts(documents, **options)]


@pytest.mark.parametrize("seed", range(5))
def test_they_are_all_of_a_document_but_single_words_and_what_was_there(seed):
    found = texts(DOCUMENT, min_words=2, max_words=5, seed=seed)
    assert all(2 <= len(text.split()) <= 5 for text in found)
    assert {"sees it!", "one two"} <= set(found) and "Hello" not in found
    assert len(set(found)) == len(found)
    assert {word for text in found for word in text.split()} <= set(DOCUMENT.split())
    whole = " ".join(DOCUMENT.split())
    assert all(text in whole for text in found)


def test_sentences_stay_whole_where_they_are_short_enough_most_of_the_time():
    documents = [f"number {i} is a sentence." for i in range(300)]
    found = texts(*documents, min_words=2, max_words=8)
    assert 0.6 < sum(document in found for document in documents) / 300 < 0.95


def test_a_document_has_the_same_texts_whatever_stands_before_it():
    alone = texts(DOCUMENT, seed=1)
    assert texts("Something else altogether.", DOCUMENT, seed=1)[-len(alone) :] == alone
    assert texts(DOCUMENT, seed=2) != alone
    assert texts(DOCUMENT, DOCUMENT, seed=1) == alone


def test_documents_are_held_out_as_a_whole():
    rows = list(short_texts((f"first {i} here. second {i} here." for i in range(50)), held_out_share=0.5))
    by_number: dict[str, set[bool]] = {}
    for row in rows:
        by_number.setdefault(row["text"].split()[1], set()).add(row["held_out"])
    assert set.union(*by_number.values()) == {True, False}
    assert all(len(sides) == 1 for sides in by_number.values())


@pytest.mark.parametrize(("low", "high"), [(1, 5), (6, 5)])
def test_no_spans_of_no_words(low, high):
    with pytest.raises(ValueError, match=f"min_words is {low} and max_words {high}, expected"):
        texts(DOCUMENT, min_words=low, max_words=high)

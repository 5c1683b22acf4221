"""The token store: the tokens of every document, made once, whole or not at all."""

import json
import os

import numpy as np
import pytest

from chinchilla_hf import train_tokenizer
from chinchilla_hf.data import token_store
from chinchilla_hf.data.corpora import Corpus
from chinchilla_hf.data.token_store import TokenStore, tokenizer_of_corpus

TEXTS = [
    "First sentence. Second one! A third?",
    "Zwei Wörter",
    "三个字。四个字儿。",
    "a line\nanother",
    "First sentence.",
]


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return Corpus(str(path))


@pytest.fixture(params=["wordpiece", "bpe"])
def tokenizer(request):
    return train_tokenizer(TEXTS * 4, algorithm=request.param, vocab_size=400, show_progress=False)


def build(corpus, tokenizer, tmp_path, **settings) -> TokenStore:
    return TokenStore.build(corpus, tokenizer, cache_dir=tmp_path / "cache", show_progress=False, **settings)


def test_tokens_are_those_of_the_tokenizer_without_special_tokens(corpus, tokenizer, tmp_path):
    store = build(corpus, tokenizer, tmp_path)
    assert len(store) == len(TEXTS) and store.facts["documents"] == len(TEXTS)
    assert store.facts["characters"] == sum(map(len, TEXTS)) and store.facts["tokens"] == len(store.tokens)
    for i, text in enumerate(TEXTS):
        found = store.tokens[store.document_starts[i] : store.document_starts[i + 1]].tolist()
        assert found == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_long_texts_and_many_batches_change_nothing(corpus, tokenizer, tmp_path, monkeypatch):
    whole = build(corpus, tokenizer, tmp_path, sentences=True)
    monkeypatch.setattr(token_store, "BATCH_CHARACTERS", 20)
    monkeypatch.setattr(token_store, "MAX_PART_CHARACTERS", 16)
    parts = build(corpus, tokenizer, tmp_path / "again", sentences=True)
    assert np.array_equal(whole.tokens, parts.tokens)
    assert np.array_equal(whole.document_starts, parts.document_starts)
    assert set(whole.sentence_starts) <= set(parts.sentence_starts)


def test_sentences_begin_where_they_do(corpus, tokenizer, tmp_path):
    store = build(corpus, tokenizer, tmp_path, sentences=True)
    spans = zip(store.sentence_starts[:-1], store.sentence_starts[1:], strict=True)
    sentences = [tokenizer.decode(store.tokens[start:end]).strip() for start, end in spans]
    expected = [
        "First sentence.",
        "Second one!",
        "A third?",
        "Zwei Wörter",
        "三个字。",
        "四个字儿。",
        "a line",
        "another",
    ]
    assert [s.replace(" ", "") for s in sentences] == [s.replace(" ", "") for s in [*expected, "First sentence."]]


def test_the_second_time_it_is_only_opened(corpus, tokenizer, tmp_path, monkeypatch):
    first = build(corpus, tokenizer, tmp_path)
    monkeypatch.setattr(token_store, "_write", None)  # would raise if it was called
    assert build(corpus, tokenizer, tmp_path).folder == first.folder


def test_another_text_tokenizer_or_setting_is_another_store(corpus, tokenizer, tmp_path):
    other = train_tokenizer(TEXTS * 4, vocab_size=60, show_progress=False)
    (tmp_path / "b.jsonl").write_text('{"text": "something else"}\n')
    stores = [
        build(corpus, tokenizer, tmp_path),
        build(corpus, other, tmp_path),
        build(corpus, tokenizer, tmp_path, sentences=True),
        build(corpus, tokenizer, tmp_path, max_documents=2),
        build(Corpus(str(tmp_path / "b.jsonl")), tokenizer, tmp_path),
    ]
    assert len({store.folder for store in stores}) == 5
    assert len(stores[3]) == 2


def test_an_interruption_leaves_no_store(corpus, tokenizer, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(token_store.os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(corpus, tokenizer, tmp_path)
    assert os.listdir(tmp_path / "cache") == []
    assert len(build(corpus, tokenizer, tmp_path)) == len(TEXTS)


def test_a_text_is_held_out_by_its_content(tmp_path, tokenizer):
    texts = [f"text number {i}" for i in range(2000)]
    path = tmp_path / "many.txt"
    path.write_text("\n".join([*texts, *texts]))
    store = build(Corpus(str(path), document_separator="line"), tokenizer, tmp_path)
    held_out = store.held_out(0.1)
    assert held_out.mean() == pytest.approx(0.1, abs=0.03)
    assert np.array_equal(held_out[:2000], held_out[2000:])  # the same text, the same side
    assert (store.held_out(0.05) <= held_out).all()
    assert not store.held_out(0.0).any()


def test_a_large_vocabulary_takes_wider_integers(tokenizer, corpus, tmp_path):
    assert build(corpus, tokenizer, tmp_path).tokens.dtype == np.uint16
    tokenizer.add_tokens([f"extra{i}" for i in range(70_000)])
    assert build(corpus, tokenizer, tmp_path).tokens.dtype == np.uint32


def test_no_documents_raise(tokenizer, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n \n")
    with pytest.raises(ValueError, match="holds no documents with text"):
        build(Corpus(str(tmp_path / "empty.txt")), tokenizer, tmp_path)
    assert os.listdir(tmp_path / "cache") == []


def test_a_tokenizer_is_trained_once_for_a_corpus(corpus, tmp_path, monkeypatch):
    settings = {"vocab_size": 80, "model_max_length": 32, "show_progress": False}
    first = tokenizer_of_corpus(corpus, cache_dir=tmp_path / "cache", **settings)
    monkeypatch.setattr(token_store, "train_tokenizer", None)  # would raise if it was called
    again = tokenizer_of_corpus(corpus, cache_dir=tmp_path / "cache", **settings)
    assert first.get_vocab() == again.get_vocab() and again.model_max_length == 32
    assert again.mask_token == "[MASK]"

    def whole(corpus):
        raise AssertionError("read as a whole")

    monkeypatch.undo()
    monkeypatch.setattr(Corpus, "fingerprint", whole)
    quick = tokenizer_of_corpus(corpus, cache_dir=tmp_path / "cache", fingerprint="f00d", **settings)
    assert quick.get_vocab() == first.get_vocab()

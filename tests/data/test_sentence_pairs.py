"""Pairs of sentences: true ones follow, others come from another document and have nearly the same length."""

import json

import numpy as np
import pytest
import torch
from conftest import make_tiny_config

from chinchilla_hf import ChinchillaForPreTraining, train_tokenizer
from chinchilla_hf.data.corpora import Corpus
from chinchilla_hf.data.objectives import IGNORED, MaskedTokens
from chinchilla_hf.data.packing import SpecialTokens, collate_rows
from chinchilla_hf.data.sentence_pairs import SentencePairRows, find_pairs
from chinchilla_hf.data.token_store import TokenStore

ROW_LENGTH = 64


@pytest.fixture(scope="module")
def tokenizer():
    texts = [f"d{i} s{j}" for i in range(60) for j in range(12)]
    return train_tokenizer(texts, vocab_size=400, min_frequency=1, show_progress=False)


@pytest.fixture(scope="module")
def store(tokenizer, tmp_path_factory) -> TokenStore:
    """60 documents of 1 to 12 sentences, each of which says of which document and where it is."""
    folder = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    with open(folder / "corpus.jsonl", "w") as file:
        for i in range(60):
            sentences = [f"d{i} s{j}" + " more" * int(rng.integers(6)) + "." for j in range(1 + i % 12)]
            file.write(json.dumps({"text": " ".join(sentences)}) + "\n")
    corpus = Corpus(str(folder / "corpus.jsonl"))
    return TokenStore.build(corpus, tokenizer, sentences=True, cache_dir=folder / "cache", show_progress=False)


@pytest.fixture(scope="module")
def rows(store, tokenizer) -> SentencePairRows:
    special = SpecialTokens.of(tokenizer)
    pairs = find_pairs(store, ROW_LENGTH - 3)
    return SentencePairRows(store.tokens, pairs, ROW_LENGTH, special, MaskedTokens(tokenizer), num_items=4000)


def test_pairs_are_neighbours_cut_between_sentences_near_the_middle(store):
    pairs = find_pairs(store, 40)
    starts = set(store.sentence_starts.tolist())
    bounds = store.document_starts
    total = pairs.first_lengths + pairs.second_lengths
    assert (total <= 40).all() and (pairs.first_lengths > 0).all() and (pairs.second_lengths > 0).all()
    for start, first, second, document in zip(*vars(pairs).values(), strict=True):
        assert {start, start + first} <= starts and start + first + second in starts | {len(store.tokens)}
        assert bounds[document] <= start and start + first + second <= bounds[document + 1]
    assert abs(np.mean(pairs.first_lengths / total) - 0.5) < 0.05
    chosen = np.arange(len(store)) % 2 == 0
    assert set(find_pairs(store, 40, chosen).documents.tolist()) <= set(np.flatnonzero(chosen).tolist())


def test_labels_tell_true_pairs_from_others(rows, tokenizer):
    rows.objective.mask_share, rows.objective.random_share = 0.0, 0.0  # what is masked stays readable
    true, lengths = [], {0: [], 1: []}
    for i in range(len(rows.packing) * 4):
        item = rows[i]
        firsts = np.flatnonzero(item["next_sentence_label"] != IGNORED)
        assert (item["input_ids"][firsts] == tokenizer.cls_token_id).all()
        assert np.array_equal(firsts, np.flatnonzero(item["input_ids"] == tokenizer.cls_token_id))
        for begin, end in zip(firsts, [*firsts[1:], ROW_LENGTH], strict=True):
            ids, types = item["input_ids"][begin:end], item["token_type_ids"][begin:end]
            first = tokenizer.decode(ids[(types == 0) & (ids != 0)], skip_special_tokens=True).split()
            second = tokenizer.decode(ids[types == 1], skip_special_tokens=True).split()
            documents = {word for word in (*first, *second) if word.startswith("d")}
            label = int(item["next_sentence_label"][begin])
            assert len(documents) == 1 + label, (first, second)
            if label == 0:
                sentence = [int(word[1:].rstrip(".")) for word in (*first, *second) if word.startswith("s")]
                assert sentence == list(range(sentence[0], sentence[0] + len(sentence)))
            true.append(label == 0)
            lengths[label].append((types == 1).sum())
    assert np.mean(true) == pytest.approx(0.5, abs=0.08)
    assert np.mean(lengths[0]) == pytest.approx(np.mean(lengths[1]), rel=0.15)


def test_pairs_are_drawn_anew_in_every_epoch_and_from_the_seed(rows):
    count = len(rows.packing)
    first, again, later = rows[3], rows[3], rows[3 + count]
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["input_ids"], later["input_ids"])


def test_a_packed_batch_equals_its_pairs_alone(rows):
    torch.manual_seed(0)
    model = ChinchillaForPreTraining(make_tiny_config(vocab_size=400)).eval()
    batch = collate_rows([rows[i] for i in range(3)])
    with torch.no_grad():
        packed = model(**batch).seq_relationship_logits
        alone = []
        for row in range(3):
            begins = (batch["position_ids"][row] == 0).nonzero().flatten().tolist()
            for begin, end in zip(begins, [*begins[1:], ROW_LENGTH], strict=True):
                if batch["next_sentence_label"][row, begin] != IGNORED:
                    inputs = {name: batch[name][row, begin:end][None] for name in ("input_ids", "token_type_ids")}
                    alone.append(model(**inputs).seq_relationship_logits)
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-5, rtol=1e-5)
    loss = model(**batch).loss
    labels = batch["next_sentence_label"][batch["next_sentence_label"] != IGNORED]
    masked = model(**batch | {"next_sentence_label": None}).prediction_logits
    expected = torch.nn.functional.cross_entropy(masked, batch["labels"][batch["labels"] != IGNORED])
    torch.testing.assert_close(loss, expected + torch.nn.functional.cross_entropy(packed, labels))


def test_packed_pairs_want_the_first_token(rows):
    model = ChinchillaForPreTraining(make_tiny_config(vocab_size=400, pooling="mean"))
    with pytest.raises(ValueError, match="pooling is 'mean'"):
        model(**collate_rows([rows[0]]))


def test_documents_of_one_sentence_raise(tokenizer, tmp_path):
    (tmp_path / "single.txt").write_text("one sentence\n\nanother one\n")
    corpus = Corpus(str(tmp_path / "single.txt"))
    settings = {"cache_dir": tmp_path / "cache", "show_progress": False}
    with pytest.raises(ValueError, match="no document has two sentences"):
        find_pairs(TokenStore.build(corpus, tokenizer, sentences=True, **settings), 60)
    with pytest.raises(ValueError, match="built without sentences"):
        find_pairs(TokenStore.build(corpus, tokenizer, **settings), 60)

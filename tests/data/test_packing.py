"""Packing: nothing lost, next to no padding, documents apart, and items that depend on seed and number alone."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_config

from chinchilla_hf import ChinchillaModel, train_tokenizer
from chinchilla_hf.data.packing import PackedRows, SpecialTokens, collate_rows, cut_documents, pack

SPECIAL = SpecialTokens(before=(2,), after=(3,), padding=0)


def identity(row, rng, progress):
    return {
        "input_ids": row.input_ids,
        "position_ids": row.position_ids,
        "documents": row.documents,
        "is_text": row.is_text,
        "draw": np.array(rng.integers(1 << 30)),
        "progress": np.array(progress),
    }


def random_starts(count: int, longest: int, seed: int = 0) -> np.ndarray:
    """Lengths as of real documents: many short ones, some longer than a row."""
    lengths = np.random.default_rng(seed).geometric(0.02, count).clip(0, longest)
    return np.concatenate([[0], np.cumsum(lengths)])


def make_rows(starts: np.ndarray, row_length: int = 64, **settings) -> PackedRows:
    tokens = np.arange(10, 10 + starts[-1])  # every token is different, so none can be lost or doubled unseen
    pieces = cut_documents(starts, row_length - len(SPECIAL))
    packing = pack(*pieces, row_length, len(SPECIAL), seed=0)
    return PackedRows(tokens, packing, SPECIAL, identity, **settings)


def test_documents_are_cut_where_they_are_too_long_and_only_there():
    starts, lengths = cut_documents(np.array([0, 3, 3, 4, 24, 35]), max_length=10)
    # lengths 3, 0, 1, 20, 11: the empty one, the single token and the tail of one token are left out
    assert starts.tolist() == [0, 4, 14, 24] and lengths.tolist() == [3, 10, 10, 10]


def test_only_chosen_documents_are_cut():
    chosen = np.array([True, False, True])
    starts, lengths = cut_documents(np.array([0, 5, 9, 12]), max_length=10, documents=chosen)
    assert starts.tolist() == [0, 9] and lengths.tolist() == [5, 3]


def test_every_token_is_in_one_row_once():
    starts = random_starts(3000, 200)
    rows = make_rows(starts)
    pieces = cut_documents(starts, 62)
    expected = np.concatenate([np.arange(start, start + length) for start, length in zip(*pieces, strict=True)]) + 10
    found = np.concatenate([rows[i]["input_ids"][rows[i]["is_text"]] for i in range(len(rows))])
    assert np.array_equal(np.sort(found), np.sort(expected))


@pytest.mark.parametrize("row_length", [64, 128, 512])
def test_padding_is_at_most_two_percent(row_length):
    starts = random_starts(20_000, 1000)
    packing = pack(*cut_documents(starts, row_length - 2), row_length, 2, seed=0)
    assert packing.padding <= 0.02
    rows = make_rows(starts, row_length)
    assert packing.padding == pytest.approx(np.mean([(rows.row(i).documents < 0).mean() for i in range(len(rows))]))


def test_documents_of_a_row_have_their_special_tokens_and_positions():
    rows = make_rows(random_starts(500, 40))
    for item in (rows.row(i) for i in range(len(rows))):
        for document in range(item.documents.max() + 1):
            here = item.documents == document
            ids, positions = item.input_ids[here], item.position_ids[here]
            assert (
                ids[0] == 2 and ids[-1] == 3 and item.is_text[here].tolist() == [False, *[True] * (len(ids) - 2), False]
            )
            assert positions.tolist() == list(range(len(ids)))
            assert (np.diff(ids[1:-1]) == 1).all()
        padding = item.documents < 0
        assert (item.input_ids[padding] == 0).all() and not item.is_text[padding].any()
        assert item.position_ids[padding].tolist() == list(range(padding.sum()))


def test_items_depend_on_seed_and_number_alone():
    rows, again = make_rows(random_starts(500, 80), num_items=1000), make_rows(random_starts(500, 80), num_items=1000)
    numbers = [999, 3, 500, 3]
    for number in numbers:
        for name, value in rows[number].items():
            assert np.array_equal(again[number][name], value)
    other = make_rows(random_starts(500, 80), num_items=1000, seed=1)
    assert any(not np.array_equal(other[i]["input_ids"], rows[i]["input_ids"]) for i in range(5))
    assert rows[500]["progress"] == 0.5


def test_every_epoch_has_all_rows_in_another_order_with_other_draws():
    rows = make_rows(random_starts(500, 80))
    count = len(rows)
    rows.num_items = 2 * count
    epochs = [[rows[i] for i in range(begin, begin + count)] for begin in (0, count)]
    keys = [[item["input_ids"].tobytes() for item in epoch] for epoch in epochs]
    assert sorted(keys[0]) == sorted(keys[1]) and keys[0] != keys[1]
    draws = [{item["input_ids"].tobytes(): int(item["draw"]) for item in epoch} for epoch in epochs]
    assert all(draws[0][key] != draws[1][key] for key in draws[0])
    with pytest.raises(IndexError):
        rows[2 * count]


def test_a_packed_batch_equals_its_documents_alone():
    torch.manual_seed(0)
    model = ChinchillaModel(make_tiny_config(vocab_size=4000)).eval()
    rows = make_rows(random_starts(80, 30))
    batch = collate_rows([rows[i] for i in range(4)])
    assert batch["input_ids"].shape == (4, 64)
    with torch.no_grad():
        packed = model(batch["input_ids"], position_ids=batch["position_ids"]).last_hidden_state
        for row in range(4):
            for document in range(int(batch["documents"][row].max()) + 1):
                here = batch["documents"][row] == document
                alone = model(batch["input_ids"][row, here][None]).last_hidden_state[0]
                torch.testing.assert_close(packed[row, here], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe", "unigram"])
def test_special_tokens_are_those_of_the_tokenizer(algorithm):
    texts = ["a good film", "a bad film", "what a waste of time"] * 4
    tokenizer = train_tokenizer(texts, algorithm=algorithm, vocab_size=300, show_progress=False)
    special = SpecialTokens.of(tokenizer)
    assert special == SpecialTokens((tokenizer.cls_token_id,), (tokenizer.sep_token_id,), tokenizer.pad_token_id)
    decoder = train_tokenizer(texts, algorithm=algorithm, vocab_size=300, for_decoder=True, show_progress=False)
    assert SpecialTokens.of(decoder) == special  # the end is marked, although a prompt is left open
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        SpecialTokens.of(tokenizer)


def test_what_cannot_be_packed_raises():
    with pytest.raises(ValueError, match="no documents of two or more tokens"):
        pack(*cut_documents(np.array([0, 1, 2]), 10), 10, 2, seed=0)
    with pytest.raises(ValueError, match="longest piece has 10 tokens"):
        pack(np.array([0]), np.array([10]), 10, 2, seed=0)

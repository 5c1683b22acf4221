import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from chinchilla_hf.data.token_batches import PairCollator, TokenBatches, TokenPairs, fill_batches

MAX_TOKENS = 200


@pytest.fixture
def pairs() -> TokenPairs:
    rng = np.random.default_rng(0)
    sources = [rng.integers(5, 100, rng.integers(1, 40)) for _ in range(500)]
    targets = [rng.integers(5, 100, max(1, len(source) + rng.integers(-5, 6))) for source in sources]
    return TokenPairs(sources, targets)


def positions(batch: list) -> int:
    return len(batch) * sum(max(len(pair[side]) for pair in batch) for side in (0, 1))


def test_batches_hold_every_pair_once_and_are_full(pairs):
    for rng in (None, np.random.default_rng(1)):
        batches = fill_batches(pairs.lengths, MAX_TOKENS, rng)
        assert sorted(np.concatenate(batches)) == list(range(500))
        filled = [positions([pairs[number] for number in batch]) for batch in batches]
        assert max(filled) <= MAX_TOKENS
        assert pairs.lengths.sum() / sum(filled) > 0.9  # little is padding
        assert sum(filled) / len(filled) > 0.75 * MAX_TOKENS


def test_an_item_depends_on_seed_and_number_alone(pairs):
    batches = TokenBatches(pairs, MAX_TOKENS, seed=3, num_items=400)
    in_order = [[pair[0].tolist() for pair in batches[number]] for number in range(400)]
    anew = TokenBatches(pairs, MAX_TOKENS, seed=3, num_items=400)
    for number in (399, 0, 250, 100):  # also backwards
        assert [pair[0].tolist() for pair in anew[number]] == in_order[number]
    other = TokenBatches(pairs, MAX_TOKENS, seed=4)
    assert [pair[0].tolist() for pair in other[0]] != in_order[0]
    with pytest.raises(IndexError):
        batches[400]


def test_epochs_follow_each_other_whole_and_differ(pairs):
    batches = TokenBatches(pairs, MAX_TOKENS)
    batches.num_items = 1000
    epochs, number = [], 0
    for _ in range(3):
        sources = []
        while len(sources) < 500:
            sources += [tuple(pair[0].tolist()) for pair in batches[number]]
            number += 1
        assert len(sources) == 500
        epochs.append(sources)
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1]


def test_collated_batches_are_padded_on_the_right(pairs):
    loader = DataLoader(TokenBatches(pairs, MAX_TOKENS), batch_size=1, collate_fn=PairCollator(pad_token_id=0))
    for batch in loader:
        assert torch.equal(batch["attention_mask"], (batch["input_ids"] != 0).long())
        assert batch["input_ids"].numel() + batch["labels"].numel() <= MAX_TOKENS
        assert ((batch["labels"] == -100).int().diff(dim=1) >= 0).all()
    one = PairCollator(0)([pairs[7]])
    assert one["input_ids"][0].tolist() == pairs[7][0].tolist() and one["labels"][0].tolist() == pairs[7][1].tolist()


def test_what_cannot_be_batched(pairs):
    with pytest.raises(ValueError, match="max_tokens is 10, but the longest pair has"):
        TokenBatches(pairs, 10)
    with pytest.raises(ValueError, match="1 sources and 2 targets"):
        TokenPairs([[1]], [[1], [2]])

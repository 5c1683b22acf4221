"""Objectives: what is masked, how often, and that seed and progress decide it."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_config

from chinchilla_hf import ChinchillaForMaskedLM, ChinchillaModel, train_tokenizer
from chinchilla_hf.data.objectives import (
    IGNORED,
    MaskedOrCausal,
    MaskedTokens,
    MaskingSchedule,
    next_tokens,
    tokens_to_continue,
)
from chinchilla_hf.data.packing import Row, collate_rows


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["some words to train on, more words"] * 4, vocab_size=60, show_progress=False)


def make_row(length: int = 64, lengths: tuple[int, ...] = (40, 20)) -> Row:
    ids, positions, documents = np.zeros(length, dtype=int), [], np.full(length, -1)
    is_text = np.zeros(length, dtype=bool)
    begin = 0
    for document, size in enumerate(lengths):
        end = begin + size
        ids[begin:end] = [2, *np.random.default_rng(document).integers(5, 50, size - 2), 3]
        documents[begin:end] = document
        is_text[begin + 1 : end - 1] = True
        positions += range(size)
        begin = end
    return Row(ids, np.array([*positions, *range(length - begin)]), documents, is_text)


def test_masks_cover_the_share_of_the_text_that_the_schedule_says(tokenizer):
    row = make_row()
    for schedule, progress, count in [
        (MaskingSchedule(0.3, 0.15), 0.0, round(0.3 * 56)),
        (MaskingSchedule(0.3, 0.15), 1.0, round(0.15 * 56)),
        (MaskingSchedule(0.5, 0.5), 0.4, 28),
    ]:
        made = MaskedTokens(tokenizer, schedule)(row, np.random.default_rng(0), progress)
        chosen = made["labels"] != IGNORED
        assert chosen.sum() == count
        assert not chosen[~row.is_text].any()
        assert np.array_equal(made["labels"][chosen], row.input_ids[chosen])
        assert np.array_equal(made["input_ids"][~chosen], row.input_ids[~chosen])


def test_most_become_the_mask_some_another_token_and_some_stay(tokenizer):
    row = make_row(4098, (4098,))
    made = MaskedTokens(tokenizer, MaskingSchedule(0.5, 0.5))(row, np.random.default_rng(0), 0.0)
    chosen = made["labels"] != IGNORED
    new, old = made["input_ids"][chosen], row.input_ids[chosen]
    assert (new == tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.03)
    assert (new == old).mean() == pytest.approx(0.1, abs=0.03)
    replaced = new[(new != tokenizer.mask_token_id) & (new != old)]
    assert len(replaced) and not np.isin(replaced, tokenizer.all_special_ids).any()


def test_all_can_become_the_mask(tokenizer):
    made = MaskedTokens(tokenizer, mask_share=1.0, random_share=0.0)(make_row(), np.random.default_rng(0), 0.0)
    assert (made["input_ids"][made["labels"] != IGNORED] == tokenizer.mask_token_id).all()


def test_the_generator_decides_and_the_row_stays(tokenizer):
    row, masked = make_row(), MaskedTokens(tokenizer)
    before = row.input_ids.copy()
    first, again, other = (masked(row, np.random.default_rng(seed), 0.5)["labels"] for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(row.input_ids, before)


def test_the_next_token_is_the_label_within_a_document():
    row = make_row()
    made = next_tokens(row, np.random.default_rng(0), 0.0)
    for i in range(64):
        inside = i + 1 < 60 and row.documents[i] == row.documents[i + 1]
        assert made["labels"][i] == (row.input_ids[i + 1] if inside else IGNORED)


def test_a_decoder_gets_all_tokens_as_labels_but_the_first_ones():
    row = make_row()
    made = tokens_to_continue(row, np.random.default_rng(0), 0.0)
    shifted = next_tokens(row, np.random.default_rng(0), 0.0)
    assert np.array_equal(made["labels"][1:], shifted["labels"][:-1]) and made["labels"][0] == IGNORED
    assert np.array_equal(made["position_ids"], row.position_ids) and set(made) == set(shifted)


def test_rows_are_masked_or_causal_by_their_share(tokenizer):
    objective = MaskedOrCausal(MaskedTokens(tokenizer), 0.25)
    rng = np.random.default_rng(0)
    made = [objective(make_row(), rng, 0.0) for _ in range(400)]
    causal = np.array([bool(row["causal_rows"]) for row in made])
    assert causal.mean() == pytest.approx(0.25, abs=0.06)
    labelled = np.array([(row["labels"] != IGNORED).sum() for row in made])
    assert (labelled[causal] == 58).all() and (labelled[~causal] == round(0.3 * 56)).all()


def test_a_causal_row_sees_nothing_of_what_it_predicts(tokenizer):
    torch.manual_seed(0)
    model = ChinchillaModel(make_tiny_config()).eval()
    rows = [
        MaskedOrCausal(MaskedTokens(tokenizer), share)(make_row(), np.random.default_rng(0), 0.0) for share in (0, 1)
    ]
    batch = collate_rows(rows)
    assert batch["causal_rows"].tolist() == [False, True]
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "causal_rows")}
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][:, 30] = 7
    with torch.no_grad():
        difference = (model(**inputs).last_hidden_state - model(**changed).last_hidden_state).abs().amax(-1)
    assert (difference[1, :30] == 0).all() and (difference[1, 30:40] > 0).all()
    assert (difference[0, :40] > 0).all()
    assert (difference[:, 40:] == 0).all()  # the second document
    model = ChinchillaForMaskedLM(make_tiny_config())
    assert torch.isfinite(model(**batch).loss)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: MaskingSchedule(0.0, 0.1), "start"),
        (lambda t: MaskingSchedule(0.3, 1.0), "end"),
        (lambda t: MaskedTokens(t, mask_share=0.9, random_share=0.2), "random_share 0.2"),
        (lambda t: MaskedOrCausal(MaskedTokens(t), 1.5), "causal_share is 1.5"),
    ],
)
def test_shares_that_are_none_raise(tokenizer, make, message):
    with pytest.raises(ValueError, match=message):
        make(tokenizer)


def test_a_tokenizer_without_mask_raises(tokenizer):
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.mask_token = None
    with pytest.raises(ValueError, match="no mask token"):
        MaskedTokens(bare)

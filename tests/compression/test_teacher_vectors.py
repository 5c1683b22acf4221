"""A teacher's vectors: right, asked for once, and gone on with after an interruption."""

import os

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from chinchilla_hf import train_tokenizer
from chinchilla_hf.compression import teacher_vectors as module
from chinchilla_hf.compression.encoder_distillation import text_vectors
from chinchilla_hf.compression.teacher_vectors import teacher_vectors

TEXTS = [f"where is card number {i} {'of my account ' * (i % 4)}" for i in range(11)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, vocab_size=120, model_max_length=32, show_progress=False)


@pytest.fixture(scope="module")
def teacher(tokenizer) -> BertModel:
    shape = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **shape)).eval()


@pytest.fixture
def ask(teacher, tokenizer, tmp_path):
    def ask(texts=TEXTS, **options):
        settings = {"max_length": 16, "batch_size": 3, "cache_dir": tmp_path, "show_progress": False}
        return teacher_vectors(teacher, tokenizer, texts, **settings | options)

    return ask


def test_they_are_those_of_each_text_up_to_half_precision(ask, teacher, tokenizer):
    found = ask()
    assert found.dtype == np.float16 and found.shape == (11, 24) and not found.flags.writeable
    expected = text_vectors(teacher, tokenizer, TEXTS, 16)
    torch.testing.assert_close(torch.tensor(found[:]).float(), expected, atol=1e-3, rtol=1e-3)


def test_the_teacher_is_asked_once_for_the_same_texts(ask, monkeypatch):
    found = np.array(ask())
    monkeypatch.setattr(module, "mean_states", None)
    assert (ask() == found).all() and (ask(batch_size=5) == found).all()
    for changed in ({"texts": TEXTS[:-1]}, {"max_length": 8}, {"bf16": True}):
        with pytest.raises(TypeError):
            ask(**changed)


def test_an_interrupted_call_goes_on_where_it_was(ask, monkeypatch, tmp_path):
    expected = np.array(ask(cache_dir=tmp_path / "whole"))
    monkeypatch.setattr(module, "BATCHES_BETWEEN", 1)
    whole, calls = module.mean_states, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(module, "mean_states", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask()
    assert (ask() == expected).all()
    assert len(calls) == 3 + 2  # of the four batches, two were done


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room is not reserved on this system")
def test_a_full_disk_is_said_in_a_line(ask, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"of 11 texts need 0.0 GB in .*No space left on device. Make room"):
        ask()


def test_no_texts(ask):
    with pytest.raises(ValueError, match="there are no texts to ask the teacher for"):
        ask([])

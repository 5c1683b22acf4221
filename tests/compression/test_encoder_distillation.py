"""The losses of vectors, and what the trainer asks of its arguments."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_config
from transformers import TrainingArguments

from chinchilla_hf import ChinchillaModel, train_tokenizer
from chinchilla_hf.compression.encoder_distillation import (
    TEACHER_ROW,
    TEACHER_VECTORS,
    EncoderDistillationArguments,
    EncoderDistillationTrainer,
    VectorCollator,
    vector_loss,
)

TEXTS = ["one two", "three four five", "six"]
OF_VECTORS = {"vector_weight": 1.0, "hidden_weight": 0.0, "attention_weight": 0.0}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, vocab_size=60, show_progress=False)


def test_the_loss_is_of_directions_and_of_pairs():
    own, mapped, theirs = torch.randn(4, 3), torch.randn(4, 5), torch.randn(4, 5)
    cosine = torch.nn.functional.cosine_similarity
    of_vectors = 1 - cosine(mapped, theirs).mean()
    pairs = [(i, j) for i in range(4) for j in range(4)]
    of_pairs = sum((cosine(own[i], own[j], dim=0) - cosine(theirs[i], theirs[j], dim=0)) ** 2 for i, j in pairs) / 16
    torch.testing.assert_close(vector_loss(own, mapped, theirs, 2.0, 0.0), 2 * of_vectors)
    torch.testing.assert_close(vector_loss(own, mapped, theirs, 2.0, 3.0), 2 * of_vectors + 3 * of_pairs)
    assert vector_loss(theirs, 7 * theirs, theirs, 1.0, 1.0).abs() < 1e-6


def test_a_batch_has_the_vectors_of_its_texts(tokenizer):
    vectors = np.arange(12, dtype=np.float16).reshape(4, 3)
    rows = [{**tokenizer(text), TEACHER_ROW: place} for text, place in zip(TEXTS, (3, 0, 3), strict=True)]
    batch = VectorCollator(tokenizer, vectors)(rows)
    assert batch[TEACHER_VECTORS].dtype == torch.float32 and batch[TEACHER_VECTORS][:, 0].tolist() == [9, 0, 9]
    assert TEACHER_ROW not in batch and batch["input_ids"].shape == batch["attention_mask"].shape


@pytest.mark.parametrize("width", [32, 8])
def test_a_trainer_of_vectors(tokenizer, tmp_path, width):
    """The loss at the student's own vectors is none, and a map is there only as long as it is needed."""
    model = ChinchillaModel(make_tiny_config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)).eval()
    names = set(model.state_dict())
    distillation = EncoderDistillationArguments(**OF_VECTORS, relation_weight=0.0)
    options = {"use_cpu": True, "report_to": "none"}
    arguments = TrainingArguments(str(tmp_path), label_names=distillation.label_names, **options)
    vectors = np.ones((3, width), dtype=np.float16)
    given = {"processing_class": tokenizer, "distillation": distillation}
    trainer = EncoderDistillationTrainer(model, arguments, vectors=vectors, **given)
    assert hasattr(model, "vector_projection") is (width == 8)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    kept = inputs["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        own = (model(**inputs).last_hidden_state * kept).sum(dim=1) / kept.sum(dim=1)
        mapped = model.vector_projection(own) if width == 8 else own
        assert trainer.compute_loss(model, {**inputs, TEACHER_VECTORS: mapped}).abs() < 1e-5
        assert trainer.compute_loss(model, {**inputs, TEACHER_VECTORS: -mapped}) == pytest.approx(2, abs=1e-5)
    trainer.release()
    assert set(model.state_dict()) == names

    with pytest.raises(ValueError, match=r"label_names is \['labels'\], expected \['teacher_vectors'\]"):
        EncoderDistillationTrainer(
            model, TrainingArguments(str(tmp_path), label_names=["labels"], **options), vectors=vectors, **given
        )
    with pytest.raises(ValueError, match="give either token_teacher, which reads along, or vectors"):
        EncoderDistillationTrainer(model, arguments, **given)

"""What a student learns of its teacher: the losses, the texts that are made, and outputs that are computed once."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_config
from datasets import Dataset
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from chinchilla_hf import ChinchillaForSequenceClassification, train_tokenizer
from chinchilla_hf.compression.distillation import (
    DistillationArguments,
    DistillationTrainer,
    augment,
    label_columns,
    loss_from_labels,
    loss_from_teacher,
    student_from_teacher,
    teacher_outputs,
    with_teacher,
)
from chinchilla_hf.compression.token_states import COLUMNS, tokens_for_both

SINGLE, SEVERAL = "single_label_classification", "multi_label_classification"
TEXTS = ["where is my card", "send money to my mother", "hello", "what is the balance of my savings account today"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, vocab_size=120, model_max_length=32, show_progress=False)


def make_teacher(tokenizer, **overrides) -> BertForSequenceClassification:
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    names = {0: "card", 1: "money", 2: "hello"}
    options = {"id2label": names, "label2id": {name: i for i, name in names.items()}, "initializer_range": 0.2}
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **shape, **options | overrides)
    return BertForSequenceClassification(config).eval()


def test_of_classes_it_is_the_divergence_of_softened_scores():
    own, theirs = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    p, q = ((scores / 4).softmax(-1) for scores in (theirs, own))
    expected = 16 * (p * (p / q).log()).sum(dim=-1).mean()
    torch.testing.assert_close(loss_from_teacher(own, theirs, SINGLE, temperature=4), expected)
    assert loss_from_teacher(theirs, theirs, SINGLE, 2).abs() < 1e-6
    # with a high temperature, the gradient is that of the squared difference of centred scores (Hinton et al. 2015)
    (gradient,) = torch.autograd.grad(loss_from_teacher(own, theirs, SINGLE, temperature=1e3), own)
    centred = [scores - scores.mean(dim=-1, keepdim=True) for scores in (own, theirs)]
    torch.testing.assert_close(gradient, (centred[0] - centred[1]) / 3 / 5, atol=1e-3, rtol=1e-2)


def test_of_several_labels_it_is_that_of_each():
    own, theirs = torch.randn(5, 3), torch.randn(5, 3)
    p, q = (theirs / 2).sigmoid(), (own / 2).sigmoid()
    each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(loss_from_teacher(own, theirs, SEVERAL, temperature=2), 4 * each.mean())


def test_of_numbers_it_is_the_squared_difference():
    own, theirs = torch.randn(5, 1), torch.randn(5, 1)
    assert loss_from_teacher(own, theirs, "regression", 3.0) == ((own - theirs) ** 2).mean()


@pytest.mark.parametrize("weights", [{"hidden_weight": 2.0}, {"attention_weight": 2.0}])
def test_the_trainer_adds_what_the_teacher_says_of_tokens(tokenizer, tmp_path, weights):
    teacher = make_teacher(tokenizer)
    student = ChinchillaForSequenceClassification(
        make_tiny_config(vocab_size=len(tokenizer), num_labels=3, problem_type=SINGLE)
    ).eval()
    options = DistillationArguments(**weights)
    token_teacher = options.token_teacher(teacher, student)
    rows = with_teacher(
        Dataset.from_dict(
            {**tokenizer(TEXTS), "labels": [0, 1, 2, 0], **tokens_for_both(TEXTS, None, tokenizer, tokenizer, 32)}
        ),
        teacher_outputs(teacher, tokenizer, TEXTS, None, [0, 1, 2], cache_dir=tmp_path, show_progress=False),
    )
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    taught = {"processing_class": tokenizer, "train_dataset": rows}

    def loss_of(trainer):
        batch = next(iter(trainer.get_train_dataloader()))
        torch.manual_seed(0)
        return batch, trainer.compute_loss(student, dict(batch))

    trainer = DistillationTrainer(
        student,
        arguments,
        distillation=options,
        token_teacher=token_teacher,
        teacher_tokenizer=tokenizer,
        **taught,
    )
    batch, loss = loss_of(trainer)
    with torch.no_grad():
        own = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        of_tokens = token_teacher(student(**own, output_hidden_states=True), token_teacher.ask(batch), batch)
    trainer.release()
    assert not hasattr(student, "token_projections") and of_tokens > 0
    without = DistillationTrainer(student, arguments, distillation=DistillationArguments(), **taught)
    bare = {name: values for name, values in batch.items() if name not in COLUMNS}
    torch.testing.assert_close(loss, without.compute_loss(student, bare) + of_tokens)


@pytest.mark.parametrize("problem_type", [SINGLE, SEVERAL, "regression"])
def test_of_labels_it_is_that_of_the_model(problem_type):
    num_labels = 1 if problem_type == "regression" else 3
    model = ChinchillaForSequenceClassification(make_tiny_config(num_labels=num_labels, problem_type=problem_type))
    labels = {SINGLE: torch.tensor([0, 2]), SEVERAL: torch.tensor([[1.0, 0, 1], [0, 0, 1]])}
    labels = labels.get(problem_type, torch.tensor([0.5, -3.0]))
    outputs = model(torch.randint(5, 100, (2, 8)), labels=labels)
    torch.testing.assert_close(loss_from_labels(outputs.logits, labels, problem_type), outputs.loss)


def test_outputs_are_those_of_each_text_and_are_kept(tokenizer, tmp_path, monkeypatch):
    teacher = make_teacher(tokenizer)
    options = {"max_length": 32, "batch_size": 3, "cache_dir": tmp_path, "show_progress": False}
    outputs = teacher_outputs(teacher, tokenizer, TEXTS, None, [2, 0, 1], **options)
    for i, text in enumerate(TEXTS):
        with torch.no_grad():
            alone = teacher(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        torch.testing.assert_close(torch.from_numpy(outputs.logits[i]), alone.logits[0, [2, 0, 1]])
        vector = nn.functional.normalize(alone.hidden_states[-1][0].mean(dim=0), dim=-1)
        torch.testing.assert_close(torch.from_numpy(outputs.vectors[i]), vector)

    calls = []
    monkeypatch.setattr(teacher, "forward", lambda **inputs: calls.append(inputs) or 1 / 0)
    tokenizer(TEXTS, truncation=True, max_length=5, padding=True)  # what it was used for meanwhile is no matter
    again = teacher_outputs(teacher, tokenizer, TEXTS, None, [2, 0, 1], **options)
    assert np.array_equal(again.logits, outputs.logits) and np.array_equal(again.vectors, outputs.vectors)
    for texts, pairs, columns in (
        (TEXTS[:2], None, [2, 0, 1]),
        (TEXTS, None, [0, 1, 2]),
        (TEXTS, TEXTS, [2, 0, 1]),
    ):
        with pytest.raises(ZeroDivisionError):
            teacher_outputs(teacher, tokenizer, texts, pairs, columns, **options)
    with torch.no_grad():
        teacher.classifier.bias[0] += 1
    with pytest.raises(ZeroDivisionError):
        teacher_outputs(teacher, tokenizer, TEXTS, None, [2, 0, 1], **options)
    assert len(calls) == 4


def test_rows_get_what_the_teacher_says(tokenizer, tmp_path):
    outputs = teacher_outputs(
        make_teacher(tokenizer), tokenizer, TEXTS, None, [0, 1, 2], cache_dir=tmp_path, show_progress=False
    )
    rows = with_teacher(Dataset.from_dict({"input_ids": [[1], [2], [3], [4]]}), outputs)
    assert rows.column_names == ["input_ids", "teacher_logits", "teacher_vectors"]
    assert rows[2]["input_ids"] == [3] and rows[2]["teacher_logits"] == outputs.logits[2].tolist()
    assert len(rows[0]["teacher_vectors"]) == 24


def test_labels_are_found_by_their_names(tokenizer):
    teacher = make_teacher(tokenizer)
    assert label_columns(teacher, ["money", "hello", "card"], SINGLE) == [1, 2, 0]
    for names, shown in ((["money", "card"], "'hello'"), (["money", "card", "bye"], "'bye'")):
        with pytest.raises(ValueError, match=f"only one of them has {shown}: choose one"):
            label_columns(teacher, names, SINGLE)
    with pytest.raises(ValueError, match="the classifier gives 3 numbers, but the data have 1"):
        label_columns(teacher, ["score"], "regression")


def test_texts_that_are_made():
    made = list(augment(TEXTS, copies=20, seed=1))
    assert made == list(augment(TEXTS, copies=20, seed=1)) != list(augment(TEXTS, copies=20, seed=2))
    assert len(set(made)) == len(made) > 40 and not set(made) & set(TEXTS)
    known = {word for text in TEXTS for word in text.split()}
    assert all(text and set(text.split()) <= known for text in made)
    assert list(augment(["漢字"], copies=5)) == []


def test_a_student_is_a_part_of_its_teacher(tokenizer):
    config = make_tiny_config(vocab_size=len(tokenizer), num_labels=3, num_hidden_layers=3)
    teacher = ChinchillaForSequenceClassification(config).eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student, trimmed = student_from_teacher(teacher, tokenizer, TEXTS[:2], [2, 0], intermediate_share=0.4)
    assert student.config.num_hidden_layers == 2 and student.config.intermediate_size_by_layer == [32, 32]
    weight = teacher.model.layers[2].self_attn.q_proj.weight
    assert torch.equal(student.model.layers[0].self_attn.q_proj.weight, weight)
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)
    assert len(trimmed) < len(tokenizer) and trimmed.tokenize(TEXTS[0]) == tokenizer.tokenize(TEXTS[0])
    assert teacher.config.num_hidden_layers == 3
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    # the neurons that stay are those with the largest weights
    mlp = teacher.model.layers[2].mlp
    size = mlp.up_proj.weight.square().sum(dim=1) + mlp.down_proj.weight.square().sum(dim=0)
    kept = size.topk(32).indices.sort().values
    assert torch.equal(student.model.layers[0].mlp.up_proj.weight, mlp.up_proj.weight[kept])
    with pytest.raises(ValueError, match="intermediate_share is 0, expected a share above 0"):
        student_from_teacher(teacher, tokenizer, TEXTS, [0], intermediate_share=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature is 0, expected above 0"),
        ({"label_weight": 1.5}, "label_weight is 1.5, expected a share from 0 to 1"),
        ({"relation_weight": -1}, "relation_weight is -1, expected 0 or more"),
        ({"augmented_copies": -1}, "augmented_copies is -1, expected 0 or more"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        DistillationArguments(**options)

"""The loss that makes its gradients in the forward pass, against torch's own."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from chinchilla_hf import ChinchillaConfig, ChinchillaForMaskedLM, ChinchillaForPreTraining, modeling_chinchilla_loss
from chinchilla_hf.modeling_chinchilla_loss import summed_cross_entropy

TOKENS, HIDDEN, VOCABULARY = 70, 16, 50


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    """Of 16 tokens, the last one smaller."""
    monkeypatch.setattr(modeling_chinchilla_loss, "CHUNK_OF_CPU", 16 * VOCABULARY)


def inputs(dtype: torch.dtype = torch.float) -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    hidden_states = torch.randn(TOKENS, HIDDEN, dtype=dtype, requires_grad=True)
    return hidden_states, nn.Linear(HIDDEN, VOCABULARY, dtype=dtype), torch.randint(VOCABULARY, (TOKENS,))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_finite_differences(bias, label_smoothing):
    hidden_states, head, labels = inputs(torch.float64)

    def loss(hidden_states, weight, bias):
        total = modeling_chinchilla_loss._SummedCrossEntropy.apply(hidden_states, weight, bias, labels, label_smoothing)
        return total / 7

    assert torch.autograd.gradcheck(loss, (hidden_states, head.weight, head.bias if bias else None))


@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [(torch.float, False, 1e-6), (torch.float, True, 1e-2), (torch.bfloat16, False, 1e-2)],
)
def test_loss_and_gradients_are_those_of_cross_entropy(dtype, autocast, tolerance):
    results = []
    for ours in (True, False):
        hidden_states, head, labels = inputs(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if ours:
                loss = summed_cross_entropy(hidden_states, head, labels)
            else:
                loss = nn.functional.cross_entropy(head(hidden_states).float(), labels, reduction="sum")
        (loss / TOKENS).backward()
        gradients = [tensor.grad for tensor in (hidden_states, head.weight, head.bias)]
        assert [gradient.dtype for gradient in gradients] == [dtype] * 3 and loss.dtype == torch.float
        results.append([loss.detach() / TOKENS, *gradients])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("model_class", [ChinchillaForMaskedLM, ChinchillaForPreTraining])
def test_the_model_trains_as_with_all_logits_and_never_makes_them(model_class):
    torch.manual_seed(0)
    shape = {"hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_dropout": 0.0}
    model = model_class(ChinchillaConfig(vocab_size=500, max_position_embeddings=64, **shape))
    input_ids = torch.randint(500, (16, 64))
    labels = torch.where(torch.rand(input_ids.shape) < 0.8, input_ids, -100)
    inputs = {"input_ids": input_ids, "labels": labels, "num_items_in_batch": 500}
    if model_class is ChinchillaForPreTraining:
        inputs["next_sentence_label"] = torch.randint(2, (16,))
    results = []
    for training in (True, False):
        model.train(training).zero_grad()
        with LargestTensor() as largest:
            output = model(**inputs)
            output.loss.backward()
        results.append((output.loss, [p.grad for p in model.parameters() if p.grad is not None]))
        logits = output.get("prediction_logits" if model_class is ChinchillaForPreTraining else "logits")
        if training:
            assert logits is None and largest.elements < labels.ne(-100).sum() * 500
        else:
            assert logits.shape == (labels.ne(-100).sum(), 500)
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_a_frozen_head_and_no_label_at_all():
    model = ChinchillaForMaskedLM(
        ChinchillaConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=1, num_attention_heads=2)
    ).train()
    model.lm_head.requires_grad_(False)
    input_ids = torch.randint(VOCABULARY, (2, 8))
    model(input_ids=input_ids, labels=input_ids).loss.backward()
    assert model.lm_head.weight.grad is None and model.transform.dense.weight.grad.abs().sum() > 0
    loss = model(input_ids=input_ids, labels=torch.full_like(input_ids, -100)).loss
    loss.backward()
    assert loss == 0

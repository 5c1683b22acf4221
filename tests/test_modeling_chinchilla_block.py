import pytest
import torch
from conftest import make_tiny_config
from torch import nn

from chinchilla_hf import ChinchillaModel
from chinchilla_hf.modeling_chinchilla_block import ChinchillaDropout, apply_dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.75])
def test_dropout_drops_the_share_it_is_given_and_scales_the_rest(p, dtype):
    torch.manual_seed(0)
    inputs = torch.randn(301, 401, dtype=dtype).abs() + 1  # no zeros of its own; a count that 4 does not divide
    dropped = apply_dropout(inputs, p, training=True)
    kept = dropped != 0
    # 120,701 draws: four standard deviations are 0.006 at most
    assert dropped.dtype == dtype and abs(kept.double().mean().item() - (1 - p)) < 0.006
    torch.testing.assert_close(dropped[kept], inputs[kept] * torch.tensor(1 / (1 - p), dtype=dtype))
    # of neighbours, of rows and of columns, each is dropped for itself
    for first, second in [(kept[:, 1:], kept[:, :-1]), (kept[1:], kept[:-1]), (kept[:, 4:], kept[:, :-4])]:
        assert abs((first & second).double().mean().item() - (1 - p) ** 2) < 0.008


def test_gradient_of_dropout_is_zero_where_it_dropped():
    torch.manual_seed(0)
    inputs = torch.randn(7, 9, 5, requires_grad=True)
    dropped = apply_dropout(inputs.transpose(0, 1), 0.4, training=True)
    dropped.sum().backward()
    torch.testing.assert_close(inputs.grad, (dropped.detach() != 0).transpose(0, 1) / 0.6)


def test_dropout_repeats_with_the_seed_and_not_without():
    inputs = torch.ones(64, 64)
    torch.manual_seed(5)
    first, second = apply_dropout(inputs, 0.5, training=True), apply_dropout(inputs, 0.5, training=True)
    torch.manual_seed(5)
    assert torch.equal(first, apply_dropout(inputs, 0.5, training=True)) and not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.0, 1e-9, 1 - 1e-9, 1.0])
def test_dropout_of_nearly_nothing_and_of_nearly_everything(p):
    dropped = apply_dropout(torch.ones(50, 50), p, training=True)
    assert dropped.isfinite().all() and (dropped != 0).double().mean().round() == round(1 - p)


def test_dropout_does_nothing_in_evaluation_and_to_an_empty_tensor():
    inputs = torch.randn(3, 4)
    assert torch.equal(ChinchillaDropout(0.5).eval()(inputs), inputs)
    assert ChinchillaDropout(0.5)(inputs[:0]).shape == (0, 4)


def test_whoever_looks_for_dropout_modules_finds_and_sets_them():
    model = ChinchillaModel(make_tiny_config(hidden_dropout=0.5)).train()
    inputs = {"input_ids": torch.arange(5, 25).view(2, 10)}
    assert not torch.equal(model(**inputs).last_hidden_state, model(**inputs).last_hidden_state)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert torch.equal(model(**inputs).last_hidden_state, model(**inputs).last_hidden_state)


@pytest.mark.parametrize("dropouts", [{"hidden_dropout": 0.5}, {"hidden_dropout": 0.0, "attention_dropout": 0.5}])
def test_gradient_checkpointing_drops_the_same_again(dropouts):
    model = ChinchillaModel(make_tiny_config(**dropouts)).train()
    model.set_attn_implementation("eager")
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(3)
        model.zero_grad()
        model(torch.arange(5, 25).view(2, 10)).last_hidden_state.square().sum().backward()
        gradients.append(model.layers[0].mlp.up_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`")
def test_compiled_training_drops_too(fresh_compiler):
    dropped = torch.compile(ChinchillaDropout(0.5), fullgraph=True)(torch.ones(100, 100))
    assert abs((dropped == 0).double().mean().item() - 0.5) < 0.05

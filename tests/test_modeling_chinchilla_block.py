import copy
import itertools

import pytest
import torch
from conftest import make_tiny_config, make_tiny_decoder_config
from torch import nn
from transformers import DynamicCache

from chinchilla_hf import ChinchillaForCausalLM, ChinchillaModel, modeling_chinchilla_block
from chinchilla_hf.modeling_chinchilla_block import (
    ChinchillaAttention,
    ChinchillaDropout,
    ChinchillaRotaryEmbedding,
    additive_mask,
    apply_dropout,
    eager_attention_forward,
    few_queries_attention_forward,
)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_from_the_table_are_those_that_are_computed(dtype):
    rotary = ChinchillaRotaryEmbedding(make_tiny_config())
    forward, computed_at = rotary.forward, []
    rotary.forward = lambda x, positions: computed_at.append(positions) or forward(x, positions)
    x = torch.empty(1, 1, 1, dtype=dtype)
    expected = rotary(x, torch.arange(3, 10).unsqueeze(0))
    with torch.inference_mode():
        for _ in range(2):  # made, and read
            for table, computed in zip(rotary.in_order(x, 3, 7), expected, strict=True):
                assert table.dtype == dtype and torch.equal(table, computed)
    assert len(computed_at) == 2  # what is expected, and the table
    # with a gradient they are computed: what inference mode made cannot be saved for a backward pass
    scale = torch.ones((), requires_grad=True)
    (rotary.in_order(x, 3, 7)[0] * scale).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 1, 9), (40, 4, 1, 9), (40, 4, 1, 70), (40, 4, 5, 9)], ids=str)
def test_attention_of_few_queries_is_that_of_many(shape, masked, dtype):
    """Little to do, a query to few keys and to many, and several that see the same keys: ways of their own."""
    batch, heads, queries, keys = shape
    attention = ChinchillaAttention(make_tiny_config(), layer_idx=0).eval()
    query, key, value = (torch.randn(batch, heads, n, 8, dtype=dtype) for n in (queries, keys, keys))
    mask = (torch.rand(batch, 1, queries, keys) < 0.5) if masked else None
    if masked:
        mask[..., 0] = True
    expected = nn.functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), mask)
    masks = [mask, additive_mask(mask, dtype)] if masked else [mask]
    for function, mask in itertools.product((few_queries_attention_forward, eager_attention_forward), masks):
        output = function(attention, query, key, value, mask, attention.scaling)[0]
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(output.float(), expected.transpose(1, 2), atol=tolerance, rtol=tolerance)


def test_who_attends_by_few_queries(monkeypatch):
    """A token in evaluation mode, without a gradient and with SDPA; not a prompt, nor what is asked for by name."""
    model, ids, calls = ChinchillaForCausalLM(make_tiny_decoder_config()).eval(), torch.arange(5, 15).view(1, 10), []
    original = few_queries_attention_forward

    def counted(module, query, *args, **kwargs):
        calls.append(query.shape[2])
        return original(module, query, *args, **kwargs)

    monkeypatch.setattr(modeling_chinchilla_block, "few_queries_attention_forward", counted)

    def steps() -> list[int]:
        calls.clear()
        cache = DynamicCache(config=model.config)
        for part in ids.split([8, 1, 1], dim=1):
            model(part, past_key_values=cache)
        return calls

    with torch.no_grad():
        assert steps() == [1] * 2 * model.config.num_hidden_layers
        model.set_attn_implementation("eager")
        assert steps() == []
        model.set_attn_implementation("sdpa")
        assert model.train() is model and steps() == []
    assert model.eval() is model and steps() == []  # with a gradient


@pytest.mark.parametrize("rows", [2, 64])
def test_a_step_in_training_mode_drops_without_a_gradient_too(rows):
    """As where layers are checkpointed: the forward pass has no gradient, and has to be what is done again with one."""
    model = ChinchillaForCausalLM(make_tiny_decoder_config(attention_dropout=0.5)).train()
    ids = torch.randint(5, 100, (rows, 9))
    with torch.no_grad():
        cache = model(ids[:, :8], use_cache=True).past_key_values
        steps = [model(ids[:, 8:], past_key_values=copy.deepcopy(cache)).logits for _ in range(2)]
    assert not torch.equal(*steps)


class TestJoinedProjections:
    """A step behind a cache makes queries, keys and values in one product, which nobody is to notice."""

    ids = torch.arange(5, 25).view(2, 10)

    @pytest.fixture(params=[{}, {"num_key_value_heads": 2, "attention_bias": False}], ids=str)
    def model(self, request) -> ChinchillaForCausalLM:
        return ChinchillaForCausalLM(make_tiny_decoder_config(**request.param)).eval()

    def last_logits(self, model: ChinchillaForCausalLM, cache: DynamicCache | None = None) -> torch.Tensor:
        cache = DynamicCache(config=model.config) if cache is None else cache
        with torch.no_grad():
            for part in self.ids.split([8, 1, 1], dim=1):
                logits = model(part, past_key_values=cache).logits
        return logits

    def check(self, model: ChinchillaForCausalLM, cache: DynamicCache | None = None) -> None:
        with torch.no_grad():
            expected = model(self.ids).logits[:, -1:]
        torch.testing.assert_close(self.last_logits(model, cache), expected, atol=1e-5, rtol=1e-5)

    def test_they_are_used_and_right(self, model, monkeypatch):
        calls = []
        monkeypatch.setattr(
            nn.Linear, "forward", lambda self, x: calls.append(self) or nn.functional.linear(x, self.weight, self.bias)
        )
        self.last_logits(model)
        # prompt and two tokens: only the prompt's projections are called
        assert calls.count(model.model.layers[0].self_attn.q_proj) == 1
        assert calls.count(model.model.layers[0].self_attn.o_proj) == 3

    def test_weights_that_change_between_generations(self, model):
        cache = DynamicCache(config=model.config)
        self.check(model, cache)
        model.model.layers[0].self_attn.v_proj.weight.data.mul_(-2)  # which leaves no trace in the parameter's version
        cache.reset()
        self.check(model, cache)

    def test_hooks_and_other_classes_are_called(self, model):
        class Doubled(nn.Linear):
            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return 2 * super().forward(inputs)

        layers = model.model.layers
        seen = []
        layers[0].self_attn.q_proj.register_forward_hook(lambda *_: seen.append("hook"))
        layers[1].self_attn.v_proj.__class__ = Doubled
        self.check(model)
        assert len(seen) == 4  # without a cache; then the prompt and two tokens

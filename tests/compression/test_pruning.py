"""Parts that are taken out: what is left computes what the model computes without them, and comes back from a file."""

import pytest
import torch
from conftest import make_tiny_config, make_tiny_decoder_config, make_tiny_seq2seq_config
from transformers import AutoModelForSequenceClassification

from chinchilla_hf import (
    ChinchillaForCausalLM,
    ChinchillaForConditionalGeneration,
    ChinchillaForSequenceClassification,
)
from chinchilla_hf.compression.pruning import (
    BlockParts,
    BlockScores,
    choose_parts,
    first_order_scores,
    keep_layers,
    learned_scores,
    magnitude_scores,
    part_flops,
    prune,
)
from chinchilla_hf.scaling.flops import blocks_forward

HEADS, NEURONS = [[0, 2], [1]], [list(range(0, 48, 3)), list(range(40))]
PARTS = [BlockParts(heads, neurons) for heads, neurons in zip(HEADS, NEURONS, strict=True)]


def make_encoder(**overrides) -> ChinchillaForSequenceClassification:
    return ChinchillaForSequenceClassification(make_tiny_config(num_labels=3, **overrides)).eval()


def make_decoder(**overrides) -> ChinchillaForCausalLM:
    return ChinchillaForCausalLM(make_tiny_decoder_config(**overrides)).eval()


def silence(model, parts: list[BlockParts], groups: int = 1) -> None:
    """Let the parts that are to go write nothing."""
    for layer, of_block in zip(model.base_model.layers, parts, strict=True):
        heads = torch.ones(layer.self_attn.o_proj.in_features, dtype=torch.bool).view(-1, 8 * groups)
        heads[of_block.heads] = False
        layer.self_attn.o_proj.weight.data[:, heads.flatten()] = 0
        neurons = torch.ones(layer.mlp.down_proj.in_features, dtype=torch.bool)
        neurons[of_block.neurons] = False
        layer.mlp.down_proj.weight.data[:, neurons] = 0


@torch.no_grad()
@pytest.mark.parametrize("make", [make_encoder, make_decoder])
@pytest.mark.parametrize("norm_placement", ["output", "post", "pre"])
@pytest.mark.parametrize("bias", [True, False])
def test_what_is_left_computes_the_same(make, norm_placement, bias, tmp_path):
    model = make(norm_placement=norm_placement, attention_bias=bias, mlp_bias=bias)
    ids = torch.randint(5, 100, (2, 12))
    silence(model, PARTS)
    expected = model(ids).logits
    before = model.num_parameters()
    prune(model, PARTS)
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert model.config.attention_heads_by_layer == [2, 1] and model.config.intermediate_size_by_layer == [16, 40]
    assert model.num_parameters() < before

    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.config.attention_heads_by_layer == [2, 1]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@torch.no_grad()
def test_heads_that_share_keys_and_values_go_together():
    model = make_decoder(num_key_value_heads=2)
    parts = [BlockParts([1], list(range(48))), BlockParts([0, 1], list(range(48)))]
    ids = torch.randint(5, 100, (2, 12))
    silence(model, parts, groups=2)
    expected = model(ids).logits
    prune(model, parts)
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert model.config.attention_heads_by_layer == [2, 4]
    assert model.model.layers[0].self_attn.k_proj.out_features == 8
    cached = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(cached, model.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False))


@torch.no_grad()
def test_pruned_again(tmp_path):
    """Indices are those of what is there; a checkpoint of it loads under the Auto classes."""
    model = make_encoder()
    prune(model, PARTS)
    again = [BlockParts([1], [0, 5]), BlockParts([0], list(range(40)))]
    ids = torch.randint(5, 100, (2, 12))
    silence(model, again)
    expected = model(ids).logits
    prune(model, again)
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_pruned_model_trains():
    model = make_encoder(hidden_dropout=0.1).train()
    prune(model, PARTS)
    model(torch.randint(5, 100, (2, 12)), labels=torch.tensor([0, 2])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_blocks_that_stay():
    model = make_encoder(num_hidden_layers=3)
    parts = [BlockParts([0, 1], list(range(48))), BlockParts([3], [1, 2]), BlockParts([2], list(range(10)))]
    prune(model, parts)
    kept = [model.model.layers[2], model.model.layers[0]]
    keep_layers(model, [2, 0])
    assert list(model.model.layers) == kept and model.config.num_hidden_layers == 2
    assert model.config.attention_heads_by_layer == [1, 2] and model.config.intermediate_size_by_layer == [10, 48]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
    decoder = make_decoder(num_hidden_layers=3)
    keep_layers(decoder, [0, 2])
    ids = torch.randint(5, 100, (1, 6))
    cached = decoder.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(cached, decoder.generate(ids, max_new_tokens=4, do_sample=False, use_cache=False))


def batches(count: int = 3) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(5, 100, (4, 12), generator=generator),
            "labels": torch.randint(0, 3, (4,), generator=generator),
        }
        for _ in range(count)
    ]


def test_first_order_scores_are_the_change_of_the_loss():
    """Of a part that writes a little less, by finite differences; and a part that writes nothing has none."""
    model = make_encoder().train().double()
    scores = first_order_scores(model, batches(1))
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    (batch,) = batches(1)

    @torch.no_grad()
    def slope(weight: torch.Tensor, columns: slice) -> float:
        losses = []
        for factor in (1 + 3e-3, (1 - 3e-3) / (1 + 3e-3)):
            weight[:, columns] *= factor
            losses.append(model(**batch).loss.item())
        weight[:, columns] /= 1 - 3e-3
        return abs(losses[0] - losses[1]) / 6e-3

    for layer, of_block in zip(model.model.layers, scores, strict=True):
        for head in range(4):
            measured = slope(layer.self_attn.o_proj.weight, slice(8 * head, 8 * head + 8))
            assert of_block.heads[head].item() == pytest.approx(measured, rel=2e-3, abs=5e-5)
        for neuron in (0, 17, 47):
            measured = slope(layer.mlp.down_proj.weight, slice(neuron, neuron + 1))
            assert of_block.neurons[neuron].item() == pytest.approx(measured, rel=2e-3, abs=5e-5)
    silence(model, PARTS)
    for of_block, parts in zip(first_order_scores(model, batches()), PARTS, strict=True):
        for values, kept in ((of_block.heads, parts.heads), (of_block.neurons, parts.neurons)):
            gone = [i for i in range(len(values)) if i not in kept]
            assert (values[gone] == 0).all() and values[kept].max() > 0


def test_gates_stay_open_where_the_loss_needs_them():
    model = make_encoder()
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    silence(model, PARTS)
    ids = torch.randint(5, 100, (24, 12))
    with torch.no_grad():
        labels = model(ids).logits.argmax(dim=1)  # what the parts that are not silent say
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [{"input_ids": ids[i : i + 8], "labels": labels[i : i + 8]} for i in (0, 8, 16)]
    scores = learned_scores(model, batches, 12, epochs=10, learning_rate=0.1, price=0.3)
    head_flops, neuron_flops = part_flops(model.config, 12)
    for of_block, kept in zip(scores, PARTS, strict=True):
        for values, parts, flops in (
            (of_block.heads, kept.heads, head_flops),
            (of_block.neurons, kept.neurons, neuron_flops),
        ):
            gates = values / flops
            silent = torch.ones(len(gates), dtype=torch.bool)
            silent[parts] = False
            assert gates.min() >= 0 and gates.max() <= 1
            assert gates[silent].max() <= gates[~silent].mean() + 1e-6
            assert gates[silent].max() < 0.25  # nothing holds them
    assert max(float((of_block.heads / head_flops).max()) for of_block in scores) > 0.5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_flops_of_parts_are_those_of_blocks():
    model = make_encoder()
    heads, neurons = part_flops(model.config, 12)
    before = blocks_forward(model.config, 12)
    assert heads * 4 * 2 + neurons * 48 * 2 == before
    prune(model, PARTS)
    assert before - blocks_forward(model.config, 12) == heads * (2 + 3) + neurons * (32 + 8)


def test_magnitude_scores():
    model = make_encoder()
    mlp, attention = model.model.layers[1].mlp, model.model.layers[1].self_attn
    scores = magnitude_scores(model)[1]
    expected = mlp.up_proj.weight[7].square().sum() + mlp.down_proj.weight[:, 7].square().sum()
    torch.testing.assert_close(scores.neurons[7], expected.detach())
    weights = [p.weight[8:16] for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
    expected = sum(weight.square().sum() for weight in (*weights, attention.o_proj.weight[:, 8:16]))
    torch.testing.assert_close(scores.heads[1], expected.detach())


@pytest.mark.parametrize("share", [0.8, 0.5, 0.25])
@pytest.mark.parametrize("length", [16, 512])
def test_a_share_of_the_flops(share, length):
    config = make_tiny_config(intermediate_size=250, num_hidden_layers=3, num_labels=3)
    model = ChinchillaForSequenceClassification(config)
    whole = blocks_forward(config, length)
    prune(model, choose_parts(config, magnitude_scores(model), share, length))
    largest = max(16 * 4 * 32, 2 * 8 * (32 * 4 + 2 * length))  # of what goes at once
    assert share * whole - largest < blocks_forward(config, length) <= share * whole
    sizes = config.intermediate_size_by_layer
    assert all(size == 250 or size % 16 == 0 for size in sizes) and min(config.attention_heads_by_layer) >= 1


def test_the_least_goes_first_wherever_it_is():
    config = make_tiny_config(intermediate_size=32, max_position_embeddings=64)
    scores = [
        BlockScores(torch.tensor([4.0, 1e-3, 3.0, 2.0]), torch.full((32,), 5.0)),
        BlockScores(torch.full((4,), 9.0), torch.tensor([9.0] * 16 + [1e-3] * 16)),
    ]
    parts = choose_parts(config, scores, 0.84, 16)
    assert [of_block.heads for of_block in parts] == [[0, 2, 3], [0, 1, 2, 3]]
    assert [of_block.neurons for of_block in parts] == [list(range(32)), list(range(16))]
    assert choose_parts(config, scores, 1.0, 16) == [BlockParts(list(range(4)), list(range(32)))] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flop_share": 0}, "flop_share is 0, expected a share above 0 and up to 1"),
        ({"flop_share": 0.01}, r"flop_share is 0.01, but a head and 16 neurons in each of the 2 blocks are 0\.\d+"),
        ({"length": 0}, "length 0, expected at least 1"),
        ({"scores": []}, "there are scores of 0 blocks, but the model has 2"),
    ],
)
def test_targets_that_cannot_be_met(arguments, message):
    model = make_encoder()
    with pytest.raises(ValueError, match=message):
        choose_parts(model.config, **({"scores": magnitude_scores(model), "flop_share": 0.5, "length": 16} | arguments))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([BlockParts([0], [0])], "there are parts of 1 blocks, but the model has 2"),
        (
            [BlockParts([0], [0]), BlockParts([], [0])],
            "block 1 would have no head left: keep one",
        ),
        ([BlockParts([0], []), BlockParts([0], [0])], "block 0 would have no neuron left"),
        ([BlockParts([4], [0]), BlockParts([0], [0])], r"block 0 has heads 0 to 3, but \[4\] were to stay"),
        ([BlockParts([0], [1, 0]), BlockParts([0], [0])], r"block 0 has neurons 0 to 47, but \[1, 0\] were to stay"),
    ],
)
def test_parts_that_are_not_there(parts, message):
    model = make_encoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        prune(model, parts)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert model.config.attention_heads_by_layer is None


@pytest.mark.parametrize("kept", [[], [0, 0], [2], [-1]])
def test_blocks_that_are_not_there(kept):
    with pytest.raises(ValueError, match="are to stay, expected different ones from 0 to 1"):
        keep_layers(make_encoder(), kept)


def test_scores_need_a_loss_and_data():
    with pytest.raises(ValueError, match="no batches to score by"):
        first_order_scores(make_encoder(), [])
    with pytest.raises(ValueError, match="the model gives no loss for these batches"):
        first_order_scores(make_encoder(), [{"input_ids": torch.ones(1, 3, dtype=torch.long)}])
    with pytest.raises(ValueError, match=r"has no blocks of its own: prune model\.get_encoder"):
        magnitude_scores(ChinchillaForConditionalGeneration(make_tiny_seq2seq_config()))

import pytest
import torch
from conftest import make_tiny_config

from chinchilla_hf import ChinchillaForQuestionAnswering, ChinchillaModel
from chinchilla_hf.modeling_chinchilla_block import ChinchillaMLP


def shapes_in_layers(monkeypatch):
    """Rows and lengths of what the feed-forward networks are given, from now on."""
    shapes = []
    forward = ChinchillaMLP.forward

    def watched(self, hidden_states):
        shapes.append(hidden_states.shape[:2])
        return forward(self, hidden_states)

    monkeypatch.setattr(ChinchillaMLP, "forward", watched)
    return shapes


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", [("output", "rope"), ("pre", "learned"), ("post", "rope")])
def test_padding_is_left_out_of_the_layers_and_changes_nothing(variant, implementation, padding_side, monkeypatch):
    placement, positions = variant
    config = make_tiny_config(norm_placement=placement, position_embedding_type=positions, hidden_dropout=0.0)
    model = ChinchillaModel(config).train()
    model.set_attn_implementation(implementation)
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[0, 5:], mask[1, 9:] = 0, 0
    if padding_side == "left":
        mask = mask.flip(1)
    real, ids = mask.bool(), torch.randint(5, 90, (3, 12))
    shapes = shapes_in_layers(monkeypatch)
    states, gradients = [], []
    for _ in range(2):
        model.zero_grad()
        states.append(model(ids, attention_mask=mask).last_hidden_state)
        states[-1][real].square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        monkeypatch.setattr(ChinchillaModel, "real_tokens", lambda *_: None)
    layers = config.num_hidden_layers
    assert shapes == [(1, 26)] * layers + [(3, 12)] * layers
    torch.testing.assert_close(states[0][real], states[1][real], rtol=1e-5, atol=1e-6)
    assert states[0].shape == states[1].shape and (states[0][~real] == 0).all()
    for without, with_padding in zip(*gradients, strict=True):
        torch.testing.assert_close(without, with_padding, rtol=1e-4, atol=1e-5)


def test_who_watches_the_layers_sees_whole_rows(tiny_config):
    model = ChinchillaModel(tiny_config).eval()
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[0, 3:] = 0
    ids = torch.randint(5, 90, (2, 10))
    expected = model(ids, attention_mask=mask).last_hidden_state
    seen = []
    hook = model.layers[0].mlp.up_proj.register_forward_hook(lambda _, given, output: seen.append(output.shape))
    model(ids, attention_mask=mask)
    hook.remove()
    assert seen == [(2, 10, tiny_config.intermediate_size)]
    outputs = model(ids, attention_mask=mask, output_hidden_states=True)
    assert [states.shape for states in outputs.hidden_states] == [(2, 10, tiny_config.hidden_size)] * (
        tiny_config.num_hidden_layers + 1
    )
    torch.testing.assert_close(outputs.hidden_states[-1][mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("real", [0, 10])
def test_a_batch_of_padding_alone_or_of_none_goes_through(real, tiny_config):
    mask = torch.zeros(2, 10, dtype=torch.long)
    mask[:, :real] = 1
    states = ChinchillaModel(tiny_config).eval()(torch.randint(5, 90, (2, 10)), attention_mask=mask).last_hidden_state
    assert states.shape == (2, 10, tiny_config.hidden_size) and states.isfinite().all()


def test_question_answering_computes_padding_as_its_loss_is_over_all_places(tiny_config, monkeypatch):
    """A BERT's does, too: a converted checkpoint has to be trained on the same loss."""
    model = ChinchillaForQuestionAnswering(tiny_config)
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[0, 3:] = 0
    shapes = shapes_in_layers(monkeypatch)
    logits = model(torch.randint(5, 90, (2, 10)), attention_mask=mask).start_logits
    assert set(shapes) == {(2, 10)} and logits[0, 3:].unique().numel() > 1

"""Muon with AdamW in one optimizer, and schedules that end at steps or at a time."""

import copy

import pytest
import torch
from conftest import make_tiny_config
from torch.optim.lr_scheduler import LambdaLR

from chinchilla_hf import ChinchillaForMaskedLM
from chinchilla_hf.optim import Muon, MuonWithAdamW, decayed, decaying_schedule, orthogonalised, parameter_groups


@pytest.fixture
def model() -> ChinchillaForMaskedLM:
    return ChinchillaForMaskedLM(make_tiny_config())


def backward(model) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (2, 16), generator=generator)
    model.zero_grad()
    model(ids, labels=ids).loss.backward()


def names_of(groups, model) -> dict[str, set[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        "muon" if group.get("muon") else "decayed" if group["weight_decay"] else "plain": {
            names[parameter] for parameter in group["params"]
        }
        for group in groups
    }


def test_groups_hold_every_parameter_once(model):
    groups = parameter_groups(model, 0.1, muon=True)
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert len(parameters) == len(set(parameters)) == len(list(model.parameters()))  # the tied matrix once
    names = names_of(groups, model)
    assert all(name.endswith("proj.weight") and ".layers." in name for name in names["muon"])
    assert len(names["muon"]) == 2 * 6
    assert names["decayed"] == {
        "model.embeddings.embed_tokens.weight",
        "model.embeddings.embed_token_types.weight",
        "transform.dense.weight",
    }
    assert all(name.endswith("bias") or "norm" in name for name in names["plain"])


def test_groups_without_muon_and_with_frozen_parameters(model):
    model.model.embeddings.requires_grad_(False)
    names = names_of(parameter_groups(model, 0.1, muon=False), model)
    assert set(names) == {"decayed", "plain"}
    assert not any("embeddings" in name for group in names.values() for name in group)


def test_a_step_is_that_of_the_two_optimizers_apart(model):
    apart = copy.deepcopy(model)
    together = MuonWithAdamW(parameter_groups(model, 0.1, muon=True), lr=1e-2)
    muon, *others = parameter_groups(apart, 0.1, muon=True)
    muon.pop("muon")
    two = [
        torch.optim.Muon([muon], lr=1e-2, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.98), eps=1e-8, fused=True),
    ]
    for _ in range(3):
        backward(model)
        backward(apart)
        together.step()
        for optimizer in two:
            optimizer.step()
    for ours, theirs in zip(model.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 8, 24), (3, 24, 8)])
def test_orthogonalised_matrices_keep_their_singular_vectors(shape, dtype):
    left, _, right = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False
    )
    matrices = left @ torch.linspace(1, 0.2, 8).diag() @ right
    results = orthogonalised(matrices.to(dtype)).float()
    in_their_basis = left.mT @ results @ right.mT
    values = in_their_basis.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.65 and values.max() < 1.25
    beside = (in_their_basis - torch.diag_embed(values)).abs().max()
    assert beside < (1e-4 if dtype == torch.float32 else 0.1)


def test_in_float32_a_rounding_difference_of_a_gradient_stays_one():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(128, 256, generator=generator)
    other = gradient * (1 + 1e-6 * torch.randn(128, 256, generator=generator))
    parts = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrices = [torch.nn.Parameter(torch.zeros(128, 256)) for _ in range(2)]
        matrices[0].grad, matrices[1].grad = gradient, other
        for matrix in matrices:
            Muon([{"params": [matrix]}], lr=1.0, dtype=dtype).step()
        parts[dtype] = ((matrices[0] - matrices[1]).abs().max() / matrices[0].abs().max()).item()
    assert parts[torch.float32] < 1e-5 < 1e-4 < parts[torch.bfloat16]


def test_muon_takes_matrices_only():
    with pytest.raises(ValueError, match=r"a parameter has the shape \(3,\): put it in a group without Muon"):
        Muon([{"params": [torch.nn.Parameter(torch.zeros(3))]}])


@pytest.mark.parametrize("muon", [True, False])
def test_its_state_goes_on_in_another_process(model, muon):
    def train(model, optimizer, steps):
        for _ in range(steps):
            backward(model)
            optimizer.step()

    start = copy.deepcopy(model)
    whole = MuonWithAdamW(parameter_groups(model, 0.1, muon), lr=1e-2)
    train(model, whole, 4)

    first = MuonWithAdamW(parameter_groups(start, 0.1, muon), lr=1e-2)
    train(start, first, 2)
    saved, resumed = copy.deepcopy(first.state_dict()), copy.deepcopy(start)
    second = MuonWithAdamW(parameter_groups(resumed, 0.1, muon), lr=1e-2)
    second.load_state_dict(saved)
    train(resumed, second, 2)
    for ours, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_scheduler_reaches_both_parts(model):
    optimizer = MuonWithAdamW(parameter_groups(model, 0.0, muon=True), lr=1.0)
    LambdaLR(optimizer, lambda step: 0.0)
    before = [parameter.clone() for parameter in model.parameters()]
    backward(model)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert [group["lr"] for part in optimizer._parts for group in part.param_groups] == [0.0] * 3


def test_parameters_without_gradient_are_left_alone(model):
    optimizer = MuonWithAdamW(parameter_groups(model, 0.1, muon=True), lr=1.0)
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("decay", ["linear", "cosine", "sqrt"])
def test_the_rate_goes_up_to_one_and_down_to_zero(decay):
    rates = [decayed(i / 100, 0.1, decay) for i in range(101)]
    assert rates[0] == 0 and rates[10] == pytest.approx(1) and rates[100] == pytest.approx(0, abs=1e-12)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert decayed(1.5, 0.1, decay) == pytest.approx(0, abs=1e-12)  # a clock may run over
    assert decayed(0.0, 0.0, decay) == 1
    with pytest.raises(ValueError, match="decay is 'exponential'"):
        decayed(0.5, 0.1, "exponential")


def test_the_inverse_square_root_falls_from_the_end_of_the_warmup():
    rates = [decayed(i / 100, 0.04, "inverse_sqrt") for i in range(101)]
    assert rates[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1]) and rates[16] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True) and rates[100] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="give a warmup above 0"):
        decayed(0.5, 0.0, "inverse_sqrt")


def rates_of(schedule, optimizer, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_a_schedule_by_steps_ends_at_the_last_one():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    rates = rates_of(decaying_schedule(optimizer, 100, warmup=0.1), optimizer, 100)
    assert max(rates) == pytest.approx(2.0, rel=0.01) and rates.index(max(rates)) in (9, 10)
    assert 0 < rates[0] < 0.2 and 0 < rates[-1] < 0.02


def test_a_schedule_by_a_clock_follows_it():
    time = iter([0.0, 0.05, 0.1, 0.55, 1.0, 1.0])
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    schedule = decaying_schedule(optimizer, 10**9, 0.1, progress=lambda: next(time))
    assert rates_of(schedule, optimizer, 5) == pytest.approx([0.0, 1.0, 2.0, 1.0, 0.0])

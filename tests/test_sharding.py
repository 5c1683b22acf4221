"""Matrices in shards, or by shares, are trained like those of one process; what asks for shards in vain is told so."""

from types import SimpleNamespace

import pytest
import torch
from scripts import run_forked

from chinchilla_hf.trainer import PretrainingTrainer
from chinchilla_hf.training_arguments import FineTuningArguments, PretrainingArguments

only_cpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="about machines without an accelerator")

SCRIPT = """
import copy, os
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from chinchilla_hf.optim import MuonWithAdamW
from chinchilla_hf.sharding import gathered, in_its_own_class, scattered

torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
# Shares of 3 and 2 rows, of 1 and none, of one shape with another matrix, and a vector for AdamW.
whole = nn.ParameterList([torch.randn(5, 8), torch.randn(1, 4), torch.randn(8, 5), torch.randn(5, 8), torch.randn(6)])


def optimizer_of(parameters, replicated=False):
    *matrices, vector = parameters
    groups = [{"params": matrices, "muon": True}, {"params": [vector]}]
    return MuonWithAdamW(groups, lr=0.1, muon_dtype=torch.float32, replicated=replicated)


def train(parameters, optimizer, steps):
    for step in steps:
        for number, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * step + number))
            if isinstance(parameter, DTensor):
                gradient = torch.distributed.tensor.distribute_tensor(
                    gradient, parameter.device_mesh, parameter.placements
                )
            parameter.grad = gradient
        optimizer.step()


def close(ours, theirs):
    torch.testing.assert_close(ours.full_tensor(), theirs, atol=1e-5, rtol=1e-5)


# As under DDP: of two matrices of one shape a process has one, of a single one only the first process has something.
alone, replicas = copy.deepcopy(whole), copy.deepcopy(whole)
train(alone, optimizer_of(alone), range(2))
train(replicas, optimizer_of(replicas, replicated=True), range(2))
for replica, matrix in zip(replicas, alone, strict=True):
    torch.testing.assert_close(replica, matrix, atol=1e-5, rtol=1e-5)

sharded = fully_shard(copy.deepcopy(whole))
parts = list(sharded)
rank = torch.distributed.get_rank()
assert [len(part.to_local()) for part in parts] == [[3, 1, 4, 3, 3], [2, 0, 4, 2, 3]][rank]

expected, optimizer = optimizer_of(whole), optimizer_of(parts)
train(whole, expected, range(2))
train(parts, optimizer, range(2))
for part, matrix in zip(parts, whole, strict=True):
    close(part, matrix)

state = gathered(optimizer.state_dict())
for ours, theirs in zip(state["state"].values(), expected.state_dict()["state"].values(), strict=True):
    for name in theirs:
        assert not isinstance(ours[name], DTensor)
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-5)

resumed = optimizer_of(parts)
resumed.load_state_dict(scattered(state, parts))
train(whole, expected, range(2, 4))
train(parts, resumed, range(2, 4))
for part, matrix in zip(parts, whole, strict=True):
    close(part, matrix)

assert type(sharded) is not nn.ParameterList
with in_its_own_class(sharded):
    assert type(sharded) is nn.ParameterList
assert type(sharded) is not nn.ParameterList
print("as one", flush=True)
torch.distributed.barrier()
os._exit(0)  # torch 2.13 sometimes aborts when a process with a device mesh ends: a thread of its own is left
"""


def test_two_processes_with_shards_take_the_steps_of_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = run_forked(tmp_path / "script.py", {"output_dir": tmp_path / "out"}, processes=2)
    assert ended.code == 0 and ended.output.count("as one") == 2, ended.errors


# Requests in vain


def make_arguments(folder, arguments_class=PretrainingArguments, **changes):
    return arguments_class(output_dir=str(folder), report_to="none", **changes)


def test_fsdp_in_a_single_process(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="FSDP is asked for, but this is the only process"):
        make_arguments(tmp_path, fsdp=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP is asked for, but this is the only process"):
        make_arguments(tmp_path)


def test_the_first_version_of_fsdp(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(PretrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match="the version of FSDP is 1, but must be 2: add --fsdp_version 2"):
        make_arguments(tmp_path)
    monkeypatch.setenv("FSDP_VERSION", "2")
    make_arguments(tmp_path)


def test_fsdp_for_fine_tuning(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setattr(FineTuningArguments, "world_size", 2)
    with pytest.raises(ValueError, match="fine-tuning does not shard models: leave it out"):
        make_arguments(tmp_path, FineTuningArguments)


def test_muon_with_deepspeed(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match=r"optimizer is 'muon', but DeepSpeed .*: add --optimizer adamw"):
        make_arguments(tmp_path)


@only_cpu
def test_deepspeed_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="DeepSpeed is asked for, but Trainer takes it on accelerators only"):
        make_arguments(tmp_path, optimizer="adamw")


def test_a_checkpoint_of_deepspeed_without_it(tmp_path):
    trainer = SimpleNamespace(is_deepspeed_enabled=False, is_fsdp_enabled=False)
    with pytest.raises(FileNotFoundError, match=r"has no optimizer.pt, as when it was saved under DeepSpeed: go on"):
        PretrainingTrainer._load_optimizer_and_scheduler(trainer, str(tmp_path))

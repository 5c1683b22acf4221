"""The end of a script that ran in several processes, and the memory that one keeps."""

import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from chinchilla_hf.processes import closed_process_group


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("ending", [None, "stopped at step 5"])
def test_model_and_group_are_gone_at_the_end(process_group, ending):
    kept = []

    @closed_process_group()
    def main() -> None:
        model = DistributedDataParallel(nn.Linear(2, 2))
        model.itself = [model]  # as Trainer and its callbacks: a cycle, which no reference count frees
        model(torch.ones(1, 2)).sum().backward()
        kept.append(weakref.ref(model))
        if ending:
            sys.exit(ending)

    if ending:
        with pytest.raises(SystemExit, match=ending):
            main()
    else:
        main()
    assert kept[0]() is None
    assert not torch.distributed.is_initialized()


def test_an_error_stays_as_it_is(process_group):
    with pytest.raises(ZeroDivisionError), closed_process_group():
        _ = 1 / 0
    assert not torch.distributed.is_initialized()


def test_two_processes_end_without_a_crash(tmp_path):
    script = """
import torch
from chinchilla_hf.processes import closed_process_group

@closed_process_group()
def main():
    torch.distributed.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
    model(torch.ones(1, 8)).sum().backward()
    torch.distributed.broadcast(torch.zeros(1), src=0)

main()
"""
    (tmp_path / "script.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run([*command, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_freed_memory_is_kept():
    """The pages of tensors are new ones of the operating system in every step, and then no more."""
    program = """
import resource, torch
from chinchilla_hf.processes import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(megabytes << 18) for megabytes in (64, 40, 48)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults(), keep_freed_memory(), [faults() for _ in range(6)][-1])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, is_done, after = result.stdout.split()
    if is_done == "False":
        pytest.skip("glibc is not the allocator here")
    assert int(after) < 0.5 * int(before)

"""Layers split over two processes by the config's tensor-parallel plan give the outputs of the whole model."""

import pytest
import torch
from conftest import make_tiny_config
from scripts import run_forked

from chinchilla_hf import ChinchillaForMaskedLM

SCRIPT = """
import os, sys, torch
from transformers.distributed import DistributedConfig

from chinchilla_hf import ChinchillaForMaskedLM

_, folder = sys.argv[1:]
model = ChinchillaForMaskedLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_plan="auto")).eval()
part = model.model.layers[0].mlp.up_proj.weight
part = part.to_local() if hasattr(part, "to_local") else part
with torch.no_grad():
    logits = model(torch.load(f"{folder}/ids.pt")).logits
if torch.distributed.get_rank() == 0:
    torch.save({"logits": logits, "rows": part.shape[0]}, f"{folder}/out.pt")
torch.distributed.destroy_process_group()
os._exit(0)  # torch 2.13 sometimes aborts when a process with a device mesh ends: a thread of its own is left
"""


@pytest.mark.parametrize("norm_placement", ["output", "post", "pre"])
def test_two_processes_give_the_outputs_of_one(norm_placement, tmp_path):
    model = ChinchillaForMaskedLM(make_tiny_config(norm_placement=norm_placement)).eval()
    model.save_pretrained(tmp_path)
    ids = torch.randint(5, 100, (2, 12))
    torch.save(ids, tmp_path / "ids.pt")
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = run_forked(tmp_path / "script.py", {"output_dir": tmp_path}, processes=2)
    assert ended.code == 0, ended.errors
    found = torch.load(tmp_path / "out.pt")
    assert found["rows"] == model.config.intermediate_size // 2  # it was split
    with torch.no_grad():
        expected = model(ids).logits
    torch.testing.assert_close(found["logits"], expected, atol=1e-5, rtol=1e-5)

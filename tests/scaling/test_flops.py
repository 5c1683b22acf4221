"""FLOPs, against what torch counts while the model runs."""

import pytest
import torch
from conftest import make_tiny_config, make_tiny_decoder_config
from torch.utils.flop_counter import FlopCounterMode

from chinchilla_hf import ChinchillaForCausalLM, ChinchillaForMaskedLM
from chinchilla_hf.scaling.flops import pretraining_step
from chinchilla_hf.scaling.machine import matmul_flops_per_second


@pytest.mark.parametrize(
    "settings", [{}, {"head_dim": 16, "intermediate_size": 40}, {"num_hidden_layers": 3}, {"num_key_value_heads": 2}]
)
def test_a_step_counts_what_torch_counts(settings):
    model = ChinchillaForMaskedLM(make_tiny_config(**settings))
    model.set_attn_implementation("eager")
    ids = torch.randint(5, 100, (3, 20))
    labels = torch.where(torch.arange(20) % 4 == 0, ids, -100)
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=labels).loss.backward()
    assert pretraining_step(model.config, 3, 20, labelled_share=0.25) == counter.get_total_flops()


def test_a_step_of_a_decoder_counts_what_torch_counts():
    model = ChinchillaForCausalLM(make_tiny_decoder_config(num_key_value_heads=2))
    model.set_attn_implementation("eager")
    ids = torch.randint(5, 100, (3, 20))
    with FlopCounterMode(display=False) as counter:  # the counter does not see into the fused loss
        model.eval()(ids, labels=ids).loss.backward()
    assert pretraining_step(model.config, 3, 20, labelled_share=1.0) == counter.get_total_flops()


def test_the_rate_of_a_product_is_a_rate():
    # From a microcontroller to more than any device has.
    assert 1e6 < matmul_flops_per_second("cpu", torch.float32, size=64, seconds=0.01) < 1e18

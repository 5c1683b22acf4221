import pytest
import torch
from conftest import make_tiny_config, make_tiny_seq2seq_config

from chinchilla_hf import ChinchillaForConditionalGeneration, ChinchillaModel
from chinchilla_hf.averaging import averaged_weights


def test_weights_are_the_mean_and_load(tmp_path):
    models = [ChinchillaForConditionalGeneration(make_tiny_seq2seq_config()) for _ in range(3)]
    for number, model in enumerate(models):
        model.save_pretrained(tmp_path / str(number))
    weights = averaged_weights([tmp_path / str(number) for number in range(3)])
    loaded = ChinchillaForConditionalGeneration(models[0].config)
    loaded.load_state_dict(weights, strict=False)
    loaded.tie_weights()
    states = [model.state_dict() for model in models]
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, sum(state[name] for state in states) / 3)


def test_checkpoints_that_do_not_fit(tmp_path):
    ChinchillaModel(make_tiny_config()).save_pretrained(tmp_path / "a")
    ChinchillaModel(make_tiny_config(hidden_size=16)).save_pretrained(tmp_path / "b")
    with pytest.raises(ValueError, match="holds other weights"):
        averaged_weights([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ValueError, match="no checkpoint to average"):
        averaged_weights([])

import json

import pytest
from conftest import make_tiny_config
from transformers import AutoConfig

from chinchilla_hf import ChinchillaConfig


def test_defaults_are_the_documented_architecture():
    config = ChinchillaConfig()
    assert (config.norm_placement, config.hidden_act, config.position_embedding_type) == ("output", "relu", "rope")
    assert config.intermediate_size == 4 * config.hidden_size
    assert config.head_dim * config.num_attention_heads == config.hidden_size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, r"hidden_size is 30.*multiple of num_attention_heads \(4\)"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"norm_placement": "middle"}, "norm_placement is 'middle', expected one of 'output', 'post', 'pre'"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi', expected one of 'rope', 'learned'"),
        ({"hidden_act": "rulu"}, "hidden_act is 'rulu'.*relu"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"pooler_type": "l2"}, "pooler_type is 'l2', expected one of 'dense', 'normalized'"),
        ({"hidden_dropout": 1.5}, "hidden_dropout is 1.5"),
        ({"hidden_dropout": -0.1}, "hidden_dropout is -0.1"),
        ({"head_dim": 7}, "head_dim is 7.*even"),
        ({"vocab_size": 10, "pad_token_id": 10}, "pad_token_id is 10, but vocab_size is 10"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_what_cannot_be_built_raises(settings, message):
    with pytest.raises(Exception, match=f"(?s){message}"):
        make_tiny_config(**settings)


def test_assignment_is_checked_too(tiny_config):
    with pytest.raises(Exception, match="hidden_size"):
        tiny_config.hidden_size = "wide"


def test_round_trip_keeps_every_setting(tmp_path):
    config = make_tiny_config(
        norm_placement="pre", pooling="mean", head_dim=10, rope_parameters={"rope_type": "linear", "factor": 2.0}
    )
    config.save_pretrained(tmp_path)
    for loaded in (ChinchillaConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is ChinchillaConfig
        assert loaded.to_dict() | {"_name_or_path": None} == config.to_dict() | {"_name_or_path": None}


def test_labels_that_disagree_are_not_saved(tiny_config, tmp_path):
    tiny_config.id2label = {0: "no", 1: "yes"}
    tiny_config.label2id = {"no": 1, "yes": 0}
    with pytest.raises(ValueError, match="id2label and label2id disagree"):
        tiny_config.save_pretrained(tmp_path)


def test_config_of_another_model_type_raises(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="model type 'gpt2', expected 'chinchilla'"):
        ChinchillaConfig.from_pretrained(tmp_path)

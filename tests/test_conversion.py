import pytest
import torch
import transformers
from conftest import make_tiny_config
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

import chinchilla_hf
from chinchilla_hf import ChinchillaForSequenceClassification, ChinchillaModel
from chinchilla_hf.conversion import convert_checkpoint, convert_config, convert_model, convert_to_bert, load_or_convert

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "initializer_range": 0.3,
}
CONFIGS = {
    "Bert": BertConfig(**SHAPE, intermediate_size=40, max_position_embeddings=32),
    "Roberta": RobertaConfig(**SHAPE, intermediate_size=40, max_position_embeddings=34, type_vocab_size=1),
    "XLMRoberta": XLMRobertaConfig(**SHAPE, intermediate_size=40, max_position_embeddings=34, type_vocab_size=1),
    "DistilBert": DistilBertConfig(
        vocab_size=60, dim=24, n_layers=2, n_heads=3, hidden_dim=40, max_position_embeddings=32, initializer_range=0.3
    ),
}
HEADS = ["MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"]
CASES = [(family, head) for family in CONFIGS for head in ("", *HEADS)]
CASES += [("Bert", "PreTraining"), ("Bert", "NextSentencePrediction")]


def make_source(family: str, head: str):
    """A BERT-family model of random weights, biases and norms included."""
    source_class = getattr(transformers, f"{family}For{head}" if head else f"{family}Model")
    config = type(CONFIGS[family]).from_dict(CONFIGS[family].to_dict())
    config.num_labels = 2 if head == "QuestionAnswering" else 3
    model = source_class(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name.lower()), std=0.3)
    return model


def make_inputs(pad_token_id: int, multiple_choice: bool) -> dict[str, torch.Tensor]:
    attention_mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    input_ids = torch.randint(5, 60, (2, 9)).where(attention_mask.bool(), torch.tensor(pad_token_id))
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    return (
        {name: torch.stack([value, value.flip(0)], 1) for name, value in inputs.items()} if multiple_choice else inputs
    )


@pytest.mark.parametrize(("family", "head"), CASES, ids=lambda name: name or "Model")
def test_converted_model_computes_the_same(family, head, tmp_path):
    source = make_source(family, head)
    source.save_pretrained(tmp_path)
    converted = convert_checkpoint(tmp_path)
    assert type(converted).__name__ == (f"ChinchillaFor{head}" if head else "ChinchillaModel")
    inputs = make_inputs(source.config.pad_token_id, head == "MultipleChoice")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected, actual = source(**inputs), converted(**inputs)
    assert set(actual) >= set(expected)
    for name, value in expected.items():
        ours = actual[name]
        if value.shape[: real.dim()] == real.shape:  # what stands at padding positions means nothing
            value, ours = value[real], ours[real]
        torch.testing.assert_close(ours, value, rtol=1e-5, atol=1e-5)


def test_the_real_minilm_converts_exactly(minilm):
    source, converted = BertModel.from_pretrained(minilm).eval(), convert_checkpoint(minilm)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    texts = ["Short.", "A longer text, with padding behind the other one.", "Überall sonst? 東京 " * 20]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = source(**inputs, output_hidden_states=True)
        actual = converted(**inputs, output_hidden_states=True)
    assert len(actual.hidden_states) == len(expected.hidden_states) == 7
    for ours, theirs in zip(actual.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output, rtol=0, atol=1e-5)


def test_there_and_back_gives_the_identical_tensors(minilm):
    source = BertModel.from_pretrained(minilm)
    back = convert_to_bert(convert_model(source))
    assert_same_state(back, source)


@pytest.mark.parametrize("head", [*HEADS, "PreTraining", "NextSentencePrediction"])
def test_heads_travel_back_too(head):
    source = make_source("Bert", head)
    back = convert_to_bert(convert_model(source))
    assert type(back) is type(source)
    assert_same_state(back, source)
    assert back.config.num_labels == source.config.num_labels


def assert_same_state(actual, expected) -> None:
    actual, expected = actual.state_dict(), expected.state_dict()
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def test_converting_copies(minilm):
    source = BertModel.from_pretrained(minilm)
    converted = convert_model(source)
    with torch.no_grad():
        converted.embeddings.embed_tokens.weight.zero_()
    assert source.embeddings.word_embeddings.weight.any()


def test_converted_checkpoint_saves_and_loads(tmp_path):
    converted = convert_model(make_source("Bert", "SequenceClassification"))
    converted.save_pretrained(tmp_path)
    loaded = ChinchillaForSequenceClassification.from_pretrained(tmp_path)
    assert_same_state(loaded, converted)


def test_another_head_and_settings_can_be_asked_for():
    source = make_source("Bert", "")
    converted = convert_model(source, ChinchillaForSequenceClassification, num_labels=5, hidden_dropout=0.3)
    assert converted.classifier.weight.shape == (5, 24)
    assert converted.config.hidden_dropout == converted.dropout.p == 0.3
    assert torch.equal(converted.model.pooler.dense.weight, source.pooler.dense.weight)


@pytest.mark.parametrize(
    ("family", "head"),
    [("Bert", ""), ("Bert", "SequenceClassification")]
    + [(family, "SequenceClassification") for family in ("Roberta", "DistilBert")],
)
def test_a_dense_pooler_is_left_out_where_a_normalized_one_is_asked_for(family, head, tmp_path, capfd):
    source = make_source(family, head)
    source.save_pretrained(tmp_path)
    settings = {"pooling": "mean", "pooler_type": "normalized", "num_labels": 3}
    converted = convert_checkpoint(tmp_path, ChinchillaForSequenceClassification, **settings)
    assert "pooler" not in capfd.readouterr().err
    assert not [name for name in converted.state_dict() if "pooler" in name]
    inputs = make_inputs(source.config.pad_token_id, multiple_choice=False)
    with torch.no_grad():
        states = source.base_model(**inputs).last_hidden_state
        pooled = converted.model(**inputs).pooler_output
    mean = torch.stack([row[mask.bool()].mean(0) for row, mask in zip(states, inputs["attention_mask"], strict=True)])
    expected = torch.nn.functional.normalize(mean, dim=-1) * 24**0.5
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BertConfig(position_embedding_type="relative_key"), "position_embedding_type is 'relative_key'"),
        (BertConfig(is_decoder=True), "is_decoder is True"),
        (BertConfig(hidden_act="maxout"), "hidden_act is 'maxout'"),
        (DistilBertConfig(activation="maxout"), "activation is 'maxout'"),
        (RobertaConfig(hidden_act="relu", architectures=["RobertaForMaskedLM"]), "hidden_act is 'relu'"),
        (transformers.ElectraConfig(), "model type 'electra' cannot be converted"),
    ],
)
def test_what_does_not_fit_raises(config, message):
    with pytest.raises(ValueError, match=message):
        convert_config(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "norm_placement is 'output'"),
        ({"norm_placement": "post"}, "position_embedding_type is 'rope'"),
        (
            {"norm_placement": "post", "position_embedding_type": "learned", "type_vocab_size": 0},
            "type_vocab_size is 0",
        ),
        ({"norm_placement": "post", "position_embedding_type": "learned", "head_dim": 6}, "head_dim is 6"),
        (
            {"norm_placement": "post", "position_embedding_type": "learned", "num_key_value_heads": 2},
            "num_key_value_heads is 2",
        ),
        ({"norm_placement": "post", "position_embedding_type": "learned", "mlp_bias": False}, "mlp_bias is False"),
    ],
)
def test_what_bert_cannot_express_raises(settings, message):
    with pytest.raises(ValueError, match=message):
        convert_to_bert(ChinchillaModel(make_tiny_config(**settings)))


def test_bert_has_no_normalized_pooler():
    settings = {"norm_placement": "post", "position_embedding_type": "learned", "pooler_type": "normalized"}
    config = make_tiny_config(**settings, pooling="mean")
    with pytest.raises(ValueError, match="pooler_type is 'normalized', but a BERT has 'dense'"):
        convert_to_bert(ChinchillaForSequenceClassification(config))
    convert_to_bert(ChinchillaModel(config, add_pooling_layer=False))


def test_only_safetensors_are_read(tmp_path):
    make_source("Bert", "").config.save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"safetensors"):
        convert_checkpoint(tmp_path)


def test_load_or_convert_takes_both_kinds(tmp_path):
    make_source("DistilBert", "MaskedLM").save_pretrained(tmp_path / "bert")
    ours = load_or_convert(tmp_path / "bert", ChinchillaForSequenceClassification, num_labels=4)
    ours.save_pretrained(tmp_path / "ours")
    again = load_or_convert(tmp_path / "ours", ChinchillaForSequenceClassification, num_labels=6, hidden_dropout=0.2)
    assert again.classifier.weight.shape == (6, 24)
    assert again.dropout.p == 0.2 or again.config.classifier_dropout is not None
    assert torch.equal(again.model.layers[1].mlp.up_proj.weight, ours.model.layers[1].mlp.up_proj.weight)
    with pytest.raises(ValueError, match="model type 'electra'"):
        transformers.ElectraConfig().save_pretrained(tmp_path / "electra")
        load_or_convert(tmp_path / "electra", chinchilla_hf.ChinchillaModel)


def test_a_folder_that_is_not_here_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"no checkpoint \./model_cards/mine .*{tmp_path.name}"):
        load_or_convert("./model_cards/mine", ChinchillaModel)

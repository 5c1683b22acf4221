"""Exported classifiers of words and encoders give what the pipeline and torch give, without torch."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_tiny_config
from huggingface_hub import ModelCard
from scripts import run_script, words
from transformers import pipeline

from chinchilla_hf import (
    ChinchillaForMaskedLM,
    ChinchillaForQuestionAnswering,
    ChinchillaForTokenClassification,
    ChinchillaModel,
    ChinchillaQuestionAnsweringPipeline,
    export_encoder,
    train_tokenizer,
)
from chinchilla_hf.export import ExportRefusedError
from chinchilla_hf.runtime_answering import OnnxQuestionAnswerer
from chinchilla_hf.runtime_encoder import OnnxTextEncoder, OnnxTokenClassifier

pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")

TEXTS = ["Anna lives in Oslo, Norway.", "never again", "I met Jean-Luc Picard of the Enterprise", "so it is 東京 ☃"]
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def make_tokenizer(algorithm):
    return train_tokenizer(TEXTS * 5, vocab_size=300, algorithm=algorithm, model_max_length=32, show_progress=False)


def make_model(tokenizer, kind, **overrides):
    torch.manual_seed(0)
    config = make_tiny_config(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=32, **overrides
    )
    return kind(config).eval()


@pytest.mark.parametrize("algorithm", ["wordpiece", "bpe"])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_labels_of_words_are_those_of_the_pipeline(tmp_path, algorithm):
    tokenizer = make_tokenizer(algorithm)
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    model = make_model(tokenizer, ChinchillaForTokenClassification, **names)
    torch.nn.init.normal_(model.classifier.weight)
    # A model so small is no faster in int8: that is no matter here.
    figures = export_encoder.export_encoder(model, tokenizer, tmp_path / "export", TEXTS, force=True)
    assert figures.full_difference < 1e-4 and figures.full_agreement == 1 and 0 <= figures.quantized_agreement <= 1
    tag = OnnxTokenClassifier(tmp_path / "export", quantized=False)
    for strategy in ("first", "none"):
        expected = pipeline("token-classification", model, tokenizer=tokenizer, aggregation_strategy=strategy)(TEXTS)
        found = tag(TEXTS, aggregation_strategy=strategy, batch_size=3)
        assert [len(entities) for entities in found] == [len(entities) for entities in expected]
        assert sum(map(len, found)) > 5
        for of_text, expected_of_text in zip(found, expected, strict=True):
            for one, other in zip(of_text, expected_of_text, strict=True):
                assert one == other | {"score": pytest.approx(float(other["score"]), abs=1e-5)}
    assert tag(TEXTS[0]) == tag(TEXTS)[0]
    assert len(tag(TEXTS[0], ignore_labels=())) >= len(tag(TEXTS[0]))
    with pytest.raises(ValueError, match="aggregation_strategy is 'max', expected 'first' or 'none'"):
        tag(TEXTS[0], aggregation_strategy="max")
    card = ModelCard.load(tmp_path / "export" / "README.md")
    assert card.data.pipeline_tag == "token-classification" and "OnnxTokenClassifier" in card.text
    assert "index.html" not in card.text and not (tmp_path / "export" / "index.html").exists()


def test_vectors_are_the_means_of_states(tmp_path):
    tokenizer = make_tokenizer("wordpiece")
    model = make_model(tokenizer, ChinchillaModel)
    figures = export_encoder.export_encoder(model, tokenizer, tmp_path / "export", TEXTS, force=True)
    assert figures.full_difference < 1e-4 and figures.full_agreement == 1 and 0.9 < figures.quantized_agreement < 1
    assert "The vectors of int8 and float32 have a mean cosine of 9" in (tmp_path / "export" / "README.md").read_text()
    embed = OnnxTextEncoder(tmp_path / "export", quantized=False)
    vectors = embed(TEXTS, batch_size=3)
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)
    np.testing.assert_allclose(embed(TEXTS[1])[0], vectors[1], atol=1e-6)
    script = f"""
import sys
from chinchilla_hf.runtime_encoder import OnnxTextEncoder
assert OnnxTextEncoder({str(tmp_path / "export")!r})("one text").shape == (1, 32)
sys.exit(sum(name in sys.modules for name in ("torch", "transformers")))"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_answers_are_those_of_the_pipeline(tmp_path, threshold):
    tokenizer = make_tokenizer("wordpiece")
    model = make_model(tokenizer, ChinchillaForQuestionAnswering)
    torch.nn.init.normal_(model.qa_outputs.weight)
    model.config.question_answering = {"max_length": 24, "stride": 4, "max_answer_length": 7}
    if threshold is not None:
        model.config.question_answering["no_answer_threshold"] = threshold
    pairs = [("Who lives?", text) for text in TEXTS]
    figures = export_encoder.export_encoder(model, tokenizer, tmp_path / "export", pairs, force=True)
    assert figures.full_difference < 1e-4 and figures.full_agreement == 1
    context, questions = " ".join(TEXTS * 3), ["Who lives?", "Where is it?", "never"]
    answer = OnnxQuestionAnswerer(tmp_path / "export", quantized=False)
    pipe = ChinchillaQuestionAnsweringPipeline(model=model, tokenizer=tokenizer)
    for top_k in (1, 3):
        expected = pipe(question=questions, context=context, top_k=top_k, bf16=False)
        found = answer(questions, context, top_k=top_k)
        for one, other in zip(found, expected, strict=True):
            for a, b in zip(*([one], [other]) if top_k == 1 else (one, other), strict=True):
                assert a == b | {"score": pytest.approx(b["score"], abs=1e-4)}
                assert a["answer"] == context[a["start"] : a["end"]]
    assert answer(questions[1], context) == answer(questions, context)[1]
    with pytest.raises(ValueError, match="has no token: give one with words"):
        answer("", context)
    script = f"""
import sys
from chinchilla_hf.runtime_answering import OnnxQuestionAnswerer
assert OnnxQuestionAnswerer({str(tmp_path / "export")!r})("Who?", "Anna lives in Oslo")
sys.exit(sum(name in sys.modules for name in ("torch", "transformers")))"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr


def test_what_is_wrong_is_refused(tmp_path, monkeypatch):
    tokenizer = make_tokenizer("wordpiece")
    check = export_encoder._check
    wrong = make_model(tokenizer, ChinchillaModel, norm_placement="pre")
    monkeypatch.setattr(export_encoder, "_check", lambda _, *others: check(wrong, *others))
    model = make_model(tokenizer, ChinchillaModel)
    with pytest.raises(ExportRefusedError, match=r"differs from torch's by .*float32 says what torch says of 0\.00%"):
        export_encoder.export_encoder(model, tokenizer, tmp_path / "export", TEXTS, quantize=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="a ChinchillaForMaskedLM cannot be exported here, expected one of Chinchilla"):
        other = make_model(tokenizer, ChinchillaForMaskedLM)
        export_encoder.export_encoder(other, tokenizer, tmp_path / "export", TEXTS)


def test_the_script(tmp_path, monkeypatch, capsys):
    tokenizer = make_tokenizer("wordpiece")
    make_model(tokenizer, ChinchillaForTokenClassification, num_labels=3).save_pretrained(tmp_path / "tagger")
    tokenizer.save_pretrained(tmp_path / "tagger")
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    options = {"model": tmp_path / "tagger", "texts": tmp_path / "texts.txt", "keep_full": False, "force": True}
    run_script("export_encoder", monkeypatch, words(options))
    assert "OnnxTokenClassifier" in capsys.readouterr().out
    assert isinstance(OnnxTokenClassifier(tmp_path / "tagger" / "export")("a text"), list)
    for wrong, message in {
        "texts": "there is no file 'no/where'",
        "model": "--model no/where cannot be loaded",
    }.items():
        with pytest.raises(SystemExit, match=message):
            run_script("export_encoder", monkeypatch, words(options | {wrong: "no/where"}))

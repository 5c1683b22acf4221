"""Exports for OpenVINO and ExecuTorch give what torch gives, for texts of any length."""

import pytest
import torch
from conftest import make_tiny_config

from chinchilla_hf import ChinchillaForSequenceClassification, export_edge, train_tokenizer
from chinchilla_hf.export import ExportRefusedError, export_classifier
from chinchilla_hf.runtime import read_export_record

pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")

TEXTS = ["never again", "so good, and more of it", "it was fine", "what a lovely day, was it not, " * 3, "poor"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, vocab_size=120, model_max_length=40, show_progress=False)


def make_model(tokenizer) -> ChinchillaForSequenceClassification:
    torch.manual_seed(0)
    config = make_tiny_config(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=3, max_position_embeddings=40
    )
    return ChinchillaForSequenceClassification(config).eval()


def test_openvino(tokenizer, tmp_path):
    pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")
    model = make_model(tokenizer)
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    figures = export_classifier(
        model, tokenizer, tmp_path / "export", pairs, quantize=False, formats=["openvino"], force=True
    )
    (values,) = figures.others.values()
    assert values["difference"] < 1e-4 and values["agreement"] == 1 and values["milliseconds"] > 0
    assert (tmp_path / "export" / export_edge.OPENVINO).with_suffix(".bin").is_file()
    assert read_export_record(tmp_path / "export")["figures"]["others"] == figures.others
    assert "| OpenVINO float32 |" in (tmp_path / "export" / "README.md").read_text()


def test_executorch(tokenizer, tmp_path):
    pytest.importorskip("executorch", reason="the extra 'executorch' is not installed")
    pytest.importorskip("torchao", reason="the extra 'executorch' is not installed")
    model = make_model(tokenizer)
    figures = export_classifier(
        model, tokenizer, tmp_path / "export", TEXTS, quantize=False, formats=["executorch"], force=True
    )
    full, quantized = (figures.others[name] for name in ("ExecuTorch float32", "ExecuTorch int8"))
    assert full["difference"] < 1e-4 and full["agreement"] == 1
    assert 0 < quantized["difference"] < 0.2 and quantized["megabytes"] < full["megabytes"]
    assert (tmp_path / "export" / export_edge.QUANTIZED_EXECUTORCH).is_file()


def test_formats_that_are_not_there(tokenizer, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="there is no format 'tflite', expected some of openvino, executorch"):
        export_classifier(make_model(tokenizer), tokenizer, tmp_path / "export", TEXTS, formats=["tflite"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"openvino is not installed: pip install 'chinchilla-hf\[openvino\]'"):
        export_classifier(make_model(tokenizer), tokenizer, tmp_path / "export", TEXTS, formats=["openvino"])
    assert not list(tmp_path.iterdir())


def test_a_format_that_computes_something_else_is_refused(tokenizer, tmp_path, monkeypatch):
    wrong = {"OpenVINO float32": {"difference": 0.5, "agreement": 0.9, "milliseconds": 1.0, "megabytes": 1.0}}
    monkeypatch.setattr("chinchilla_hf.export.check_formats", lambda formats: None)
    monkeypatch.setattr("chinchilla_hf.export.write_format", lambda *arguments: {})
    monkeypatch.setattr("chinchilla_hf.export.check_format", lambda *arguments: wrong)
    model = make_model(tokenizer)
    with pytest.raises(ExportRefusedError, match=r"a score of OpenVINO float32 differs from torch's by 5\.0e-01"):
        export_classifier(model, tokenizer, tmp_path / "export", TEXTS, quantize=False, formats=["openvino"])

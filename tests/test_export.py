"""Exports compute what the checkpoint computes, without torch, and are refused where they do not."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_config
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, pipeline

from chinchilla_hf import ChinchillaForSequenceClassification, export, train_tokenizer
from chinchilla_hf.compression.pruning import choose_parts, magnitude_scores, prune
from chinchilla_hf.export import ExportRefusedError, export_classifier
from chinchilla_hf.runtime import EXPORT_RECORD, FULL, QUANTIZED, OnnxTextClassifier, read_export_record

pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")

TEXTS = ["never again", "so good, and more of it", "it was fine", "what a lovely day, was it not", "poor"]
FILES = ["config.json", EXPORT_RECORD, "onnx/model.onnx", "onnx/model_quantized.onnx"]
FILES += ["README.md", "index.html", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, vocab_size=120, model_max_length=32, show_progress=False)


def make_model(tokenizer, **overrides) -> ChinchillaForSequenceClassification:
    torch.manual_seed(0)
    names = {0: "bad", 1: "good", 2: "other"}
    options = {"id2label": names, "label2id": {name: i for i, name in names.items()}, "max_position_embeddings": 32}
    config = make_tiny_config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **options | overrides)
    model = ChinchillaForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight)
    return model


@pytest.fixture(scope="module")
def exported(tokenizer, tmp_path_factory):
    """A checkpoint with its export, and the figures of the check."""
    folder = tmp_path_factory.mktemp("exported") / "checkpoint"
    model = make_model(tokenizer)
    prune(model, choose_parts(model.config, magnitude_scores(model), 0.8, 8))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    says = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.argmax(dim=1).tolist()
    # A model so small is no faster in int8: that is no matter here.
    return folder, export_classifier(model, tokenizer, folder / "export", TEXTS, says, force=True)


def test_the_folder_is_whole(exported):
    folder, figures = exported
    files = [path.relative_to(folder / "export") for path in (folder / "export").rglob("*") if path.is_file()]
    assert sorted(map(str, files)) == sorted(FILES)
    assert figures.texts == 5 and figures.full_difference < 1e-5 and figures.full_agreement == 1
    assert figures.accuracy["torch"] == figures.accuracy["float32"] == 1
    assert set(figures.milliseconds) == {"torch", "float32", "int8"} and min(figures.milliseconds.values()) > 0
    record = read_export_record(folder / "export")
    assert record["figures"]["megabytes"] == figures.megabytes and record["labels"] == ["bad", "good", "other"]
    config = json.loads((folder / "export" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"] and config["id2label"]["1"] == "good"


def test_the_card_shows_the_figures(exported):
    folder, figures = exported
    card = ModelCard.load(folder / "export" / "README.md")
    assert card.data.library_name == "transformers.js" and card.data.pipeline_tag == "text-classification"
    assert f"| int8 | {figures.milliseconds['int8']:.2f} | {figures.megabytes['int8']:.1f} |" in card.text
    assert f"says what torch says of {figures.full_agreement:.2%}" in card.text and "3 labels" in card.text
    problems = read_export_record(folder / "export")["problems"]
    assert all(f"**Forced:** {problem}" in card.text for problem in problems)


def test_the_runtime_gives_what_the_pipeline_gives(exported):
    folder, _ = exported
    classify = OnnxTextClassifier(folder / "export", quantized=False)
    expected = pipeline("text-classification", str(folder))
    close = {"abs": 1e-5}
    for result, other in zip(classify(TEXTS), expected(TEXTS), strict=True):
        assert result == {"label": other["label"], "score": pytest.approx(other["score"], **close)}
    assert classify(TEXTS[0])[0]["label"] == expected(TEXTS[0])[0]["label"]
    for result, other in zip(classify(TEXTS, top_k=None, batch_size=2), expected(TEXTS, top_k=None), strict=True):
        assert [row["label"] for row in result] == [row["label"] for row in other]
        assert [row["score"] for row in result] == pytest.approx([row["score"] for row in other], **close)
    long = "never " * 100
    assert classify(long)[0]["score"] == pytest.approx(expected(long, truncation=True)[0]["score"], **close)
    assert classify([]) == []
    assert [row["label"] for row in OnnxTextClassifier(folder / "export")(TEXTS)]  # int8


def test_neither_torch_nor_transformers_is_imported(exported):
    folder, _ = exported
    code = (
        "import sys; from chinchilla_hf.runtime import OnnxTextClassifier; "
        f"print(OnnxTextClassifier({str(folder / 'export')!r}, num_threads=1)('never again')[0]['label']); "
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout.strip() in ("bad", "good", "other"), result.stderr


@pytest.mark.parametrize(("problem_type", "num_labels"), [("multi_label_classification", 3), ("regression", 1)])
def test_other_problems_and_pairs(tokenizer, tmp_path, problem_type, num_labels):
    names = {i: name for i, name in enumerate(["bad", "good", "other"][:num_labels])}
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    model = make_model(tokenizer, problem_type=problem_type, **labels)
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    figures = export_classifier(model, tokenizer, tmp_path / "export", pairs, quantize=False)
    assert figures.full_difference < 1e-5 and "int8" not in figures.milliseconds
    assert not (tmp_path / "export" / QUANTIZED).exists()
    classify = OnnxTextClassifier(tmp_path / "export")
    with torch.no_grad():
        logits = model(**tokenizer(*pairs[1], return_tensors="pt")).logits[0]
    expected = logits.sigmoid() if num_labels > 1 else logits
    scores = {row["label"]: row["score"] for row in classify(pairs[1], top_k=None)}
    assert [scores[name] for name in names.values()] == pytest.approx(expected.tolist(), abs=1e-5)
    with pytest.raises(FileNotFoundError, match=r"has no onnx/model_quantized\.onnx: export the checkpoint again"):
        OnnxTextClassifier(tmp_path / "export", quantized=True)


def test_what_is_wrong_is_refused_and_leaves_the_older_export(tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / EXPORT_RECORD).write_text("{}")
    (folder / "older").write_text("here")
    model = make_model(tokenizer)
    check = export.check_export

    def checked(other):
        def run(given, *arguments, **options):
            return check(other, *arguments, **options)

        return run

    wrong = make_model(tokenizer, norm_placement="pre")
    monkeypatch.setattr(export, "check_export", checked(wrong))
    with pytest.raises(ExportRefusedError, match=r"a float32 score differs from torch's by \d.*expected at most 1e-04"):
        export_classifier(model, tokenizer, folder, TEXTS, quantize=False)
    assert sorted(folder.iterdir()) == [folder / EXPORT_RECORD, folder / "older"] and list(tmp_path.iterdir()) == [
        folder
    ]
    export_classifier(model, tokenizer, folder, TEXTS, quantize=False, force=True)
    assert (folder / FULL).is_file() and not (folder / "older").exists()
    assert "differs from torch's" in read_export_record(folder)["problems"][0]


def test_int8_alone_and_what_a_page_needs(exported, tokenizer, tmp_path):
    needed = [tmp_path / "node_modules" / package / "dist" / name for package, name in export.BROWSER_FILES]
    for path in needed[:-1]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    model = AutoModelForSequenceClassification.from_pretrained(exported[0])
    arguments = {"keep_full": False, "transformers_js": tmp_path / "node_modules", "force": True}
    with pytest.raises(FileNotFoundError, match=r"has no onnxruntime-web/dist/.*wasm: give the node_modules of npm"):
        export_classifier(model, tokenizer, tmp_path / "export", TEXTS, **arguments)
    needed[-1].write_text(needed[-1].name)
    figures = export_classifier(model, tokenizer, tmp_path / "export", TEXTS, **arguments)
    assert "float32" in figures.milliseconds and not (tmp_path / "export" / FULL).exists()
    assert OnnxTextClassifier(tmp_path / "export")("so good") == OnnxTextClassifier(exported[0] / "export")("so good")
    for path in needed:
        assert (tmp_path / "export" / "transformers.js" / path.name).read_text() == path.name
    with pytest.raises(ValueError, match="keep_full is False, but without quantize there is no other model"):
        export_classifier(model, tokenizer, tmp_path / "export", TEXTS, quantize=False, keep_full=False)


def test_where_an_export_goes(tmp_path):
    assert export.export_folder("me/model", "served") == Path("served")
    assert export.export_folder(str(tmp_path), None) == tmp_path / "export"
    with pytest.raises(ValueError, match="--model me/model is no folder that the export could be put into: give --out"):
        export.export_folder("me/model", None)


def test_a_folder_of_something_else_stays_as_it_is(exported, tokenizer, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    model = AutoModelForSequenceClassification.from_pretrained(exported[0])
    with pytest.raises(FileExistsError, match="letters holds something else than an export: choose another folder"):
        export_classifier(model, tokenizer, tmp_path / "letters", TEXTS, force=True)
    assert (tmp_path / "letters" / "dear.txt").read_text() == "dear"


def test_promises_of_int8():
    figures = export.ExportFigures(texts=10, full_difference=0.0, full_agreement=1.0)
    assert export.problems_of(figures, 0.005) == []
    figures.accuracy = {"torch": 0.97, "float32": 0.97, "int8": 0.9601}
    figures.milliseconds = {"torch": 3.0, "float32": 2.0, "int8": 2.5}
    problems = export.problems_of(figures, 0.005)
    assert sorted(problems) == [
        "int8 has an accuracy of 0.9601 and float32 0.9700, expected a loss of at most 0.005",
        "int8 takes 2.50 ms a text and float32 2.00, expected less",
    ]
    figures.accuracy["int8"], figures.milliseconds["int8"] = 0.9699, 1.0
    assert export.problems_of(figures, 0.005) == []


def test_folders_that_are_no_export(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no export \(there is no export\.json\)"):
        OnnxTextClassifier(tmp_path)
    record = read_export_record(exported[0] / "export") | {"format": 0}
    (tmp_path / EXPORT_RECORD).write_text(json.dumps(record))
    with pytest.raises(ValueError, match="has format 0, but this version of chinchilla-hf reads 1: export"):
        OnnxTextClassifier(tmp_path)
    with pytest.raises(ValueError, match="there are no texts to compare the export by"):
        export_classifier(AutoModelForSequenceClassification.from_pretrained(exported[0]), None, tmp_path / "x", [])


def test_scores_add_up(exported):
    scores = [row["score"] for row in OnnxTextClassifier(exported[0] / "export")(TEXTS[1], top_k=None)]
    assert np.isclose(sum(scores), 1) and scores == sorted(scores, reverse=True)

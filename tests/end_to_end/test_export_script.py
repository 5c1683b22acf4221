"""`training/export.py` as its users run it."""

import json

import pytest
from labelled_files import FAST, TINY, sentences, write_csv
from scripts import load_script, run_forked, run_script, words

from chinchilla_hf.runtime import FULL, OnnxTextClassifier

pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")


def test_a_trained_classifier(tmp_path, monkeypatch, capsys):
    data, folder = write_csv(tmp_path / "reviews.csv", sentences(240)), tmp_path / "checkpoint"
    ended = run_forked("classify", {"dataset": data, **TINY, **FAST, "output_dir": folder, "baseline": False})
    assert ended.code == 0, ended.errors

    def export(**options: object) -> str:
        run_script("export", monkeypatch, words({"dataset": data, "model": folder} | options))
        return capsys.readouterr().out

    printed = export(quantize=False)
    assert f"the export is in {folder / 'export'}" in printed and "float32 differs from torch by at most" in printed
    record = json.loads((folder / "export" / "export.json").read_text())
    card = (folder / "README.md").read_text()
    assert "## Speed and size" in card and "![Losses while training](loss.png)" in card
    assert f"| ONNX Runtime, float32 | {record['figures']['milliseconds']['float32']:.2f} |" in card
    assert record["figures"]["texts"] == 24 and record["figures"]["accuracy"]["float32"] >= 0.9
    classify = OnnxTextClassifier(folder / "export")
    rows = sentences(30, seed=1)
    found = classify([text for text, _ in rows])
    assert sum(result["label"] == mood for result, (_, mood) in zip(found, rows, strict=True)) >= 27

    export(keep_full=False, force=True)  # a model so small is no faster in int8: that is no matter here
    assert not (folder / "export" / FULL).exists()
    assert len(OnnxTextClassifier(folder / "export")(["so good"])) == 1

    for options, message in (
        ({"formats": ["tflite"]}, "error: there is no format 'tflite', expected some of openvino, executorch"),
        ({"transformers_js": tmp_path}, "error: .* has no @huggingface/transformers/dist/transformers.min.js"),
        ({"quantize": False, "keep_full": False}, "error: keep_full is False, but without quantize"),
        ({"model": tmp_path / "nowhere"}, "error: --model .*nowhere cannot be loaded"),
        ({"dataset": tmp_path / "no.csv"}, "error: there is no file or folder"),
    ):
        with pytest.raises(SystemExit, match=message):
            export(**options)
    other = write_csv(tmp_path / "other.csv", [(text, f"{mood}!") for text, mood in sentences(120)])
    with pytest.raises(
        SystemExit, match="the classifier knows 2 labels and the data have 2; only one of them has 'bad!"
    ):
        export(dataset=other)


def test_help_and_wrong_options(monkeypatch, capsys):
    load_script("export", monkeypatch)
    for arguments, code, text in ((["--help"], 0, "--largest_loss VALUE"), (["--dataset", "x"], 2, "--model")):
        with pytest.raises(SystemExit) as exit_:
            run_script("export", monkeypatch, arguments)
        printed = capsys.readouterr()
        assert exit_.value.code == code and text in printed.out + printed.err

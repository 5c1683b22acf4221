"""`training/distill.py` as its users run it: every start of a student, what it learns, interruptions, and bad input."""

import json
import random
from pathlib import Path

import pandas as pd
import pytest
import torch
from labelled_files import FAST, MOODS, TINY, sentences, write_csv
from safetensors.torch import load_file
from scripts import read_record, run_forked, run_script, words
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from chinchilla_hf.conversion import convert_to_bert

SHORT = FAST | {"num_train_epochs": 2, "augmented_copies": 3, "report_to": "none"}


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """A folder with `reviews.csv`, a teacher of it, and the same teacher as a BERT."""
    folder = tmp_path_factory.mktemp("taught")
    write_csv(folder / "reviews.csv", sentences(240, moods=tuple(MOODS)))
    shape = TINY | {"num_hidden_layers": 2, "norm_placement": "post", "position_embedding_type": "learned"}
    options = {"dataset": folder / "reviews.csv", **shape, **FAST, "hidden_act": "gelu", "baseline": False}
    options |= {"learning_rate": 2e-3, "num_train_epochs": 12, "early_stopping_patience": 0}
    ended = run_forked("classify", {**options, "output_dir": folder / "teacher"})
    assert ended.code == 0, ended.errors
    teacher = AutoModelForSequenceClassification.from_pretrained(folder / "teacher")
    convert_to_bert(teacher).save_pretrained(folder / "bert")
    AutoTokenizer.from_pretrained(folder / "teacher").save_pretrained(folder / "bert")
    return folder


@pytest.fixture
def distill(monkeypatch, capsys, taught, tmp_path):
    """Run the script in this process; what it printed."""

    def run(**options: object) -> str:
        given = {
            "dataset": taught / "reviews.csv",
            "teacher": taught / "teacher",
            "teacher_cache_dir": tmp_path / "cache",
        }
        run_script("distill", monkeypatch, words(given | options))
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("teacher", ["teacher", "bert"])
def test_a_student_of_the_teachers_layers(distill, taught, tmp_path, teacher):
    out = tmp_path / "out"
    printed = distill(teacher=taught / teacher, teacher_layers=[1], intermediate_share=0.5, output_dir=out, **SHORT)
    assert "from the teacher's layers 1, with" in printed and "teacher   linear baseline" in printed
    record = read_record(out)
    assert record["status"] == "finished" and record["data"]["augmented"] > 300
    assert record["scores"]["test"]["accuracy"] >= 0.9 and record["scores"]["teacher"]["test"]["accuracy"] >= 0.9
    assert record["scores"]["teacher"]["agreement"] >= 0.9
    assert record["model"]["parameters"] < record["model"]["teacher"]["parameters"]
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == 1 and config["intermediate_size_by_layer"] == [64]
    classify = pipeline("text-classification", str(out))
    rows = sentences(30, seed=1, moods=tuple(MOODS))
    assert sum(classify(text)[0]["label"] == mood for text, mood in rows) >= 27
    assert (out / "README.md").is_file() and (out / "confusion_matrix.png").is_file()


def test_a_student_of_its_own_shape_that_reads_what_the_teacher_said(distill, taught, tmp_path, monkeypatch):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 80, "max_length": 24}
    distill(**shape, **SHORT | {"num_train_epochs": 4}, output_dir=tmp_path / "out", pooling="mean")
    assert read_record(tmp_path / "out")["scores"]["test"]["accuracy"] >= 0.9
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2  # of the training texts, and of the test

    def asked(*args, **kwargs):
        pytest.fail("asked again")

    monkeypatch.setattr(torch, "inference_mode", asked)
    with pytest.raises(SystemExit, match=r"holds this very run, finished.*--overwrite"):
        distill(**shape, **SHORT | {"num_train_epochs": 4}, output_dir=tmp_path / "out", pooling="mean")


def test_numbers_are_distilled_and_pruned(tmp_path):
    """A number that the share of one symbol tells."""
    rng = random.Random(0)
    rows = [rng.choices("abc", k=10) for _ in range(240)]
    data = [(" ".join(row), 500 + 10 * row.count("b")) for row in rows]
    pd.DataFrame(data, columns=["text", "value"]).to_csv(tmp_path / "numbers.csv", index=False)
    options = {"dataset": tmp_path / "numbers.csv", "label_column": "value", "problem_type": "regression", **FAST}
    options |= {"baseline": False, "report_to": "none"}
    of_teacher = {**TINY, "hidden_size": 48, "num_attention_heads": 3, "pooling": "mean", "num_train_epochs": 10}
    taught = {"augmented_copies": 2, "teacher_cache_dir": tmp_path / "cache", "num_train_epochs": 6}
    of_student = {"teacher": tmp_path / "teacher", "teacher_layers": [0], "intermediate_share": 0.5, **taught}
    of_pruned = {"model": tmp_path / "teacher", "flop_share": 0.7, "stages": 1, **taught}
    for script, folder, of_script in (
        ("classify", "teacher", of_teacher),
        ("distill", "student", of_student),
        ("prune", "pruned", of_pruned),
    ):
        ended = run_forked(script, {**options, **of_script, "output_dir": tmp_path / folder})
        assert ended.code == 0, ended.errors
        assert read_record(tmp_path / folder)["scores"]["test"]["r2"] > 0.8
    assert "agreement" not in read_record(tmp_path / "student")["scores"]["teacher"]


def test_an_interrupted_run_ends_as_if_it_had_not_been(taught, tmp_path):
    options = {
        "dataset": taught / "reviews.csv",
        "teacher": taught / "teacher",
        "teacher_layers": [0],
        "baseline": False,
    }
    options |= {"teacher_cache_dir": tmp_path / "cache", "hidden_dropout": 0.1, **SHORT}
    options |= {"hidden_weight": 1.0, "attention_weight": 1.0}  # with projections that a checkpoint has to keep
    whole = run_forked("distill", {**options, "output_dir": tmp_path / "whole"})
    assert whole.code == 0, whole.errors
    steps = read_record(tmp_path / "whole")["training"]["steps"]
    stopped = run_forked("distill", {**options, "output_dir": tmp_path / "parts"}, signal_at=(steps // 2 + 3, 9))
    assert stopped.code == -9
    again = run_forked("distill", {**options, "output_dir": tmp_path / "parts"})
    assert again.code == 0, again.errors
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    assert not any("projections" in name for name in weights[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_layers": [2]}, r"blocks \[2\] are to stay, expected different ones from 0 to 1"),
        ({"teacher_layers": [0], "attention_weight": 1, "relation_heads": 5}, "relation_heads is 5, but must divide"),
        ({"intermediate_share": 0.5}, "--intermediate_share is of the teacher's layers: give --teacher_layers"),
        (
            {"teacher_layers": [0], "hidden_size": 64},
            "--hidden_size is of a student from scratch, but --te",
        ),
        ({"teacher_layers": [0], "model": "x"}, "--model and --teacher_layers both say where the student starts"),
        ({"teacher": "nowhere/at_all"}, "nowhere/at_all"),
    ],
)
def test_bad_options(distill, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        distill(**options, output_dir=tmp_path / "out", **SHORT)
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_other_labels(distill, tmp_path):
    other = write_csv(tmp_path / "other.csv", [(text, f"{mood}!") for text, mood in sentences(120)])
    with pytest.raises(
        SystemExit, match="the classifier knows 3 labels and the data have 2; only one of them has 'bad!"
    ):
        distill(dataset=other, teacher_layers=[0], output_dir=tmp_path / "out", **SHORT)
    with pytest.raises(SystemExit) as exit_:
        distill(dataset=other, temperature=0, output_dir=tmp_path / "out", **SHORT)
    assert exit_.value.code == 2

"""`training/prune.py` as its users run it: stages, interruptions between and in them, and bad input."""

import json
import signal
from pathlib import Path

import pytest
import torch
from labelled_files import FAST, MOODS, TINY, sentences, write_csv
from safetensors.torch import load_file
from scripts import read_record, run_forked, run_script, words
from transformers import AutoModelForSequenceClassification, Trainer, pipeline

from chinchilla_hf.compression import pruning, targets

SHORT = FAST | {"num_train_epochs": 1, "learning_rate": 1e-3, "augmented_copies": 1, "report_to": "none"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with `reviews.csv`, and a classifier of them."""
    folder = tmp_path_factory.mktemp("trained")
    write_csv(folder / "reviews.csv", sentences(240, moods=tuple(MOODS)))
    shape = TINY | {"num_hidden_layers": 2, "num_attention_heads": 4}
    options = {"dataset": folder / "reviews.csv", **shape, **FAST, "learning_rate": 2e-3, "num_train_epochs": 12}
    options |= {"early_stopping_patience": 0, "baseline": False}
    ended = run_forked("classify", {**options, "output_dir": folder / "whole"})
    assert ended.code == 0, ended.errors
    assert read_record(folder / "whole")["scores"]["test"]["accuracy"] >= 0.9
    return folder


@pytest.fixture
def prune(monkeypatch, capsys, trained, tmp_path):
    """Run the script in this process; what it printed."""

    def run(**options: object) -> str:
        given = {"dataset": trained / "reviews.csv", "model": trained / "whole"}
        given |= {"teacher_cache_dir": tmp_path / "cache"}
        run_script("prune", monkeypatch, words(given | options))
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("importance", ["first_order", "learned", "magnitude"])
def test_a_share_of_the_flops_is_left(prune, trained, tmp_path, importance, monkeypatch):
    out = tmp_path / "out"
    asked = []
    name = f"{importance}_scores"
    score = getattr(pruning, name)
    monkeypatch.setattr(pruning, name, lambda *arguments: asked.append(name) or score(*arguments))
    printed = prune(flop_share=0.4, stages=2, importance=importance, output_dir=out, **SHORT)
    assert len(asked) >= 2  # at every stage
    assert "stage 1 of 2: " in printed and "stage 2 of 2: " in printed and "the target is 40.0%" in printed
    record = read_record(out)
    shares = [stage["flop_share"] for stage in record["training"]["stages"]]
    assert 0.4**0.5 - 0.1 < shares[0] <= 0.4**0.5 and 0.4 - 0.1 < shares[1] <= 0.4
    assert record["training"]["epochs"] == 2 and record["data"]["augmented"] > 100
    assert record["scores"]["test"]["accuracy"] >= 0.9 and record["scores"]["teacher"]["agreement"] >= 0.9
    assert record["model"]["parameters"] < record["model"]["teacher"]["parameters"]
    config = json.loads((out / "config.json").read_text())
    assert sum(config["intermediate_size_by_layer"]) < 256 and not (out / "stages").exists()
    classify = pipeline("text-classification", str(out))
    rows = sentences(30, seed=1, moods=tuple(MOODS))
    assert sum(classify(text)[0]["label"] == mood for text, mood in rows) >= 27
    with pytest.raises(SystemExit, match=r"holds this very run, finished.*--overwrite"):
        prune(flop_share=0.4, stages=2, importance=importance, output_dir=out, **SHORT)


def test_blocks_and_tokens(prune, trained, tmp_path):
    of_tokens = {"hidden_weight": 0.1, "attention_weight": 0.1}
    prune(layers=[1], flop_share=0.5, trim_vocabulary=True, stages=1, output_dir=tmp_path / "out", **of_tokens, **SHORT)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.loads((trained / "whole" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1 and config["vocab_size"] < before["vocab_size"]
    assert config.get("attention_heads_by_layer") is None  # half of the blocks are half of the FLOPs
    assert read_record(tmp_path / "out")["scores"]["test"]["accuracy"] >= 0.9


def test_as_many_parameters_as_are_allowed(prune, trained, tmp_path):
    whole = AutoModelForSequenceClassification.from_pretrained(trained / "whole").num_parameters()
    wanted = int(0.7 * whole)
    prune(max_parameters=wanted, stages=2, output_dir=tmp_path / "out", **SHORT)
    assert 0.6 * whole < read_record(tmp_path / "out")["model"]["parameters"] <= wanted


def test_as_fast_as_is_asked_for(prune, trained, tmp_path, monkeypatch):
    """A clock that reads the neurons: that of the machine would not tell so small a model from a smaller one."""
    neurons = lambda model, length: sum(layer.mlp.up_proj.out_features for layer in model.base_model.layers)  # noqa: E731
    monkeypatch.setattr(targets, "milliseconds_of", neurons)
    printed = prune(max_milliseconds=150, stages=2, output_dir=tmp_path / "out", **SHORT)
    assert "stage 2 of 2: " in printed
    left = json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size_by_layer"]
    assert 100 < sum(left) <= 150
    record = read_record(tmp_path / "out")
    assert 0 < record["training"]["target_share"] < 1


def test_an_interrupted_run_ends_as_if_it_had_not_been(trained, tmp_path):
    """Killed in a stage, after its first checkpoint."""
    options = {"dataset": trained / "reviews.csv", "model": trained / "whole", "flop_share": 0.4, "stages": 2}
    options |= {"teacher_cache_dir": tmp_path / "cache", "baseline": False, **SHORT, "num_train_epochs": 2}
    whole = run_forked("prune", {**options, "output_dir": tmp_path / "whole"})
    assert whole.code == 0, whole.errors
    steps = read_record(tmp_path / "whole")["training"]["stages"][0]["steps"]
    stopped = run_forked("prune", {**options, "output_dir": tmp_path / "parts"}, signal_at=(steps - 2, signal.SIGKILL))
    assert stopped.code == -signal.SIGKILL
    killed = tmp_path / "parts" / "stages" / "1"
    assert killed.is_dir() and not (killed / "model").exists()
    again = run_forked("prune", {**options, "output_dir": tmp_path / "parts"})
    assert again.code == 0, again.errors
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


def test_goes_on_with_the_stage_after_a_finished_one(prune, trained, tmp_path, monkeypatch):
    options = {"flop_share": 0.4, "stages": 2, "baseline": False, **SHORT}
    prune(**options, output_dir=tmp_path / "whole")
    train, trained_stages = Trainer.train, []

    def once(self, *args, **kwargs):
        trained_stages.append(self.args.output_dir)
        if len(trained_stages) == 2:
            raise KeyboardInterrupt
        return train(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="interrupted at step 0 of stage 2"):
        patch.setattr(Trainer, "train", once)
        prune(**options, output_dir=tmp_path / "parts")
    assert (tmp_path / "parts" / "stages" / "1" / "model" / "model.safetensors").is_file()
    prune(**options, output_dir=tmp_path / "parts")
    record = read_record(tmp_path / "parts")
    assert len(record["training"]["stages"]) == 2 and record["training"]["resumed"] == 1
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    prune(**options, output_dir=tmp_path / "parts", overwrite=True)
    assert "resumed" not in read_record(tmp_path / "parts")["training"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flop_share": 0.01}, r"flop_share is 0.01, but a head and 16 neurons in each of the 2 blocks are 0\.\d+"),
        ({"layers": [0, 2]}, r"blocks \[0, 2\] are to stay, expected different ones from 0 to 1"),
        (
            {"max_parameters": 10},
            r"the target is 10 parameters, but a head and 16 neurons in each of the \d blocks",
        ),
        ({"max_milliseconds": 1e-6}, r"the target is 1e-06 milliseconds, but a head .* ask for that"),
        ({"model": "nowhere/at_all"}, "--model nowhere/at_all cannot be loaded"),
    ],
)
def test_bad_options(prune, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        prune(**options, output_dir=tmp_path / "out", **SHORT)
    assert not (tmp_path / "out").exists()


def test_labels_of_another_task_and_another_order(prune, tmp_path):
    other = write_csv(tmp_path / "other.csv", [(text, f"{mood}!") for text, mood in sentences(120)])
    with pytest.raises(SystemExit, match="the classifier knows 3 labels and the data have 2"):
        prune(dataset=other, output_dir=tmp_path / "out", **SHORT)
    with pytest.raises(SystemExit, match="give --class_names in the order of the model"):
        prune(class_names=["mixed", "good", "bad"], output_dir=tmp_path / "out", **SHORT)
    with pytest.raises(SystemExit) as exit_:
        prune(stages=0, output_dir=tmp_path / "out", **SHORT)
    assert exit_.value.code == 2

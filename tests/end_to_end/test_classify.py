"""`training/classify.py` as its users run it: every kind of data and start, interruptions, and bad input."""

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from labelled_files import FAST, MOODS, TINY, sentences, write_csv
from safetensors.torch import load_file
from scripts import Ended, launch, read_record, run_forked, run_script, words
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, Trainer, pipeline

import chinchilla_hf
from chinchilla_hf import ChinchillaForMaskedLM, head_fitting, train_tokenizer
from chinchilla_hf.output_folder import list_checkpoints

RESULT_FILES = {
    "README.md",
    "config.json",
    "configuration_chinchilla.py",
    "model.safetensors",
    "modeling_chinchilla.py",
    "modeling_chinchilla_block.py",
    "modeling_chinchilla_loss.py",
    "modeling_chinchilla_pretrained.py",
    "answer_windows.py",
    "pipeline_chinchilla_answering.py",
    "run.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def classify(monkeypatch, capsys):
    """Run the script in this process; what it printed."""

    def run(*recipe: Path, **options: object) -> str:
        run_script("classify", monkeypatch, [*map(str, recipe), *words(options)])
        return capsys.readouterr().out

    return run


def test_single_label_from_scratch(classify, tmp_path):
    data, out = write_csv(tmp_path / "reviews.csv", sentences(240)), tmp_path / "out"
    printed = classify(dataset=data, **TINY, **FAST, output_dir=out)

    assert {path.name for path in out.iterdir() if path.is_file()} == RESULT_FILES | {
        "confusion_matrix.png",
        "loss.png",
    }
    assert not list(out.glob("checkpoint-*"))
    record = read_record(out)
    assert record["status"] == "finished"
    assert record["data"]["rows"] == {"train": 192, "validation": 24, "test": 24}
    assert record["data"]["label_names"] == ["bad", "good"]
    assert record["scores"]["test"]["accuracy"] >= 0.9  # one word decides
    assert record["scores"]["baseline"]["test"]["accuracy"] >= 0.9
    assert "linear baseline" in printed and f"{record['scores']['test']['macro_f1']:.4f}" in printed

    # The folder is what the scores say: the pipeline makes the same predictions, under the names of the labels.
    classifier = pipeline("text-classification", str(out))
    rows = sentences(60, seed=1)
    right = sum(
        result["label"] == mood for result, (_, mood) in zip(classifier([t for t, _ in rows]), rows, strict=True)
    )
    assert right >= 54
    assert "text-classification" in (out / "README.md").read_text()
    assert (out / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")

    with pytest.raises(SystemExit, match=r"holds this very run, finished.*--overwrite"):
        classify(dataset=data, **TINY, **FAST, output_dir=out)
    with pytest.raises(SystemExit, match=r"holds another run \(num_hidden_layers: 1 -> 2\).*--overwrite"):
        classify(dataset=data, **TINY | {"num_hidden_layers": 2}, **FAST, output_dir=out)
    assert read_record(out) == record


def test_several_labels(classify, tmp_path):
    rows = sentences(200, moods=("good", "bad"))
    rows = [{"text": text, "labels": [mood] + ["music"] * ("music" in text)} for text, mood in rows]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    classify(dataset=tmp_path / "data.jsonl", **TINY, **FAST, output_dir=tmp_path / "out")
    scores = read_record(tmp_path / "out")["scores"]
    assert scores["test"]["macro_f1"] > 0.8 and scores["baseline"]["test"]["macro_f1"] > 0.8
    found = pipeline("text-classification", str(tmp_path / "out"), top_k=None)("the music lovely plot today")[0]
    assert {result["label"] for result in found if result["score"] > 0.5} == {"good", "music"}


def test_regression_on_pairs(classify, tmp_path):
    rng = random.Random(0)
    value = {"good": 1.0, "bad": -1.0}
    pairs = zip(sentences(240, 1), sentences(240, 2), strict=True)
    rows = [(first, second, value[x] + value[y] + rng.gauss(0, 0.1)) for (first, x), (second, y) in pairs]
    pd.DataFrame(rows, columns=["sentence1", "sentence2", "score"]).to_parquet(tmp_path / "pairs.parquet")
    classify(dataset=tmp_path / "pairs.parquet", **TINY, **FAST, output_dir=tmp_path / "out")
    record = read_record(tmp_path / "out")
    assert record["data"]["text_pairs"] is True
    assert record["scores"]["test"]["pearson"] > 0.8
    assert not (tmp_path / "out" / "confusion_matrix.png").exists()


def test_regression_on_strings_of_symbols(classify, tmp_path):
    """A number far from 0 that the share of one symbol tells; "Cl" is one of them, and "C" another."""
    rng = random.Random(0)
    rows = [rng.choices(["C", "Cl", "[Na+]"], k=10) for _ in range(240)]
    data = [("".join(row), 500 + 10 * row.count("Cl")) for row in rows]
    pd.DataFrame(data, columns=["smiles", "value"]).to_csv(tmp_path / "molecules.csv", index=False)
    symbols = {"tokenizer_algorithm": "symbols", "symbol_pattern": r"\[[^\]]+\]|Cl|.", "problem_type": "regression"}
    columns = {"text_column": "smiles", "label_column": "value", "pooling": "mean"}
    classify(dataset=tmp_path / "molecules.csv", **TINY | FAST | symbols | columns, output_dir=tmp_path / "out")
    scores = read_record(tmp_path / "out")["scores"]
    assert scores["test"]["r2"] > 0.8 and scores["baseline"]["test"]["r2"] > 0.99
    assert scores["baseline"]["model"].startswith("n-grams of symbols + ridge")
    predict = pipeline("text-classification", str(tmp_path / "out"), function_to_apply="none")
    assert predict.tokenizer.tokenize("ClC[Na+]") == ["Cl", "C", "[Na+]"]
    assert abs(predict("ClC" * 5)[0]["score"] - 550) < 20


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A BERT, a Chinchilla and a GPT-2 of one tokenizer, 32 positions."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = train_tokenizer(
        [text for text, _ in sentences(100)], vocab_size=300, model_max_length=32, show_progress=False
    )
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    models = {
        "bert": BertForMaskedLM(BertConfig(**shape, intermediate_size=64, max_position_embeddings=32)),
        "chinchilla": ChinchillaForMaskedLM(chinchilla_hf.ChinchillaConfig(**shape, max_position_embeddings=32)),
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=32)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("start", ["bert", "chinchilla"])
def test_from_a_checkpoint(classify, tmp_path, checkpoints, start):
    data = write_csv(tmp_path / "reviews.csv", sentences(400, moods=tuple(MOODS)))
    out = tmp_path / "out"
    classify(dataset=data, model=checkpoints / start, **FAST, output_dir=out, pooling="mean")
    record = read_record(out)
    assert record["model"]["base_model"] == str(checkpoints / start)
    assert record["scores"]["test"]["accuracy"] > 0.8
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["pooling"]) == ("chinchilla", "mean")
    assert config["norm_placement"] == ("post" if start == "bert" else "output")
    before, after = AutoTokenizer.from_pretrained(checkpoints / start), AutoTokenizer.from_pretrained(out)
    assert before.get_vocab() == after.get_vocab()


def test_a_fitted_classifier_and_frozen_embeddings(classify, tmp_path, checkpoints, monkeypatch):
    """Interrupted after the first checkpoint: the classifier goes on from there and is not fitted again."""
    data, out = write_csv(tmp_path / "reviews.csv", sentences(400, moods=tuple(MOODS))), tmp_path / "out"
    options = {"dataset": data, "model": checkpoints / "bert", **FAST, "num_train_epochs": 4, "output_dir": out}
    options |= {"pooling": "mean", "pooler_type": "normalized", "fit_head_first": True, "freeze_embeddings": True}
    options |= {"activation_checkpointing": True, "baseline": False}
    save = Trainer._save_checkpoint

    def save_and_interrupt(*args: object) -> None:
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="interrupted at step 40"):
        patch.setattr(Trainer, "_save_checkpoint", save_and_interrupt)
        classify(**options)
    head = read_record(out)["training"]["head"]
    assert head["validation_score"] > 0.4 and head["seconds"] > 0  # of three classes

    monkeypatch.setattr(head_fitting, "fit_head", lambda *_, **__: pytest.fail("fitted again"))
    classify(**options)
    record = read_record(out)
    assert record["training"]["head"] == head and record["training"]["resumed"] == 1
    assert record["scores"]["test"]["accuracy"] > 0.8
    assert json.loads((out / "config.json").read_text())["pooler_type"] == "normalized"
    before, after = load_file(checkpoints / "bert" / "model.safetensors"), load_file(out / "model.safetensors")
    assert torch.equal(after["model.embeddings.embed_tokens.weight"], before["bert.embeddings.word_embeddings.weight"])
    assert not torch.equal(
        after["model.embeddings.embed_positions.weight"], before["bert.embeddings.position_embeddings.weight"]
    )


def test_lora_is_interrupted_goes_on_and_leaves_a_plain_checkpoint(classify, tmp_path, checkpoints, monkeypatch):
    pytest.importorskip("peft")
    data, out = write_csv(tmp_path / "reviews.csv", sentences(160)), tmp_path / "out"
    options = {"dataset": data, "model": checkpoints / "bert", **FAST, "num_train_epochs": 3, "output_dir": out}
    options |= {"lora_rank": 4, "lora_dropout": 0.1, "layer_decay": 0.9, "learning_rate": 2e-2, "baseline": False}
    options |= {"token_dropout": 0.1}
    options |= {"fit_head_first": True, "pooling": "mean", "pooler_type": "normalized"}
    save = Trainer._save_checkpoint

    def save_and_interrupt(*args: object) -> None:
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="interrupted at step 16"):
        patch.setattr(Trainer, "_save_checkpoint", save_and_interrupt)
        classify(**options)
    printed = classify(**options)
    assert f"from {checkpoints / 'bert'}: the body; fresh: classifier (66 parameters)\ntraining " in printed
    record = read_record(out)
    assert record["training"]["resumed"] == 1 and record["model"]["class"] == "ChinchillaForSequenceClassification"
    assert record["model"]["trained_parameters"] < record["model"]["parameters"] / 3
    assert record["scores"]["test"]["accuracy"] > 0.8
    assert {path.name for path in out.iterdir() if path.is_file()} == RESULT_FILES | {
        "confusion_matrix.png",
        "loss.png",
    }
    weights = load_file(out / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in weights)

    classify(**options | {"output_dir": tmp_path / "straight"})
    straight = load_file(tmp_path / "straight" / "model.safetensors")
    assert weights.keys() == straight.keys()
    assert all(torch.equal(weights[name], straight[name]) for name in straight)
    before = load_file(checkpoints / "bert" / "model.safetensors")
    assert torch.equal(
        weights["model.layers.0.mlp_norm.weight"], before["bert.encoder.layer.0.output.LayerNorm.weight"]
    )


def test_two_processes_train_a_part(tmp_path, checkpoints):
    pytest.importorskip("peft")
    data = write_csv(tmp_path / "reviews.csv", sentences(160))
    options = {"dataset": data, "model": checkpoints / "bert", **FAST, "bf16": False, "baseline": False}
    options |= {"lora_rank": 4, "freeze_embeddings": True, "layer_decay": 0.8, "pooling": "mean"}
    options |= {"per_device_train_batch_size": 4, "learning_rate": 2e-2}
    ended = run_forked("classify", options | {"output_dir": tmp_path / "out"}, processes=2)
    assert ended.code == 0, ended.errors
    assert read_record(tmp_path / "out")["scores"]["test"]["accuracy"] > 0.8


def test_own_files_for_every_split_and_a_recipe(classify, tmp_path):
    files = {
        name: write_csv(tmp_path / f"{name}.csv", sentences(60, seed)) for seed, name in enumerate(("a", "b", "c"))
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"dataset: {files['a']}\ntest_file: {files['c']}\noutput_dir: {tmp_path / 'out'}\nbaseline: false\n"
    )
    classify(recipe, validation_file=files["b"], **TINY, **FAST | {"num_train_epochs": 1}, max_rows=50)
    record = read_record(tmp_path / "out")
    assert record["data"]["rows"] == {"train": 50, "validation": 50, "test": 50}
    assert "baseline" not in record["scores"]


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Under torchrun, as users start them."""
    data = write_csv(tmp_path / "reviews.csv", sentences(240))
    options = {"dataset": data, **TINY, **FAST, "num_train_epochs": 2, "bf16": False, "baseline": False}
    records = []
    for processes in (1, 2):
        share = {"per_device_train_batch_size": 8 // processes, "output_dir": tmp_path / str(processes)}
        start = options | share
        ended = launch("classify", 2, start) if processes == 2 else run_forked("classify", start)
        assert ended.code == 0 and ended.output.count("train  ") == 1, ended.errors
        records.append(read_record(tmp_path / str(processes)))
    assert records[0]["training"]["steps"] == records[1]["training"]["steps"] == 48
    assert records[1]["scores"]["test"]["accuracy"] > 0.8


def test_two_processes_start_from_one_fitted_classifier(tmp_path, checkpoints):
    data = write_csv(tmp_path / "reviews.csv", sentences(160, moods=tuple(MOODS)))
    options = {"dataset": data, "model": checkpoints / "bert", "pooling": "mean", "bf16": False, "baseline": False}
    # Steps that move nothing: what is left at the end is what was fitted.
    options |= FAST | {"learning_rate": 0, "max_steps": 2, "fit_head_first": True, "freeze_embeddings": True}
    ended = run_forked("classify", options | {"output_dir": tmp_path / "out"}, processes=2)
    assert ended.code == 0, ended.errors
    record = read_record(tmp_path / "out")
    # Each process scores half of the rows.
    assert record["scores"]["validation"]["accuracy"] == record["training"]["head"]["validation_score"]


# ---- Bad input ends before any training, with one line, and leaves nothing behind ----


def broken(folder: Path, source: Path, change) -> Path:
    shutil.copytree(source, folder)
    change(folder / "model.safetensors")
    return folder


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scramble_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8:40] = os.urandom(32)
    path.write_bytes(bytes(content))


BAD_DATA = {
    "empty": ([], {}, "has no rows"),
    "no text left": ([("", "good"), (" ", "bad")] * 20, {}, "no row of split 'train' has both text"),
    "one class": ([(text, "good") for text, _ in sentences(40)], {}, "holds one class only, 'good'"),
    "class without a row": (sentences(40), {"class_names": ["good", "bad", "ugly"]}, "no training row: 'ugly'"),
    "no such label column": (sentences(40), {"label_column": "mood"}, "label_column is 'mood', but the columns are"),
    "text is not text": (
        [(i, mood) for i, (_, mood) in enumerate(sentences(40))],
        {"text_column": "text"},
        "holds .*not text",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(classify, tmp_path, case):
    rows, options, message = BAD_DATA[case]
    data = tmp_path / "data.parquet"
    pd.DataFrame(rows, columns=["text", "label"]).to_parquet(data)
    with pytest.raises(SystemExit, match=rf"(?s)^error: .*{message}"):
        classify(dataset=data, **TINY, **FAST, output_dir=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_labels_of_the_test_set_that_training_never_saw(classify, tmp_path):
    train = write_csv(tmp_path / "train.csv", sentences(40))
    test = write_csv(tmp_path / "test.csv", sentences(20, 1, tuple(MOODS)))
    with pytest.raises(SystemExit, match=r"error: 6 of the 20 rows of split 'test' .*training never saw: 'mixed'"):
        classify(dataset=train, test_file=test, **TINY, **FAST, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


BAD_OPTIONS = {
    "no embeddings to freeze": ({"freeze_embeddings": True}, "--freeze_embeddings is for a pretrained model"),
    "no layers to freeze": ({"freeze_layers": 1}, "--freeze_layers is for a pretrained model"),
    "nothing to slow down": ({"layer_decay": 0.9}, "--layer_decay is for a pretrained model"),
    "no features to fit a head to": ({"fit_head_first": True}, "--fit_head_first is for a pretrained model"),
    "width": ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size.*30.*num_attention_heads.*4"),
    "activation": ({"hidden_act": "swish2"}, "hidden_act.*swish2"),
    "no such model": ({"model": "/no/such/folder"}, "/no/such/folder"),
    "recipe package": ({"model": "package://no_such_package/model"}, "no_such_package.*not installed"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(classify, tmp_path, case):
    options, message = BAD_OPTIONS[case]
    data = write_csv(tmp_path / "data.csv", sentences(40))
    options = options if "model" in options else TINY | options
    with pytest.raises(SystemExit, match=rf"(?s)^error: .*{message}"):
        classify(dataset=data, **FAST, output_dir=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_tokens_cannot_be_hidden_without_a_mask_token(classify, tmp_path, checkpoints):
    data, model = write_csv(tmp_path / "data.csv", sentences(40)), tmp_path / "model"
    shutil.copytree(checkpoints / "bert", model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(model)
    with pytest.raises(SystemExit, match=r"^error: token_dropout is 0.1, but the tokenizer has no mask token"):
        classify(dataset=data, model=model, token_dropout=0.1, **FAST, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("option", "value"), [("norm_placement", "middle"), ("position_embedding_type", "sine")])
def test_choices_are_told(classify, tmp_path, capsys, option, value):
    with pytest.raises(SystemExit):
        classify(dataset="data.csv", **{option: value}, output_dir=tmp_path / "out")
    assert f"argument --{option}" in (error := capsys.readouterr().err) and f"invalid choice: '{value}'" in error
    assert not (tmp_path / "out").exists()


BAD_MODELS = {
    "cut short": (lambda tmp, given: broken(tmp / "m", given / "chinchilla", cut_short), "model.safetensors"),
    "scrambled": (lambda tmp, given: broken(tmp / "m", given / "chinchilla", scramble_header), "model.safetensors"),
    "BERT cut short": (lambda tmp, given: broken(tmp / "m", given / "bert", cut_short), "model.safetensors"),
    "another model type": (lambda tmp, given: given / "gpt2", "gpt2"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_checkpoints(classify, tmp_path, checkpoints, case):
    make, message = BAD_MODELS[case]
    data = write_csv(tmp_path / "data.csv", sentences(40))
    with pytest.raises(SystemExit, match=rf"(?s)^error: .*{message}"):
        classify(dataset=data, model=make(tmp_path, checkpoints), **FAST, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_tokens_than_positions(classify, tmp_path, checkpoints):
    data = write_csv(tmp_path / "data.csv", sentences(40))
    start = {"dataset": data, "model": checkpoints / "chinchilla", **FAST, "output_dir": tmp_path / "out"}
    with pytest.raises(SystemExit, match="error: --max_length is 40, but the model has 32 positions"):
        classify(**start, max_length=40)
    with pytest.raises(SystemExit, match="error: --hidden_size 64 is for a model from scratch"):
        classify(**start, hidden_size=64)
    assert not (tmp_path / "out").exists()


def test_transfer_options_that_do_not_fit(classify, tmp_path, checkpoints):
    pytest.importorskip("peft")
    data = write_csv(tmp_path / "data.csv", sentences(40))
    start = {"dataset": data, "model": checkpoints / "chinchilla", **FAST, "output_dir": tmp_path / "out"}
    with pytest.raises(SystemExit, match="error: freeze_layers is 2, but the model has 1 layers"):
        classify(**start, freeze_layers=2)
    with pytest.raises(SystemExit, match=r"error: lora_targets has 'query', which matches no linear layer.*q_proj"):
        classify(**start, lora_rank=4, lora_targets=["query"])
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_left_alone(classify, tmp_path):
    data = write_csv(tmp_path / "data.csv", sentences(40))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="is not empty, and holds no run of ours"):
        classify(dataset=data, **TINY, **FAST, output_dir=tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


# ---- Interruptions ----


def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(classify, tmp_path):
    """Killed (-9) after the first checkpoint, then stopped with Ctrl-C after another one."""
    data = write_csv(tmp_path / "data.csv", sentences(200))
    options = {"dataset": data, **TINY, **FAST, "num_train_epochs": 10, "hidden_dropout": 0.1, "baseline": False}
    options |= {"early_stopping_patience": 0, "save_total_limit": 3}
    straight, out = tmp_path / "straight", tmp_path / "out"

    def stop(step: int, number: signal.Signals) -> Ended:
        ended = run_forked("classify", options | {"output_dir": out}, signal_at=(step, number))
        assert not (out / "model.safetensors").exists()
        return ended

    steps = 160 // 8
    assert stop(2 * steps + 7, signal.SIGKILL).code == -signal.SIGKILL
    assert [path.name for path in list_checkpoints(out)] == [f"checkpoint-{steps}", f"checkpoint-{2 * steps}"]
    # What a kill in the middle of saving leaves: the newest checkpoint is no checkpoint.
    half = out / f"checkpoint-{100 * steps}"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"\0" * 1000)
    ended = stop(6 * steps + 7, signal.SIGINT)
    assert ended.code == 1 and "the same command goes on from the last checkpoint" in ended.errors
    assert f"removing {half}" in ended.errors and "Traceback" not in ended.errors

    classify(**options, output_dir=out)
    classify(**options, output_dir=straight)
    resumed, whole = read_record(out), read_record(straight)
    assert resumed["training"]["resumed"] == 2
    assert resumed["scores"] == whole["scores"]
    for name in ("steps", "epochs", "examples", "tokens", "best_step"):
        assert resumed["training"][name] == whole["training"][name], name
    weights = load_file(out / "model.safetensors"), load_file(straight / "model.safetensors")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])

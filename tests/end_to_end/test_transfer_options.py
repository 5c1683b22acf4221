"""The options of `TransferArguments` that the trainer carries out, in the scripts that share them."""

import json

import pytest
import torch
from conftest import make_tiny_config
from safetensors.torch import load_file
from scripts import run_forked, run_script, words

from chinchilla_hf import ChinchillaForMaskedLM, train_tokenizer
from chinchilla_hf.trainer import FineTuningTrainer

WAYS = {"layer_decay": 0.9, "token_dropout": 0.1, "adversarial_epsilon": 0.3}
TEXT = "Anna lives in Bonn"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_tokenizer([TEXT], vocab_size=200, model_max_length=32, show_progress=False)
    tokenizer.save_pretrained(folder)
    ChinchillaForMaskedLM(make_tiny_config(vocab_size=len(tokenizer))).save_pretrained(folder)
    return folder


def labelled_texts(folder):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({"text": f"{TEXT} {i}", "label": "ab"[i % 2]}) + "\n" for i in range(40)))
    return path


def labelled_words(folder):
    path = folder / "data.conll"
    path.write_text("".join(f"Anna B-P\nlives O\nin O\nBonn B-L\n{i} O\n\n" for i in range(40)))
    return path


def questions(folder):
    path = folder / "data.jsonl"
    answers = {"text": ["Bonn"], "answer_start": [TEXT.index("Bonn")]}
    rows = [{"id": str(i), "question": f"Where {i}?", "context": f"{TEXT} {i}", "answers": answers} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("script", "write"), [("classify", labelled_texts), ("tag", labelled_words), ("answer", questions)]
)
def test_reach_the_trainer(script, write, checkpoint, tmp_path, monkeypatch, capsys):
    reached = []

    def stop(trainer, **kwargs):
        reached.append({name: getattr(trainer, name) for name in WAYS})
        raise KeyboardInterrupt

    monkeypatch.setattr(FineTuningTrainer, "train", stop)
    options = {"dataset": write(tmp_path), "model": checkpoint, "output_dir": tmp_path / "out", **WAYS}
    with pytest.raises(SystemExit, match="interrupted at step 0"):
        run_script(script, monkeypatch, words(options))
    assert reached == [WAYS]
    assert (
        "(rates 0.9 times those of the next layer; 0.1 of the tokens hidden; the table of tokens moved by 0.3 "
        "lengths against the model)"
    ) in capsys.readouterr().out


def test_two_processes_move_a_table_each(checkpoint, tmp_path):
    options = {"dataset": labelled_texts(tmp_path), "model": checkpoint, "output_dir": tmp_path / "out", **WAYS}
    options |= {"max_steps": 4, "per_device_train_batch_size": 4, "hidden_dropout": 0, "baseline": False}
    weights = []
    for epsilon in (0.3, 0):
        ended = run_forked("classify", options | {"adversarial_epsilon": epsilon, "overwrite": True}, processes=2)
        assert ended.code == 0, ended.errors
        weights.append(load_file(tmp_path / "out" / "model.safetensors")["classifier.weight"])
    assert not torch.equal(*weights)  # no other random numbers: what differs is the move

"""The options of `TransferArguments` that the trainer carries out, in the scripts that share them."""

import json

import pytest
from conftest import make_tiny_config
from scripts import run_script, words

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
        "(rates 0.9 times those of the next layer; 0.1 of the tokens hidden; the table of tokens moved by 0.3 against "
        "the model)"
    ) in capsys.readouterr().out


def test_models_from_scratch_have_some_of_them(tmp_path, monkeypatch, capsys):
    reached = []
    monkeypatch.setattr(FineTuningTrainer, "train", lambda trainer, **_: reached.append(trainer) or 1 / 0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 200}
    ways = {name: WAYS[name] for name in ("token_dropout", "adversarial_epsilon")}
    options = {"dataset": labelled_texts(tmp_path), "output_dir": tmp_path / "out", **shape}
    with pytest.raises(ZeroDivisionError):
        run_script("classify", monkeypatch, words(options | ways))
    (trainer,) = reached
    assert {name: getattr(trainer, name) for name in ways} == ways
    with pytest.raises(SystemExit, match="--layer_decay is for a pretrained model"):
        run_script("classify", monkeypatch, words(options | WAYS))

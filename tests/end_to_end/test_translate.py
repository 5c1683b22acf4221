"""`training/translate.py` as its users run it, on a language of which every word has one translation."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load_file
from scripts import TRAINING, read_record, run_forked, run_script, words
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from chinchilla_hf import ChinchillaForConditionalGeneration
from chinchilla_hf.output_folder import list_checkpoints

WORDS = {"dog": "Hund", "cat": "Katze", "man": "Mann", "runs": "rennt", "sits": "sitzt", "and": "und", "the": "der"}
TINY = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "dropout": 0,
    "label_smoothing": 0.05,
    "max_length": 24,
    "max_tokens": 256,
    "num_beams": 2,
    "learning_rate": 5e-3,
    "warmup_share": 0.1,
    "logging_steps": 5,
    "disable_tqdm": True,
    "report_to": "none",
}


@pytest.fixture
def translate(monkeypatch, capsys):
    """Run the script in this process; what it printed."""

    def run(**options: object) -> str:
        run_script("translate", monkeypatch, words(options))
        return capsys.readouterr().out

    return run


def write_pairs(folder: Path, count: int = 200) -> Path:
    rng = random.Random(0)
    folder.mkdir()
    texts = [rng.choices(list(WORDS), k=rng.randint(2, 6)) for _ in range(count)]
    for split, rows in (("train", texts[:-40]), ("val", texts[-40:-20]), ("test", texts[-20:])):
        (folder / f"{split}.en").write_text("".join(" ".join(text) + "\n" for text in rows))
        (folder / f"{split}.de").write_text("".join(" ".join(map(WORDS.get, text)) + "\n" for text in rows))
    return folder


def test_learns_a_language_and_translates_files(translate, tmp_path, monkeypatch):
    data, out = write_pairs(tmp_path / "data"), tmp_path / "out"
    schedule = {"max_steps": 500, "eval_steps": 100, "save_steps": 50, "average_checkpoints": 3}
    printed = translate(dataset=data, output_dir=out, license="mit", **TINY, **schedule)
    record = read_record(out)
    assert record["status"] == "finished" and record["task"] == "translation"
    assert record["scores"]["test"]["bleu"] > 80 and record["scores"]["test"]["chrf"] > 80
    assert record["scores"]["baseline"]["test"]["bleu"] < 40
    assert record["scores"]["test"]["bleu_interval"][0] > record["scores"]["baseline"]["test"]["bleu_interval"][1]
    assert record["training"]["steps"] == 500 and not list_checkpoints(out)
    for text in ("test: BLEU", "nrefs:1", "translation  "):
        assert text in printed
    card = (out / "README.md").read_text()
    assert f"| test | {record['scores']['test']['bleu']:.2f} (" in card and "pipeline_tag: translation" in card
    assert "\nlicense: mit\n" in card and "\nlanguage:\n- en\n- de\n" in card
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")

    model = AutoModelForSeq2SeqLM.from_pretrained(out)
    assert type(model) is ChinchillaForConditionalGeneration and model.generation_config.num_beams == 2
    again = pipeline("chinchilla-translation", str(out))("the dog runs\nthe cat sits")
    assert again[0]["translation_text"].count("\n") == 1

    monkeypatch.chdir(tmp_path)
    Path("letter.txt").write_text("the dog runs\n\nthe cat and the dog ☃\n")
    printed = translate(model=out, translate="letter.txt")
    assert "letter.de.txt" in printed
    lines = Path("letter.de.txt").read_text().split("\n")
    assert len(lines) == 4 and lines[1] == lines[3] == "" and lines[0] and lines[2]


def test_languages_with_a_tokenizer_each(translate, tmp_path):
    """One writes in Latin letters and one in Chinese characters, and neither tokenizer has seen those of the other."""
    data, out = write_pairs(tmp_path / "data"), tmp_path / "out"
    characters = dict(zip(["Hund", "Katze", "Mann", "rennt", "sitzt", "und", "der"], "狗猫人跑坐和这", strict=True))
    for path in data.glob("*.de"):
        lines = path.read_text().splitlines()
        path.with_suffix(".zh").write_text("".join("".join(map(characters.get, line.split())) + "\n" for line in lines))
        path.unlink()
    options = {**TINY, "vocab_size": 300, "separate_tokenizers": True, "max_steps": 300, "average_checkpoints": 1}
    translate(dataset=data, target_language="zh", output_dir=out, **options, eval_steps=300, save_steps=300)
    record = read_record(out)
    assert record["scores"]["test"]["bleu"] > 20 and "tok:zh" in record["scores"]["test"]["bleu_signature"]
    source, target = (AutoTokenizer.from_pretrained(out, subfolder=name) for name in ("", "target_tokenizer"))
    assert len(source.tokenize("the dog")) == 2 and len(target.tokenize("the dog")) > 2
    for tokenizer in (source, target):  # through bytes
        assert tokenizer.decode(tokenizer("Ωμέγα ☃ 狗")["input_ids"], skip_special_tokens=True) == "Ωμέγα ☃ 狗"
    model = AutoModelForSeq2SeqLM.from_pretrained(out)
    assert not model.config.share_embeddings and model.num_parameters() == record["model"]["parameters"]
    assert model.lm_head.weight is model.model.decoder.embeddings.embed_tokens.weight

    text = "the dog runs and the cat sits"
    translated = pipeline("chinchilla-translation", str(out))(text)
    assert set(translated[0]["translation_text"]) <= set("狗猫人跑坐和这")
    script = f"""
import sys
sys.modules["chinchilla_hf"] = None
from transformers import pipeline
translate = pipeline("translation", {str(out)!r}, trust_remote_code=True)
translate.save_pretrained("copy")
for name in ({str(out)!r}, "copy"):
    print(ascii(pipeline("translation", name, trust_remote_code=True)({text!r})[0]["translation_text"]))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [ascii(translated[0]["translation_text"])] * 2


def test_the_finished_folder_is_uploaded(tmp_path):
    """To a server that speaks the Hub's protocol, without what the training leaves."""
    options = {**TINY, "max_steps": 4, "save_steps": 2, "keep_checkpoints": True, "push_to_hub": True}
    out = tmp_path / "out"
    options |= {"dataset": write_pairs(tmp_path / "data"), "output_dir": out, "hub_model_id": "mine"}
    with HubServer() as hub:
        command = [sys.executable, str(TRAINING / "translate.py"), *words(options)]
        environment = hub.environment(tmp_path / "home")
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert list_checkpoints(out) and f"pushed to {hub.endpoint}/me/mine" in ended.stdout
        files = set(hub.files("me/mine"))
    assert {"model.safetensors", "pipeline_chinchilla.py", "README.md", "run.json"} < files
    assert not any(name.startswith("checkpoint-") for name in files)


def test_an_interrupted_run_ends_as_if_it_had_not_been(translate, tmp_path):
    options = {"dataset": write_pairs(tmp_path / "data"), **TINY, "dropout": 0.1, "max_steps": 24}
    options |= {"eval_steps": 8, "save_steps": 8, "average_checkpoints": 1}
    out, straight = tmp_path / "out", tmp_path / "straight"
    assert run_forked("translate", options | {"output_dir": out}, signal_at=(11, signal.SIGKILL)).code == -9
    ended = run_forked("translate", options | {"output_dir": out}, signal_at=(14, signal.SIGTERM))
    assert ended.code == 1 and "the same command goes on from there" in ended.errors
    translate(**options, output_dir=out)
    translate(**options, output_dir=straight)
    weights = [load_file(folder / "model.safetensors") for folder in (out, straight)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    resumed, whole = read_record(out), read_record(straight)
    assert resumed["training"]["resumed"] == 2 and resumed["scores"] == whole["scores"]


def test_a_time_budget_ends_the_run(translate, tmp_path):
    out = tmp_path / "out"
    translate(dataset=write_pairs(tmp_path / "data"), output_dir=out, **TINY, max_minutes=0.03, decay="inverse_sqrt")
    assert read_record(out)["training"]["steps"] >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "nothing.tsv"}, "there is no file or folder 'nothing.tsv'"),
        ({"source_language": "fr"}, r"no two files that differ in their endings \.fr and \.de only"),
        ({"max_tokens": 8}, "max_tokens is 8, but the longest pair has"),
        ({"max_length": 3}, "longer than --max_length 3"),
        ({"vocab_size": 100}, "vocab_size is 100"),
        ({"translate": "letter.txt"}, "--translate needs --model"),
    ],
)
def test_bad_input(translate, tmp_path, options, message):
    data = write_pairs(tmp_path / "data")
    with pytest.raises(SystemExit, match=message):
        translate(**{"dataset": data, **TINY, "output_dir": tmp_path / "out", "max_steps": 5, **options})
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "give label_smoothing"),
        ({"save_total_limit": 2}, "save_total_limit is 2, but average_checkpoints is 5"),
        ({"average_checkpoints": 0}, "average_checkpoints is 0"),
        ({"decay": "inverse_sqrt", "warmup_share": 0}, "raise warmup_share"),
    ],
)
def test_options_that_do_not_fit(translate, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        translate(**{"dataset": tmp_path, **TINY, "output_dir": tmp_path / "out", **options})
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()

"""`training/tag.py` as its users run it: data, starts, the pipeline on the result, interruptions, and bad input."""

import json
import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripts import read_record, run_forked, run_script, words
from test_classify import RESULT_FILES
from transformers import BertConfig, BertForMaskedLM, pipeline

import chinchilla_hf
from chinchilla_hf import ChinchillaForMaskedLM, train_tokenizer
from chinchilla_hf.output_folder import list_checkpoints

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 120,
    "max_length": 32,
    "hidden_dropout": 0,
}
FAST = {"learning_rate": 1e-2, "num_train_epochs": 6, "per_device_train_batch_size": 8, "disable_tqdm": True}

FIRST = ["Jörg", "Anna", "Zoë", "Ömer", "Paul"]
LAST = ["Müller", "Weiß", "Groß", "Schäfer", "Özgür"]
TOWNS = ["Köln", "Düsseldorf", "Bonn", "Lübeck", "北京", "上海"]
FILLERS = ["heute", "wieder", "nicht", "gern"]


def sentences(count: int, seed: int = 0) -> list[list[tuple[str, str]]]:
    """Different sentences with people of one or two words, and towns; Chinese ones have a word a character."""
    rng = random.Random(seed)
    rows: dict[str, list[tuple[str, str]]] = {}
    while len(rows) < count:
        name = [(rng.choice(FIRST), "B-PER"), *([(rng.choice(LAST), "I-PER")] if rng.random() < 0.7 else [])]
        town = rng.choice(TOWNS)
        parts = list(town) if town[0] > "\u4e00" else [town]
        place = [(part, "I-LOC" if i else "B-LOC") for i, part in enumerate(parts)]
        row = [*name, ("wohnt", "O"), (rng.choice(FILLERS), "O"), ("in", "O"), *place, (".", "O")]
        rows.setdefault(" ".join(token for token, _ in row), row)
    return list(rows.values())


def write_columns(path: Path, rows: list[list[tuple[str, str]]]) -> Path:
    path.write_text("\n".join("".join(f"{token} {label}\n" for token, label in row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def tag(monkeypatch, capsys):
    """Run the script in this process; what it printed."""

    def run(*recipe: Path, **options: object) -> str:
        run_script("tag", monkeypatch, [*map(str, recipe), *words(options)])
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A BERT and a Chinchilla of one tokenizer, 32 positions."""
    folder = tmp_path_factory.mktemp("checkpoints")
    texts = [" ".join(token for token, _ in row) for row in sentences(100)]
    tokenizer = train_tokenizer(texts, vocab_size=200, model_max_length=32, show_progress=False)
    shape = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    models = {
        "bert": BertForMaskedLM(BertConfig(**shape, intermediate_size=64, max_position_embeddings=32)),
        "chinchilla": ChinchillaForMaskedLM(chinchilla_hf.ChinchillaConfig(**shape, max_position_embeddings=32)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


# A text as people write it, and the entities in it by their characters.
TEXT = "Jörg Müller wohnt nicht in Düsseldorf. Zoë wohnt gern in 上海."
ENTITIES = [("PER", "Jörg Müller"), ("LOC", "Düsseldorf"), ("PER", "Zoë"), ("LOC", "上海")]


@pytest.mark.parametrize("all_subwords", [False, True])
def test_from_scratch_the_pipeline_finds_whole_entities_with_their_characters(tag, tmp_path, all_subwords):
    data, out = write_columns(tmp_path / "data.conll", sentences(240)), tmp_path / "out"
    options = {"dataset": data, **TINY, **FAST, "num_train_epochs": 8, "label_all_subwords": all_subwords}
    printed = tag(**options, output_dir=out)
    assert {path.name for path in out.iterdir() if path.is_file()} == RESULT_FILES and not list_checkpoints(out)
    record = read_record(out)
    assert record["status"] == "finished" and record["data"]["rows"] == {"train": 192, "validation": 24, "test": 24}
    assert record["data"]["label_names"] == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    test, kinds = record["scores"]["test"], record["scores"]["kinds"]
    assert test["f1"] > 0.95 and kinds["LOC"]["number"] == 24 and kinds["PER"]["f1"] > 0.9
    assert record["scores"]["baseline"]["test"]["f1"] > 0.9
    assert "from scratch: all of the model is fresh" in printed and f"{test['f1']:.4f}" in printed

    # "simple" asks every token, and so works where every token was trained on.
    for strategy in ("first", "simple") if all_subwords else ("first",):
        find = pipeline("token-classification", str(out), aggregation_strategy=strategy)
        found = find(TEXT)
        assert [(entity["entity_group"], TEXT[entity["start"] : entity["end"]]) for entity in found] == ENTITIES, (
            strategy
        )
    assert find.tokenizer.tokenize("Düsseldorf") != ["Düsseldorf"]  # several tokens are one entity
    assert 'aggregation_strategy="first"' in (out / "README.md").read_text()

    with pytest.raises(SystemExit, match=r"holds this very run, finished.*--overwrite"):
        tag(**options, output_dir=out)


def test_real_minilm_finds_entities_by_the_characters_of_a_text_in_capitals_and_with_accents(tag, tmp_path, minilm):
    """It puts all in lower case and takes accents away."""
    data, out = write_columns(tmp_path / "data.conll", sentences(120)), tmp_path / "out"
    options = {"dataset": data, "model": minilm, "output_dir": out, "baseline": False, "max_length": 48}
    tag(**options, learning_rate=3e-4, num_train_epochs=4, per_device_train_batch_size=8, disable_tqdm=True)
    find = pipeline("token-classification", str(out), aggregation_strategy="first")
    assert [(entity["entity_group"], TEXT[entity["start"] : entity["end"]]) for entity in find(TEXT)] == ENTITIES


@pytest.mark.parametrize("start", ["bert", "chinchilla"])
def test_from_a_checkpoint(tag, tmp_path, checkpoints, start):
    rows = [{"tokens": [t for t, _ in row], "ner_tags": [label for _, label in row]} for row in sentences(160)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    printed = tag(dataset=tmp_path / "data.jsonl", model=checkpoints / start, **FAST, output_dir=out)
    assert f"from {checkpoints / start}: the body; fresh: classifier (165 parameters)\ntraining " in printed
    record = read_record(out)
    assert record["model"]["base_model"] == str(checkpoints / start)
    assert record["scores"]["test"]["f1"] > 0.9
    assert json.loads((out / "config.json").read_text())["id2label"]["3"] == "B-PER"


def test_parts_of_speech(tag, tmp_path):
    kinds = {"O": "X", "B-PER": "PROPN", "I-PER": "PROPN", "B-LOC": "PROPN", "I-LOC": "PROPN"}
    rows = [[(token, kinds[label]) for token, label in row] for row in sentences(100)]
    data = write_columns(tmp_path / "data.tsv", rows)
    tag(dataset=data, **TINY, **FAST, output_dir=tmp_path / "out")
    record = read_record(tmp_path / "out")
    assert record["data"]["label_names"] == ["PROPN", "X"]
    assert record["scores"]["test"]["f1"] == record["scores"]["test"]["accuracy"] > 0.9


def test_lora_killed_and_stopped_goes_on_to_the_same_bits(tag, tmp_path, checkpoints):
    pytest.importorskip("peft")
    data = write_columns(tmp_path / "data.conll", sentences(100))
    options = {"dataset": data, "model": checkpoints / "bert", **FAST, "baseline": False, "learning_rate": 2e-2}
    options |= {"lora_rank": 4, "lora_dropout": 0.1, "freeze_layers": 1, "layer_decay": 0.9, "hidden_dropout": 0.1}
    options |= {"token_dropout": 0.1}
    out = tmp_path / "out"
    steps = 80 // 8
    for step, number in ((steps + 3, signal.SIGKILL), (4 * steps + 3, signal.SIGINT)):
        ended = run_forked("tag", options | {"output_dir": out}, signal_at=(step, number))
        assert ended.code in (-signal.SIGKILL, 1) and not (out / "model.safetensors").exists()
    assert "the same command goes on from the last checkpoint" in ended.errors and "Traceback" not in ended.errors
    tag(**options, output_dir=out)
    tag(**options, output_dir=tmp_path / "straight")
    resumed, whole = read_record(out), read_record(tmp_path / "straight")
    assert resumed["training"]["resumed"] == 2 and resumed["scores"] == whole["scores"]
    weights, straight = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "straight"))
    assert all(torch.equal(weights[name], straight[name]) for name in straight)
    before = load_file(checkpoints / "bert" / "model.safetensors")
    query = "model.layers.{}.self_attn.q_proj.weight"
    theirs = "bert.encoder.layer.{}.attention.self.query.weight"
    assert torch.equal(weights[query.format(0)], before[theirs.format(0)])
    assert not torch.equal(weights[query.format(1)], before[theirs.format(1)])


def test_the_last_checkpoints_are_averaged_if_that_is_no_worse_on_validation(tag, tmp_path):
    data, out = write_columns(tmp_path / "data.conll", sentences(100)), tmp_path / "out"
    options = {"dataset": data, **TINY, **FAST, "num_train_epochs": 12, "baseline": False, "average_checkpoints": 3}
    tag(**options, keep_checkpoints=True, output_dir=out)
    assert read_record(out)["training"]["averaged"]
    checkpoints = [load_file(path / "model.safetensors") for path in list_checkpoints(out)[-3:]]
    for name, tensor in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(tensor, sum(weights[name] for weights in checkpoints) / 3)


def test_two_processes_score_all_sentences(tmp_path):
    data = write_columns(tmp_path / "data.conll", sentences(102))
    options = {"dataset": data, **TINY, **FAST, "bf16": False, "per_device_train_batch_size": 4}
    ended = run_forked("tag", options | {"output_dir": tmp_path / "out"}, processes=2)
    assert ended.code == 0 and ended.output.count("from scratch") == 1, ended.errors
    scores = read_record(tmp_path / "out")["scores"]
    assert scores["test"]["f1"] > 0.9
    assert scores["kinds"]["LOC"]["number"] == 10  # one a sentence, and none twice


# ---- Bad input ends before any training, with one line, and leaves nothing behind ----


def test_labels_of_another_length_than_the_words(tag, tmp_path):
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}, {"tokens": ["Anna", "wohnt"], "tags": ["O"]}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = r"^error: row 2 of split 'train' \(Anna wohnt ...\) has 2 words in 'tokens', but 1 labels in 'tags'"
    with pytest.raises(SystemExit, match=message):
        tag(dataset=tmp_path / "data.jsonl", **TINY, **FAST, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_class_that_only_the_test_file_has(tag, tmp_path):
    train = write_columns(tmp_path / "train.conll", sentences(40))
    test = write_columns(tmp_path / "test.conll", [*sentences(5, 1), [("x", "B-MISC")]])
    with pytest.raises(SystemExit, match=r"error: 1 of the 6 sentences of split 'test' .* never saw: 'MISC'"):
        tag(dataset=train, test_file=test, **TINY, **FAST, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


BAD_OPTIONS = {
    "no such column": ({"label_column": 5}, "label_column is '5', but the columns are 0"),
    "a tokenizer of running text": ({"tokenizer_algorithm": "bpe", "vocab_size": 400}, "wordpiece or unigram"),
    "frozen noise": ({"freeze_layers": 1}, "--freeze_layers is for a pretrained model"),
    "too long": ({"model": "bert", "max_length": 40}, "--max_length is 40, but the model has 32 positions"),
    "averaged updates": ({"model": "bert", "lora_rank": 2, "average_checkpoints": 2}, "leave out one of the two"),
    "too many layers": ({"model": "bert", "freeze_layers": 3}, "freeze_layers is 3, but the model has 2 layers"),
    "no such layer": (
        {"model": "bert", "lora_rank": 2, "lora_targets": ["query"]},
        "lora_targets has 'query', which matches no linear layer",
    ),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(tag, tmp_path, checkpoints, case):
    options, message = BAD_OPTIONS[case]
    if "lora_rank" in options:
        pytest.importorskip("peft")
    data = write_columns(tmp_path / "data.conll", sentences(40))
    start = options | {"model": checkpoints / options["model"]} if "model" in options else TINY | options
    with pytest.raises(SystemExit, match=rf"(?s)^error: .*{message}"):
        tag(dataset=data, **FAST, output_dir=tmp_path / "out", **start)
    assert not (tmp_path / "out").exists()

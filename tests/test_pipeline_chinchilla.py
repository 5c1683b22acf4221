"""Translation of texts of any length and form, with a model that knows one trick."""

import copy
import subprocess
import sys

import pytest
import torch
from conftest import make_tiny_config, make_tiny_seq2seq_config
from transformers import pipeline

from chinchilla_hf import (
    ChinchillaForConditionalGeneration,
    ChinchillaForMaskedLM,
    ChinchillaTranslationPipeline,
    train_tokenizer,
)
from chinchilla_hf.text_segments import split_text

TEXTS = ["a dog runs", "two men sit on a bench", "Zwei Männer sitzen.", "A dog! And a cat? Yes."] * 5


def words(limit: int):
    return lambda segment: len(segment.split()) <= limit


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("A dog runs.", [("", "A dog runs.")]),
        ("", []),
        ("one\n\n  two \nthree\n", [("", "one"), ("\n\n  ", "two"), (" \n", "three"), ("\n", "")]),
        ("A dog runs. A cat sits! Who?", [("", "A dog runs."), (" ", "A cat sits!"), (" ", "Who?")]),
        ("He said “go on.” Then he went away.", [("", "He said “go on.”"), (" ", "Then he went away.")]),
        ("one two, three four five", [("", "one two,"), (" ", "three four five")]),
        ("one two three four five six", [("", "one two three four"), (" ", "five six")]),
    ],
)
def test_lines_then_sentences_then_clauses_then_words(text, segments):
    found = list(split_text(text, words(4)))
    assert found == segments
    assert "".join(before + segment for before, segment in found) == text


def test_scripts_without_spaces_and_words_without_end():
    chinese = "狗在跑。猫在睡觉，鸟在唱歌。"
    found = list(split_text(chinese, lambda segment: len(segment) <= 6))
    assert [segment for _, segment in found] == ["狗在跑。", "猫在睡觉，", "鸟在唱歌。"]
    found = list(split_text("x" * 50, lambda segment: len(segment) <= 8))
    assert "".join(segment for _, segment in found) == "x" * 50 and all(len(segment) <= 8 for _, segment in found)
    with pytest.raises(ValueError, match="alone is too long"):
        list(split_text("x", lambda segment: False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = train_tokenizer(
        TEXTS, algorithm="bpe", vocab_size=300, model_max_length=16, token_types=False, show_progress=False
    )
    part = {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    torch.manual_seed(0)
    config = make_tiny_seq2seq_config(encoder=part, decoder=part, decoder_start_token_id=tokenizer.cls_token_id)
    path = tmp_path_factory.mktemp("translation")
    ChinchillaForConditionalGeneration(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def translate(folder):
    return pipeline("chinchilla-translation", folder)


def test_registered_under_a_name_of_its_own(translate):
    assert type(translate) is ChinchillaTranslationPipeline


@pytest.mark.parametrize(
    "imports",
    [
        "import chinchilla_hf; from transformers import pipeline",
        "from transformers import pipeline; import chinchilla_hf",
        "from chinchilla_hf import ChinchillaTranslationPipeline; from transformers import pipeline",
        "from chinchilla_hf.pipeline_chinchilla import split_text; from transformers import pipeline",
    ],
)
def test_registered_in_whatever_order_modules_are_imported(imports):
    script = f"""{imports}
from transformers.pipelines import PIPELINE_REGISTRY
print(PIPELINE_REGISTRY.check_task("chinchilla-translation")[1]["impl"].__name__)"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert result.stdout.strip() == "ChinchillaTranslationPipeline", result.stderr


def test_batches_do_not_change_translations(translate):
    texts = ["a dog", "two men sit on a bench\n\na dog runs", "", "  \n", "A dog! " * 20]
    one = translate(texts, batch_size=1, num_beams=2)
    many = translate(texts, batch_size=5, num_beams=2)
    assert one == many == [translate(text, num_beams=2)[0] for text in texts]
    assert [result["translation_text"] for result in one[2:4]] == ["", "  \n"]
    assert one[1]["translation_text"].count("\n") >= 2


def test_a_generator_gives_an_iterator(translate):
    results = translate(text for text in ["a dog", "two men"])
    assert [set(result) for result in results] == [{"translation_text"}] * 2


def test_every_segment_reaches_the_model_whole(translate, monkeypatch):
    """With a model that gives back what it reads, a long text comes back as it was."""

    def echo(input_ids, attention_mask, **kwargs):
        return input_ids

    monkeypatch.setattr(translate.model, "generate", echo)
    text = "A dog runs. Two men sit on a bench, and a dog runs.\n\n\tYes!  " + "Zwei Männer sitzen. " * 5 + "\n"
    assert translate(text, batch_size=3) == [{"translation_text": text}]


def test_wrong_arguments_raise(translate):
    with pytest.raises(ValueError, match="max_length is 1, which leaves no room"):
        translate("a dog", max_length=1)
    with pytest.raises(ValueError, match="max_length is 64, but the model has 32 positions"):
        translate("a dog", max_length=64)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        translate("a dog", max_new_tokens=0)
    with pytest.raises(TypeError, match="int among the texts"):
        translate(["a dog", 3])


def test_characters_that_the_tokenizer_never_saw_reach_the_model(translate):
    text = "Ωμέγα, 狗在跑。☃"
    ids = translate.tokenizer(text)["input_ids"]
    assert translate.tokenizer.unk_token_id not in ids
    assert translate.tokenizer.decode(ids, skip_special_tokens=True) == text
    assert isinstance(translate(text)[0]["translation_text"], str)


def test_what_cannot_translate_raises(folder, translate, tmp_path):
    model, tokenizer = translate.model, copy.deepcopy(translate.tokenizer)
    larger = train_tokenizer(TEXTS + ["quite other words"] * 9, algorithm="bpe", vocab_size=330, show_progress=False)
    with pytest.raises(ValueError, match=r"tokenizer of the targets has 3\d\d tokens, but the model only 300"):
        pipeline("chinchilla-translation", model, tokenizer=tokenizer, target_tokenizer=larger)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="tokenizer of the sources has no padding token"):
        pipeline("chinchilla-translation", model, tokenizer=tokenizer)
    endless = copy.deepcopy(model)
    endless.generation_config.eos_token_id = endless.config.eos_token_id = None
    with pytest.raises(ValueError, match="eos_token_id is not set"):
        pipeline("chinchilla-translation", endless, tokenizer=translate.tokenizer)
    separate = copy.deepcopy(model)
    separate.config.target_tokenizer, separate.name_or_path = "target_tokenizer", ""
    with pytest.raises(ValueError, match="was not loaded from one: pass target_tokenizer"):
        pipeline("chinchilla-translation", separate, tokenizer=translate.tokenizer)


def test_an_encoder_neither_translates_nor_writes(tmp_path):
    tokenizer = train_tokenizer(TEXTS, algorithm="bpe", vocab_size=300, show_progress=False)
    tokenizer.save_pretrained(tmp_path)
    ChinchillaForMaskedLM(make_tiny_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    for task in ("chinchilla-translation", "text-generation"):
        with pytest.raises(ValueError, match=r"(?s)Unrecognized configuration class.*ChinchillaConfig|chinchilla"):
            pipeline(task, str(tmp_path))


def test_the_old_name_works_without_the_package(folder, translate, tmp_path):
    script = f"""
import sys
sys.modules["chinchilla_hf"] = None
from transformers import pipeline
translate = pipeline("translation", {folder!r}, trust_remote_code=True)
print(repr(translate(["a dog", "two men\\nsit"], num_beams=2)))
translate.save_pretrained({str(tmp_path)!r})
print(repr(pipeline("translation", {str(tmp_path)!r}, trust_remote_code=True)(["a dog", "two men\\nsit"], num_beams=2)))
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    expected = repr(translate(["a dog", "two men\nsit"], num_beams=2))
    assert result.stdout.splitlines() == [expected, expected]

"""The released checkpoints in `model_cards/`: each a whole repository of the Hub that does what its card says."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoModel, AutoTokenizer, pipeline

import chinchilla_hf  # noqa: F401  # registers the family
from chinchilla_hf.compression.encoder_distillation import text_vectors
from chinchilla_hf.model_card import rewrite_model_card
from chinchilla_hf.publishing import check_folder, files_of
from chinchilla_hf.run_record import RunRecord

CARDS = Path(__file__).parents[1] / "model_cards"
FOLDERS = sorted(path for path in CARDS.iterdir() if path.is_dir())


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request) -> Path:
    return request.param


def test_they_have_60_megabytes_together_at_most():
    assert [folder.name for folder in FOLDERS] == [
        "chinchilla-mini-en",
        "chinchilla-mini-sentiment",
        "chinchilla-mini-software-en-de",
    ]
    assert sum(path.stat().st_size for folder in FOLDERS for path in files_of(folder)) < 60e6


def test_it_is_ready_for_the_hub(folder):
    """Loads where the package is not, card and licence are there, no pickle, and the code is that of today."""
    assert check_folder(folder) == [], "after a change of the model's code: training/publish.py --refresh_code true"


def test_its_card_is_valid_and_what_the_record_makes_of_it(folder, tmp_path):
    """So that no number of it is typed in by hand: of what a record gives, tests/test_model_card.py has more."""
    card = ModelCard.load(folder / "README.md")
    assert ModelCardData(**card.data.to_dict()).to_dict() == card.data.to_dict()
    again = tmp_path / folder.name / "README.md"
    shutil.copytree(folder, again.parent)
    rewrite_model_card(RunRecord.read(folder / "run.json"), again)
    made, released = (path.read_text(encoding="utf-8") for path in (again, folder / "README.md"))
    assert made == released, "after a change of the templates: chinchilla_hf.model_card.rewrite_model_card"


def test_no_path_of_a_machine_is_in_it(folder):
    for path in files_of(folder):
        if path.suffix in (".json", ".md", ".yaml", ".jinja"):
            assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt)/", path.read_text(encoding="utf-8")), (
                path
            )


def test_the_encoder_is_small_and_finds_like_texts_alike():
    folder = CARDS / "chinchilla-mini-en"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    assert model.num_parameters() <= 6_000_000
    assert model.dtype == torch.float32
    asked = ["how do i reset my password", "what will the weather be like tomorrow", "book a table for two tonight"]
    like = ["i forgot my passcode and need a new one", "is it going to rain in the morning", "reserve a restaurant"]
    alike = text_vectors(model, tokenizer, asked, 64) @ text_vectors(model, tokenizer, like, 64).T
    assert alike.argmax(dim=1).tolist() == [0, 1, 2]


def test_the_classifier_knows_good_from_bad():
    classify = pipeline("text-classification", str(CARDS / "chinchilla-mini-sentiment"))
    texts = ["what a great game, congratulations!", "worst service ever, never again"]
    assert [found["label"] for found in classify(texts)] == ["positive", "negative"]


def test_the_translator_writes_german():
    translate = pipeline("chinchilla-translation", str(CARDS / "chinchilla-mini-software-en-de"))
    (found,) = translate(["This package contains the documentation."])
    assert {"Dieses", "Paket", "enthält", "Dokumentation"} & set(re.findall(r"\w+", found["translation_text"]))


def test_its_record_names_data_and_time(folder):
    record = RunRecord.read(folder / "run.json")
    assert record.status == "finished" and record.data["fingerprint"] and record.training["seconds"] > 0

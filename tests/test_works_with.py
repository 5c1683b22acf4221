"""Other packages take our models as they take any other: peft, sentence-transformers, torchao, TensorBoard."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_config
from datasets import Dataset
from labelled_files import FAST, TINY, sentences, write_csv
from scripts import run_script, words
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer
from transformers import TrainingArguments as PlainArguments

from chinchilla_hf import ChinchillaForSequenceClassification, ChinchillaModel, train_tokenizer

TEXTS = ["a dog barks", "the cat sleeps", "no dog sleeps", "cats bark"] * 4


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = train_tokenizer(TEXTS, vocab_size=60, show_progress=False)
    torch.manual_seed(0)
    ChinchillaForSequenceClassification(make_tiny_config(vocab_size=len(tokenizer), num_labels=2)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def logits_of(model, tokenizer) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**tokenizer(TEXTS[:4], padding=True, return_tensors="pt")).logits


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of a name in Transformers that peft still uses
def test_peft_trains_saves_and_merges(classifier, tmp_path):
    peft = pytest.importorskip("peft", reason="pip install peft")
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    before = logits_of(model, tokenizer)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    rows = Dataset.from_dict({**tokenizer(TEXTS), "labels": [0, 1] * 8})
    arguments = PlainArguments(
        str(tmp_path / "run"), max_steps=3, learning_rate=1e-2, report_to="none", use_cpu=True, disable_tqdm=True
    )
    Trainer(adapted, arguments, DataCollatorWithPadding(tokenizer), rows, processing_class=tokenizer).train()
    after = logits_of(adapted, tokenizer)
    assert not torch.allclose(before, after)
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = AutoModelForSequenceClassification.from_pretrained(classifier)
    loaded = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "adapter"))
    torch.testing.assert_close(logits_of(loaded, tokenizer), after)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, tokenizer), after, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(again, tokenizer), after, atol=1e-5, rtol=1e-5)


SENTENCES = """
import sys
if sys.argv[2] == "elsewhere":
    sys.modules["chinchilla_hf"] = None  # as on a machine without the package
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
print(repr(model.encode(["a dog barks", "the cat sleeps"]).sum().item()))
"""


def test_sentence_transformers_loads_trains_and_encodes(tmp_path):
    package = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    models = pytest.importorskip("sentence_transformers.sentence_transformer.modules", reason="sentence-transformers 6")
    tokenizer = train_tokenizer(TEXTS, vocab_size=60, show_progress=False)
    torch.manual_seed(0)
    ChinchillaModel(make_tiny_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")

    body = models.Transformer(str(tmp_path / "encoder"))
    model = package.SentenceTransformer(
        modules=[body, models.Pooling(body.get_embedding_dimension(), pooling_mode="mean")], device="cpu"
    )
    before = model.encode(TEXTS[:2])
    assert before.shape == (2, 32)
    rows = Dataset.from_dict({"anchor": TEXTS[:8], "positive": TEXTS[8:]})
    arguments = package.SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=2, learning_rate=1e-2, report_to="none", use_cpu=True, disable_tqdm=True
    )
    loss = package.sentence_transformer.losses.MultipleNegativesRankingLoss(model)
    package.SentenceTransformerTrainer(model, arguments, train_dataset=rows, loss=loss).train()
    after = model.encode(TEXTS[:2])
    assert abs(after - before).max() > 1e-4
    model.save_pretrained(str(tmp_path / "saved"))
    for where in ("here", "elsewhere"):
        ended = subprocess.run(
            [sys.executable, "-c", SENTENCES, str(tmp_path / "saved"), where],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        assert float(ended.stdout.strip().splitlines()[-1]) == pytest.approx(float(after.sum()), abs=1e-3)


def test_torchao_quantizes_to_int8(classifier, tmp_path):
    pytest.importorskip("torchao", reason="pip install torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    tokenizer = AutoTokenizer.from_pretrained(classifier)
    full = logits_of(AutoModelForSequenceClassification.from_pretrained(classifier), tokenizer)
    model = AutoModelForSequenceClassification.from_pretrained(
        classifier, quantization_config=TorchAoConfig(Int8WeightOnlyConfig(version=2)), dtype=torch.float32
    )
    small = logits_of(model, tokenizer)
    assert 0 < (small - full).abs().max() < 0.05 * full.abs().max()
    model.save_pretrained(tmp_path / "int8")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "int8")
    torch.testing.assert_close(logits_of(again, tokenizer), small)


def test_tensorboard_gets_the_curves(tmp_path, monkeypatch):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard"
    )
    rows = write_csv(tmp_path / "moods.csv", sentences(80))
    options = FAST | TINY | {"dataset": rows, "output_dir": tmp_path / "run", "num_train_epochs": 1, "logging_steps": 2}
    run_script("classify", monkeypatch, [*words(options | {"report_to": "tensorboard"}), "--no_baseline"])
    files = [path for path in tmp_path.rglob("events.out.tfevents.*")]
    found = set()
    for file in files:
        events = accumulator.EventAccumulator(str(file))
        events.Reload()
        found |= set(events.Tags()["scalars"])
    assert {"train/loss", "eval/loss", "eval/macro_f1"} <= found

"""An exported translator writes what the pipeline writes, without torch, and is refused where it does not."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import make_tiny_seq2seq_config
from huggingface_hub import ModelCard
from transformers import GenerationConfig

from chinchilla_hf import (
    ChinchillaForConditionalGeneration,
    ChinchillaTranslationPipeline,
    export_translation,
    train_tokenizer,
)
from chinchilla_hf.export import ExportRefusedError
from chinchilla_hf.export_translation import export_translator
from chinchilla_hf.runtime import EXPORT_RECORD, OnnxTextClassifier, read_export_record
from chinchilla_hf.runtime_translation import DECODER, QUANTIZED_DECODER, OnnxTranslator

pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")

TEXTS = ["a dog runs", "two men sit on a bench\nand wait.", "", "the dog", "one two three four five six seven men wait"]


@pytest.fixture(scope="module")
def tokenizers():
    """Of the sources, and of the targets."""
    options = {"algorithm": "bpe", "model_max_length": 24, "token_types": False, "show_progress": False}
    return (
        train_tokenizer(TEXTS * 5, vocab_size=300, **options),
        train_tokenizer([text[::-1] for text in TEXTS] * 5, vocab_size=310, **options),
    )


def make_model(source, target, num_beams=3) -> ChinchillaForConditionalGeneration:
    torch.manual_seed(1)
    sizes = {"max_position_embeddings": 32, "initializer_range": 0.3}
    config = make_tiny_seq2seq_config(
        encoder={"vocab_size": len(source), **sizes},
        decoder={"vocab_size": len(target), **sizes},
        share_embeddings=False,
        decoder_start_token_id=source.cls_token_id,
        pad_token_id=source.pad_token_id,
        eos_token_id=source.sep_token_id,
    )
    model = ChinchillaForConditionalGeneration(config).eval()
    # So that some translations end before they are as long as they may be.
    model.lm_head.weight.data[source.sep_token_id] *= 2
    model.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
        num_beams=num_beams,
    )
    return model


@pytest.fixture(scope="module")
def exported(tokenizers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "export"
    model = make_model(*tokenizers)
    references = ["one reference"] * len(TEXTS)
    # A model so small is no faster in int8: that is no matter here.
    figures = export_translator(
        model, tokenizers[0], folder, TEXTS, references, target_tokenizer=tokenizers[1], force=True
    )
    return model, folder, figures


def test_the_check_finds_no_difference(exported):
    _, folder, figures = exported
    assert figures.full_difference < 1e-4 and figures.full_agreement == 1
    assert set(figures.milliseconds) == {"torch", "float32", "int8"} == set(figures.bleu)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    models = {f"onnx/{part}{kind}.onnx" for part in ("encoder", "decoder") for kind in ("", "_quantized")}
    assert files == models | {"README.md", EXPORT_RECORD, "target_tokenizer.json", "tokenizer.json"}
    card = ModelCard.load(folder / "README.md")
    assert f"| float32 | {figures.milliseconds['float32']:.2f} |" in card.text and "3 beams" in card.text


@pytest.mark.parametrize("num_beams", [1, 2, 4])
@pytest.mark.parametrize("max_length", [None, 7])
def test_it_writes_what_the_pipeline_writes(exported, tokenizers, num_beams, max_length):
    model, folder, _ = exported
    pipeline = ChinchillaTranslationPipeline(model=model, tokenizer=tokenizers[0], target_tokenizer=tokenizers[1])
    options = {"num_beams": num_beams} | ({} if max_length is None else {"max_length": max_length})
    # Alone, because how long a translation may be depends on what it is in a batch with.
    expected = [pipeline(text, **options)[0] for text in TEXTS if text]
    translate = OnnxTranslator(folder, quantized=False, num_threads=1)
    assert [
        translate(text, num_beams=num_beams, max_length=max_length, batch_size=1)[0] for text in TEXTS if text
    ] == expected
    assert len({result["translation_text"] for result in expected}) > 2


@pytest.mark.parametrize("num_beams", [1, 3])
def test_of_a_batch_each_is_translated_as_alone(exported, num_beams):
    translate = OnnxTranslator(exported[1], quantized=False)
    options = {"num_beams": num_beams, "max_length": 20}
    together = translate(TEXTS, batch_size=3, **options)
    assert together == [translate(text, **options)[0] for text in TEXTS]
    assert together[2] == {"translation_text": ""} and "\n" in together[1]["translation_text"]


def test_neither_torch_nor_transformers_is_imported(exported):
    script = f"""
import sys
from chinchilla_hf.runtime_translation import OnnxTranslator
print(OnnxTranslator({str(exported[1])!r})("a dog runs"))
sys.exit(sum(name in sys.modules for name in ("torch", "transformers")))"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0 and "translation_text" in result.stdout, result.stderr


def test_what_is_wrong_is_refused(tokenizers, tmp_path, monkeypatch):
    check = export_translation.check_translator
    wrong = make_model(*tokenizers)
    torch.nn.init.normal_(wrong.lm_head.weight)
    monkeypatch.setattr(export_translation, "check_translator", lambda _, *others: check(wrong, *others))
    model = make_model(*tokenizers)
    options = {"target_tokenizer": tokenizers[1], "quantize": False}
    with pytest.raises(ExportRefusedError, match=r"differs from torch's by .*float32 translates \d+\.\d+% of"):
        export_translator(model, tokenizers[0], tmp_path / "export", TEXTS, **options)
    assert not list(tmp_path.iterdir())
    export_translator(model, tokenizers[0], tmp_path / "export", TEXTS, force=True, **options)
    assert len(json.loads((tmp_path / "export" / EXPORT_RECORD).read_text())["problems"]) == 2
    assert (tmp_path / "export" / DECODER).is_file() and not (tmp_path / "export" / QUANTIZED_DECODER).exists()


def test_promises_of_int8():
    figures = export_translation.TranslatorFigures(texts=10, full_difference=0.0, full_agreement=1.0)
    assert export_translation._problems(figures, 0.5) == []
    figures.bleu = {"torch": 40.0, "float32": 40.0, "int8": 39.4}
    figures.milliseconds = {"torch": 30.0, "float32": 20.0, "int8": 25.0}
    problems = export_translation._problems(figures, 0.5)
    assert sorted(problems) == [
        "int8 has a BLEU of 39.40 and float32 40.00, expected a loss of at most 0.5",
        "int8 takes 25.00 ms a text and float32 20.00, expected less",
    ]


def test_bad_input(exported, tokenizers, tmp_path):
    model, folder, _ = exported
    with pytest.raises(ValueError, match="there are 5 texts, but 1 references"):
        export_translator(model, tokenizers[0], tmp_path / "export", TEXTS, ["one"])
    with pytest.raises(ValueError, match="there are no texts to compare the export by"):
        export_translator(model, tokenizers[0], tmp_path / "export", [])
    sampling = make_model(*tokenizers)
    sampling.generation_config.early_stopping = True
    with pytest.raises(ValueError, match="early_stopping is True in generation_config, but the runtime knows"):
        export_translator(sampling, tokenizers[0], tmp_path / "export", TEXTS)
    with pytest.raises(ValueError, match="holds an export for translation, expected one for text-classification"):
        OnnxTextClassifier(folder)
    with pytest.raises(ValueError, match="num_beams is 0, expected at least 1"):
        OnnxTranslator(folder)("a dog", num_beams=0)
    assert read_export_record(folder, "translation")["num_beams"] == 3

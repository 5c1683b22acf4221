"""`training/distill_encoder.py` as its users run it: every start of a student, interruptions, and bad input."""

import json
import random
import signal
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_config
from huggingface_hub import ModelCard
from labelled_files import MOODS, sentences
from safetensors.torch import load_file
from scripts import read_record, run_forked, run_script, words
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, GPT2Config, GPT2Model

from chinchilla_hf import ChinchillaModel, train_tokenizer
from chinchilla_hf.compression import teacher_vectors as vectors_module
from chinchilla_hf.compression.distillation import similarities
from chinchilla_hf.compression.encoder_distillation import pieces, similarity_correlation, text_vectors

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 90}
SHORT = {"per_device_train_batch_size": 16, "learning_rate": 3e-3, "num_train_epochs": 4, "max_length": 16}
SHORT |= {"validation_share": 0.2, "eval_steps": 0.5, "save_steps": 0.5, "report_to": "none"}


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> Path:
    """A folder with raw text, and teachers with another tokenizer than their students have."""
    folder = tmp_path_factory.mktemp("taught")
    texts = [text for text, _ in sentences(240, moods=tuple(MOODS))]
    random.Random(0).shuffle(texts)
    documents = [" ".join(texts[i : i + 4]) for i in range(0, 240, 2)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    tokenizer = train_tokenizer(texts, vocab_size=150, model_max_length=32, show_progress=False)
    torch.manual_seed(0)
    shape = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 32}
    bert = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 32}
    teachers = {
        "bert": BertModel(BertConfig(**shape, **bert, initializer_range=0.2)),
        "gpt2": GPT2Model(
            GPT2Config(**shape, n_embd=24, n_layer=2, n_head=3, n_positions=32, bos_token_id=2, eos_token_id=3)
        ),
    }
    for name, teacher in teachers.items():
        teacher.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def distill(monkeypatch, capsys, taught):
    """Run the script in this process; what it printed."""

    def run(**options: object) -> str:
        given = {"dataset": taught / "text.jsonl", "teacher": taught / "bert"}
        run_script("distill_encoder", monkeypatch, words(given | options))
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("teacher", ["bert", "gpt2"])
def test_a_student_with_a_tokenizer_of_its_own(distill, taught, tmp_path, teacher):
    out = tmp_path / "out"
    printed = distill(teacher=taught / teacher, output_dir=out, **SHAPE, **SHORT | {"num_train_epochs": 12})
    assert "from scratch: all of the model is fresh" in printed and f"the encoder is in {out}" in printed
    record = read_record(out)
    assert record["status"] == "finished" and record["task"] == "feature-extraction"
    scores = record["scores"]["validation"]
    student, tokenizer = AutoModel.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert type(student) is ChinchillaModel and student.config.hidden_size == 16
    assert not any("projections" in name for name in load_file(out / "model.safetensors"))
    texts = [text for text, _ in sentences(40, seed=1, moods=tuple(MOODS))]
    models = [AutoModel.from_pretrained(taught / teacher), ChinchillaModel(student.config)]
    tokenizers = [AutoTokenizer.from_pretrained(taught / teacher), tokenizer]
    if tokenizers[0].pad_token is None:
        tokenizers[0].pad_token = tokenizers[0].eos_token
    of_teacher, untaught = zip(models, tokenizers, strict=True)
    own, theirs, before = (text_vectors(*pair, texts, 16) for pair in ((student, tokenizer), of_teacher, untaught))
    after = similarity_correlation(own, theirs)
    assert after > max(0.5, similarity_correlation(before, theirs) + 0.05)
    assert 0.2 < scores["similarity_correlation"] < 1 and scores["loss"] > 0
    assert (out / "loss.png").is_file()


def test_a_student_of_the_teachers_layers(distill, tmp_path):
    distill(teacher_layers=[0, 2], intermediate_share=0.5, output_dir=tmp_path / "out", **SHORT)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2 and config["intermediate_size_by_layer"] == [16, 16]
    assert read_record(tmp_path / "out")["scores"]["validation"]["similarity_correlation"] > 0.5


VECTORS = {"vector_weight": 1, "relation_weight": 10, "hidden_weight": 0, "attention_weight": 0}
BY_WORDS = {"cut_by": "words", "min_words": 2, "max_words": 6}


def test_a_student_in_the_vector_space_of_its_teacher(distill, taught, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = {"teacher_layers": [0, 2], "intermediate_share": 0.5, "teacher_tokens": 100, "teacher_tokens_by": "both"}
    options |= {
        **VECTORS,
        **BY_WORDS,
        **SHORT,
        "max_texts": 100,
        "hidden_dropout": 0,
        "license": "mit",
        "language": "en",
    }
    options |= {"teacher_cache_dir": tmp_path / "cache", "num_train_epochs": 8}
    printed = distill(**options, output_dir=out)
    assert "100 texts to learn from" in printed and "with 100 of its" in printed
    record = read_record(out)
    validation = record["scores"]["validation"]
    assert validation["vector_cosine"] > 0.5 and validation["similarity_correlation"] > 0.4
    student, tokenizer = AutoModel.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    config = student.config
    assert len(tokenizer) == config.vocab_size == 100 and config.intermediate_size_by_layer == [16, 16]
    assert (config.pooling, config.pooler_type) == ("mean", "normalized")
    assert not any("projection" in name or "pooler" in name for name in load_file(out / "model.safetensors"))
    texts = ["the film was good", "a bad day"]
    expected = text_vectors(student, tokenizer, texts, 16)
    pooled = student(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
    torch.testing.assert_close(torch.nn.functional.normalize(pooled, dim=-1), expected)
    metadata = ModelCard.load(out / "README.md").data
    assert (metadata.library_name, metadata.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert (metadata.license, metadata.language) == ("mit", "en")

    # its files are deleted with it, and the teacher is not asked again
    monkeypatch.setattr(vectors_module, "mean_states", None)
    distill(**options | {"max_steps": 1, "eval_steps": 1, "save_steps": 1}, output_dir=out, overwrite=True)
    assert read_record(out)["training"]["steps"] == 1


def test_sentence_transformers_takes_the_folder(distill, tmp_path):
    package = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers")
    out, tokens = tmp_path / "out", {"max_steps": 1, "eval_steps": 1, "save_steps": 1}
    distill(teacher_layers=[1], **VECTORS, **BY_WORDS, **SHORT | tokens, output_dir=out)
    model = package.SentenceTransformer(str(out), trust_remote_code=True, device="cpu")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert model.max_seq_length == 32
    texts = ["the film was good", "a bad day"]
    expected = text_vectors(AutoModel.from_pretrained(out), AutoTokenizer.from_pretrained(out), texts, 32)
    torch.testing.assert_close(torch.tensor(model.encode(texts)), expected)


def test_vectors_of_another_width_are_learned_through_a_map(distill, tmp_path):
    out = tmp_path / "out"
    distill(output_dir=out, **SHAPE, **VECTORS, **BY_WORDS, **SHORT, teacher_cache_dir=tmp_path / "cache")
    record = read_record(out)
    assert "vector_cosine" not in record["scores"]["validation"]  # which is of vectors of one width
    assert AutoModel.from_pretrained(out).config.hidden_size == 16
    assert not any("projection" in name for name in load_file(out / "model.safetensors"))


def test_without_vectors_there_is_nothing_to_pool(distill, tmp_path):
    out, tokens = tmp_path / "out", {"max_steps": 1, "eval_steps": 1, "save_steps": 1}
    distill(teacher_layers=[1], relation_weight=0, **SHORT | tokens, output_dir=out)
    assert not (out / "modules.json").exists() and AutoModel.from_pretrained(out).pooler is None
    card = ModelCard.load(out / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "feature-extraction")


@pytest.mark.parametrize(
    "learned", [{}, {**VECTORS, **BY_WORDS}, {"vector_weight": 1}], ids=["tokens", "vectors", "both"]
)
def test_an_interrupted_run_ends_as_if_it_had_not_been(taught, tmp_path, learned):
    options = {"dataset": taught / "text.jsonl", "teacher": taught / "bert", **SHAPE, **SHORT, "hidden_dropout": 0.1}
    options |= {**learned, "teacher_cache_dir": tmp_path / "cache"}
    whole = run_forked("distill_encoder", {**options, "output_dir": tmp_path / "whole"})
    assert whole.code == 0, whole.errors
    steps = read_record(tmp_path / "whole")["training"]["steps"]
    parts = {**options, "output_dir": tmp_path / "parts"}
    stopped = run_forked("distill_encoder", parts, signal_at=(steps - 2, signal.SIGKILL))
    assert stopped.code != 0
    again = run_forked("distill_encoder", parts)
    assert again.code == 0, again.errors
    assert read_record(tmp_path / "parts")["training"]["resumed"] == 1
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "nowhere/at-all"}, "--teacher nowhere/at-all cannot be loaded"),
        ({"teacher_layers": [3]}, r"blocks \[3\] are to stay, expected different ones from 0 to 2"),
        ({"teacher_layers": [0], "hidden_size": 64}, "--hidden_size is of a student from scratch"),
        ({"teacher_layers": [0], "model": "runs/x"}, "--model and --teacher_layers both say"),
        ({"intermediate_share": 0.5}, "--intermediate_share is of the teacher's layers"),
        ({"hidden_size": 16, "num_attention_heads": 2, "relation_heads": 5}, "relation_heads is 5, but must divide"),
        ({"teacher_tokens": 60}, "--teacher_tokens go with the teacher's layers"),
        ({"teacher_layers": [0], "teacher_tokens": 9}, "max_size is 9, but"),
        ({"teacher_layers": [0], "teacher_tokens_by": "both"}, "--teacher_tokens_by says which --teacher_tokens"),
        ({"cut_by": "words", "min_words": 9, "max_words": 4}, "min_words is 9 and max_words 4"),
        ({"max_texts": 0}, "max_texts is 0, expected at least 1"),
        ({"vector_weight": -1}, "vector_weight is -1.0, expected 0 or more"),
        ({"relation_weight": 0, "hidden_weight": 0, "attention_weight": 0}, "are all 0, so there is nothing to learn"),
        ({"validation_share": 0}, "no text is left for validation: give more documents"),
    ],
)
def test_bad_options(distill, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as exit_:
        distill(**options, output_dir=tmp_path / "out", max_length=16)
    said = exit_.value.code if isinstance(exit_.value.code, str) else capsys.readouterr().err
    assert message.replace("\\", "") in said
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_pieces_are_all_of_a_document_and_fit():
    tokenizer = train_tokenizer(["one two three four five six"] * 9, vocab_size=60, show_progress=False)
    document = "one two three\nfour five, six one two three four"
    found = [piece["text"] for piece in pieces([document, " ", "five"], tokenizer, 6)]
    assert "".join("".join(found).split()) == "".join((document + "five").split())
    tokenizer([document, "one"], truncation=True, max_length=5, padding=True)  # from here on it cuts and pads by itself
    assert [piece["text"] for piece in pieces([document, " ", "five"], tokenizer, 6)] == found
    tokenizer.backend_tokenizer.no_truncation()
    assert len(found) > 3 and all(len(tokenizer(text).input_ids) <= 6 for text in found)
    held_out = {piece["held_out"] for i in range(40) for piece in pieces([f"one {i}"], tokenizer, 6, 0.5)}
    assert held_out == {True, False}


def test_similarities_leave_out_padding():
    states = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    vectors = [states[0, :2].mean(0), states[1].mean(0)]
    found = similarities(states, mask)
    torch.testing.assert_close(found[0, 1], torch.cosine_similarity(*vectors, dim=0))
    torch.testing.assert_close(found.diagonal(), torch.ones(2))


def test_a_model_agrees_with_itself():
    texts = ["one two", "three four five", "six", "two two three"]
    tokenizer = train_tokenizer(texts * 5, vocab_size=60, show_progress=False)
    model = ChinchillaModel(make_tiny_config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id))
    vectors = text_vectors(model, tokenizer, texts, 16, batch_size=3)
    assert similarity_correlation(vectors, vectors) == pytest.approx(1)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(4))

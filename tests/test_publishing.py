"""What is checked before a folder goes to the Hub, and the way there and back, to a server that speaks its protocol."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_config, make_tiny_decoder_config, make_tiny_seq2seq_config
from hub_server import HubServer
from huggingface_hub import HfApi, ModelCard
from labelled_files import FAST, TINY, sentences, write_csv
from scripts import TRAINING, words
from transformers import AutoTokenizer

from chinchilla_hf import (
    ChinchillaForCausalLM,
    ChinchillaForConditionalGeneration,
    ChinchillaForSequenceClassification,
    publishing,
    train_tokenizer,
)
from chinchilla_hf.model_card import write_model_card
from chinchilla_hf.output_folder import save_model_folder
from chinchilla_hf.publishing import (
    PublishError,
    check_folder,
    complete_card,
    describe_data,
    files_of,
    halve_weights,
    is_language,
    refresh_code,
    stale_code,
)
from chinchilla_hf.run_record import RunRecord

TEXTS = ["a dog barks", "the cat sleeps", "no dog sleeps", "cats bark"] * 5


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a classifier, as a run leaves it."""
    folder = tmp_path_factory.mktemp("finished") / "animals"
    tokenizer = train_tokenizer(TEXTS, vocab_size=60, show_progress=False)
    torch.manual_seed(0)
    names = {0: "dog", 1: "cat"}
    config = make_tiny_config(
        vocab_size=len(tokenizer), id2label=names, label2id={name: number for number, name in names.items()}
    )
    save_model_folder(ChinchillaForSequenceClassification(config), tokenizer, folder)
    record = RunRecord(
        "text-classification",
        {},
        data={"name": "animals.csv", "fingerprint": "ab12", "rows": {"train": 20}, "label_names": ["dog", "cat"]},
        model={"class": "ChinchillaForSequenceClassification", "parameters": 1000, "base_model": None},
        scores={"test": {"accuracy": 0.5}},
        status="finished",
    )
    record.write(folder / "run.json")
    write_model_card(record, folder / "README.md", license="apache-2.0", language="en")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "optimizer.pt").write_bytes(b"left by the training")
    (folder / "events.log").write_text("left, too")
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "animals"))


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Checks


def test_a_finished_run_is_ready_and_leaves_behind_what_the_training_left(finished):
    assert check_folder(finished) == []
    names = {path.name for path in files_of(finished)}
    assert {"config.json", "model.safetensors", "README.md", "run.json", "modeling_chinchilla.py"} <= names
    assert not names & {"optimizer.pt", "events.log"}


def spoil_card(folder: Path, **metadata) -> None:
    card = ModelCard.load(folder / "README.md")
    for name, value in metadata.items():
        setattr(card.data, name, value)
    (folder / "README.md").write_text(str(card))


SPOILED = {
    "pickle": (
        lambda folder: (folder / "extra.pt").write_bytes(b"x"),
        "extra.pt may hold a pickle, which runs whatever is in it",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "there is no model.safetensors"),
    "no card": (lambda folder: (folder / "README.md").unlink(), "there is no README.md"),
    "no licence": (lambda folder: spoil_card(folder, license=None), "the card names no licence: give --license"),
    "unknown licence": (
        lambda folder: spoil_card(folder, license="apache-3.0"),
        "licence is 'apache-3.0', which the Hub does not know",
    ),
    "licence without a name": (lambda folder: spoil_card(folder, license="other"), "without a license_name"),
    "unknown language": (
        lambda folder: spoil_card(folder, language=["en", "klingon"]),
        "language is 'klingon': give a code of ISO 639",
    ),
    "no run": (lambda folder: (folder / "run.json").unlink(), "there is no run.json"),
    "running": (lambda folder: edit_json(folder / "run.json", status="running"), "run.json says 'running'"),
    "no data": (lambda folder: edit_json(folder / "run.json", data={}), "does not name its data"),
    "no names": (
        lambda folder: edit_json(
            folder / "config.json",
            id2label={"0": "LABEL_0", "1": "LABEL_1"},
            label2id={"LABEL_0": 0, "LABEL_1": 1},
        ),
        "no names but LABEL_0, LABEL_1",
    ),
    "two truths": (lambda folder: edit_json(folder / "config.json", label2id={"dog": 1, "cat": 0}), "disagree"),
    "a gap": (
        lambda folder: edit_json(folder / "config.json", id2label={"0": "dog", "2": "cat"}),
        "has the classes 0, 2, expected 0 to 1",
    ),
    "old code": (
        lambda folder: (folder / "modeling_chinchilla.py").write_text("# of an older version\n"),
        "modeling_chinchilla.py differs from that of chinchilla_hf",
    ),
    "broken metadata": (
        lambda folder: (folder / "README.md").write_text("---\nlicense: [\n---\n# A card\n"),
        "README.md has metadata that cannot be read",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_wrong_with_a_folder_is_told(folder, name):
    spoil, message = SPOILED[name]
    spoil(folder)
    problems = check_folder(folder, load=False)
    assert len(problems) == 1 and message in problems[0]


def test_a_folder_that_does_not_load_elsewhere_is_told(folder):
    code = (folder / "modeling_chinchilla.py").read_text()
    edit_json(folder / "config.json", auto_map={"AutoConfig": "configuration_chinchilla.ChinchillaConfig"})
    assert "auto_map of config.json does not name the class" in check_folder(folder)[0]
    (folder / "modeling_chinchilla.py").write_text(code)
    edit_json(
        folder / "config.json",
        auto_map={
            "AutoConfig": "configuration_chinchilla.ChinchillaConfig",
            "AutoModelForSequenceClassification": "modeling_missing.ChinchillaForSequenceClassification",
        },
    )
    (problem,) = check_folder(folder)
    assert problem.startswith("it does not load without this package (")


def test_folders_that_are_none(tmp_path):
    with pytest.raises(PublishError, match="is no folder"):
        check_folder(tmp_path / "nothing")
    with pytest.raises(PublishError, match=r"has no config\.json"):
        check_folder(tmp_path)
    with pytest.raises(PublishError, match="let the run end, which writes the card"):
        complete_card(tmp_path, license="mit")


def test_old_code_is_refreshed(folder):
    (folder / "modeling_chinchilla.py").write_text("# of an older version\n")
    (folder / "own.py").write_text("# of the user\n")
    assert stale_code(folder) == ["modeling_chinchilla.py"]
    assert refresh_code(folder) == ["modeling_chinchilla.py"]
    assert stale_code(folder) == [] and (folder / "own.py").read_text() == "# of the user\n"


def test_what_the_data_are_stands_in_record_and_card(folder):
    describe_data(folder, "Animals of a zoo (CC0).")
    assert RunRecord.read(folder / "run.json").data["description"] == "Animals of a zoo (CC0)."
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "Fingerprint: `ab12`. Animals of a zoo (CC0). The licence of this model is apache-2.0" in text
    assert check_folder(folder, load=False) == []
    (folder / "run.json").unlink()
    with pytest.raises(PublishError, match="data are described in the folder of a run"):
        describe_data(folder, "Animals.")


def test_weights_in_half_the_bytes_are_loaded_as_they_were(folder):
    before = ChinchillaForSequenceClassification.from_pretrained(folder)
    size = (folder / "model.safetensors").stat().st_size
    halved = halve_weights(folder)
    assert halved == (folder / "model.safetensors").stat().st_size < 0.6 * size
    assert halve_weights(folder) == halved  # once is enough
    after = ChinchillaForSequenceClassification.from_pretrained(folder)
    for (name, was), (_, now) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert now.dtype == torch.float32
        torch.testing.assert_close(now, was, rtol=1e-3, atol=1e-6, msg=name)
    assert check_folder(folder) == []


def test_weights_that_are_too_large_for_half_the_bytes_stay(folder):
    model = ChinchillaForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.bias[0] = 1e6
    model.save_pretrained(folder)
    content = (folder / "model.safetensors").read_bytes()
    with pytest.raises(PublishError, match=r"classifier\.bias .* above 65,504"):
        halve_weights(folder)
    assert (folder / "model.safetensors").read_bytes() == content


def test_a_card_is_completed_and_keeps_its_text(folder):
    before = ModelCard.load(folder / "README.md")
    complete_card(folder, license="mit", language=["en", "de"], license_name=None)
    after = ModelCard.load(folder / "README.md")
    assert (after.data.license, after.data.language) == ("mit", ["en", "de"]) and after.text == before.text


@pytest.mark.parametrize(
    ("code", "known"),
    [("en", True), ("deu", True), ("zh-Hans", True), ("multilingual", True), ("qq", False), ("english", False)],
)
def test_codes_of_languages(code, known):
    assert is_language(code) is known


# To the server and back


@pytest.fixture
def hub():
    with HubServer() as hub:
        yield hub


def python(
    hub: HubServer, home: Path, *arguments: object, token: str | None = "my-token"
) -> subprocess.CompletedProcess:
    """Python in a process of its own, which takes the server for the Hub, with its cache and its folder in `home`."""
    home.mkdir(exist_ok=True)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, env=hub.environment(home, token), capture_output=True, text=True, check=False, cwd=home
    )


def run(hub: HubServer, home: Path, *arguments: object, token: str | None = "my-token") -> subprocess.CompletedProcess:
    """`training/publish.py`."""
    return python(hub, home, TRAINING / "publish.py", *arguments, token=token)


LOAD = """
import sys
sys.modules["chinchilla_hf"] = None
from transformers import pipeline
classify = pipeline("text-classification", sys.argv[1], revision=sys.argv[2], trust_remote_code=True)
print(classify("a dog barks", top_k=None))
"""


def load_elsewhere(hub: HubServer, home: Path, repo_id: str, revision: str, token: str | None = "my-token"):
    """In a new process with an empty cache and without the package."""
    return python(hub, home, "-c", LOAD, repo_id, revision, token=token)


def test_a_folder_goes_to_the_hub_in_one_commit_and_loads_from_there(hub, folder, tmp_path):
    ended = run(hub, tmp_path / "home", "--folder", folder, "--repo_id", "me/animals", "--tag", "v1")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("HTTP Request") == 0 and ended.stdout.startswith(f"{len(files_of(folder))} files are at")
    repository = hub.repositories["me/animals"]
    assert repository.private and len(repository.history) == 2  # the server's own, and ours
    files = hub.files("me/animals")
    assert set(files) == {path.relative_to(folder).as_posix() for path in files_of(folder)} | {".gitattributes"}
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert f"PUT /objects/{next(iter(hub.objects))}" in hub.requests  # as a large file
    assert repository.tags["v1"] == repository.branches["main"]
    loaded = load_elsewhere(hub, tmp_path / "other", "me/animals", "v1")
    assert loaded.returncode == 0, loaded.stderr
    assert "'dog'" in loaded.stdout and "'cat'" in loaded.stdout
    # Without a token, a private repository is none.
    assert "RepositoryNotFoundError" in load_elsewhere(hub, tmp_path / "third", "me/animals", "v1", None).stderr


DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
from chinchilla_hf.runtime import OnnxTextClassifier
folder = snapshot_download(sys.argv[1])
assert "torch" not in sys.modules
print(OnnxTextClassifier(folder)(["a dog barks"]))
"""


def test_an_export_goes_to_the_hub_and_runs_from_there(hub, finished, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    from chinchilla_hf.export import export_classifier

    model = ChinchillaForSequenceClassification.from_pretrained(finished)
    tokenizer = AutoTokenizer.from_pretrained(finished)
    export_classifier(model, tokenizer, tmp_path / "export", TEXTS, quantize=False)
    ended = run(hub, tmp_path / "home", "--folder", tmp_path / "export", "--repo_id", "me/animals-onnx")
    assert ended.returncode == 1 and "the card names no licence" in ended.stderr
    options = ("--folder", tmp_path / "export", "--repo_id", "me/animals-onnx", "--license", "apache-2.0")
    ended = run(hub, tmp_path / "home", *options)
    assert ended.returncode == 0, ended.stderr
    assert {"onnx/model.onnx", "export.json", "index.html", "README.md"} <= set(hub.files("me/animals-onnx"))
    used = python(hub, tmp_path / "other", "-c", DOWNLOAD, "me/animals-onnx")
    assert used.returncode == 0, used.stderr
    assert "'dog'" in used.stdout or "'cat'" in used.stdout


def test_a_branch_leaves_main_as_it_is(hub, folder, tmp_path):
    options = ("--folder", folder, "--repo_id", "animals", "--private", "false")
    assert run(hub, tmp_path / "home", *options).returncode == 0
    complete_card(folder, language="de")
    ended = run(hub, tmp_path / "home", *options, "--revision", "next", "--message", "German")
    assert ended.returncode == 0, ended.stderr
    repository = hub.repositories["me/animals"]
    assert not repository.private and set(repository.branches) == {"main", "next"}
    assert b"language: de" in hub.files("me/animals", "next")["README.md"]
    assert b"language: de" not in hub.files("me/animals")["README.md"]
    assert repository.messages[repository.branches["next"]] == "German"
    # What was there already is not sent again.
    assert len([request for request in hub.requests if request.startswith("PUT /objects/")]) == len(hub.objects)


def test_an_upload_that_breaks_off_changes_nothing_and_goes_on(hub, folder, tmp_path):
    hub.cut_uploads = 100
    ended = run(hub, tmp_path / "home", "--folder", folder, "--repo_id", "me/animals")
    assert ended.returncode == 1
    assert "error: the upload to me/animals on http" in ended.stderr and "the same command goes on" in ended.stderr
    assert set(hub.files("me/animals")) == {".gitattributes"}
    hub.cut_uploads = 0
    ended = run(hub, tmp_path / "home", "--folder", folder, "--repo_id", "me/animals")
    assert ended.returncode == 0 and "model.safetensors" in hub.files("me/animals")


def test_what_is_wrong_in_the_program_is_not_told_as_the_networks_fault():
    """As a mistake of ours, or of a new version of huggingface_hub."""
    with pytest.raises(TypeError, match="a mistake"), publishing._told_plainly(HfApi(), "me/animals"):
        raise TypeError("a mistake")


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        (None, "me/animals", "nobody is logged in who could write to me/animals"),
        ("wrong-token", "me/animals", "the token is wrong or has expired"),
        ("my-token", "foreign/animals", "the token may not write to foreign/animals"),
    ],
)
def test_who_may_not_write_is_told_so(hub, folder, tmp_path, token, repo_id, message):
    if token != "my-token":
        spoil_card(folder, license=None)  # who is logged in is asked first: the check of the folder takes longer
    ended = run(hub, tmp_path / "home", "--folder", folder, "--repo_id", repo_id, token=token)
    assert ended.returncode == 1 and ended.stderr.strip().splitlines()[-1].startswith(f"error: {message}")
    assert hub.repositories == {}


PUBLISH = """
import sys
from chinchilla_hf.publishing import PublishError, publish
folder, repo_id, tag, *tokens = sys.argv[1:]
for token in tokens:
    try:
        publish(folder, repo_id, tag=tag, token=token)
        print("published")
    except PublishError as error:
        print(error)
"""


def test_a_name_that_another_has_taken_and_a_tag_that_is_there(hub, folder, tmp_path):
    tokens = ("my-token", "other-token", "my-token")
    ended = python(hub, tmp_path / "home", "-c", PUBLISH, folder, "team/animals", "v1", *tokens)  # a team of mine
    assert ended.returncode == 0, ended.stderr
    published, taken, again = ended.stdout.splitlines()
    assert published == "published" and taken.startswith("the token may not write to team/animals on http")
    assert again == "team/animals has a tag 'v1' already: choose another --tag"
    repository = hub.repositories["team/animals"]
    assert repository.branches == {"main": repository.tags["v1"]}
    assert len(repository.history) == 2  # the server's own, and the first


def test_a_folder_that_is_not_ready_stays_here(hub, folder, tmp_path):
    spoil_card(folder, license=None)
    (folder / "extra.bin").write_bytes(b"x")
    ended = run(hub, tmp_path / "home", "--folder", folder, "--repo_id", "me/animals")
    assert ended.returncode == 1 and "- the card names no licence" in ended.stderr and "- extra.bin" in ended.stderr
    assert hub.repositories == {} and not any("commit" in request for request in hub.requests)
    (folder / "extra.bin").unlink()
    ended = run(hub, tmp_path / "home", "--folder", folder, "--license", "mit", "--check_only", "true")
    assert ended.returncode == 0 and f"{folder} is ready for the Hub" in ended.stdout
    assert hub.repositories == {}


PUSH = """
import sys, torch
from huggingface_hub import HfApi, ModelCard, list_repo_files
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
import chinchilla_hf
name, folder, auto = sys.argv[1:]
model = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}[auto].from_pretrained(folder)
model.push_to_hub(name, private=True)
AutoTokenizer.from_pretrained(folder).push_to_hub(name)
print(sorted(list_repo_files(f"me/{name}")))
"""
LOAD_MODEL = """
import sys
sys.modules["chinchilla_hf"] = None
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
name, auto = sys.argv[1:]
auto_class = {"causal": AutoModelForCausalLM, "seq2seq": AutoModelForSeq2SeqLM}[auto]
model = auto_class.from_pretrained(name, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
inputs = tokenizer("a dog barks", return_tensors="pt")
extra = {"decoder_input_ids": inputs["input_ids"]} if auto == "seq2seq" else {}
with torch.no_grad():
    print(repr(model.eval()(input_ids=inputs["input_ids"], **extra).logits.sum().item()))
"""


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_push_to_hub_of_other_models(hub, tmp_path, kind):
    tokenizer = train_tokenizer(TEXTS, vocab_size=270, show_progress=False, for_decoder=True, algorithm="bpe")
    torch.manual_seed(0)
    if kind == "causal":
        model = ChinchillaForCausalLM(make_tiny_decoder_config(vocab_size=len(tokenizer)))
    else:
        sizes = {"vocab_size": len(tokenizer)}
        model = ChinchillaForConditionalGeneration(make_tiny_seq2seq_config(sizes, sizes))
    save_model_folder(model, tokenizer, tmp_path / "model")
    pushed = python(hub, tmp_path / "home", "-c", PUSH, "model", tmp_path / "model", kind)
    assert pushed.returncode == 0, pushed.stderr
    assert "modeling_chinchilla_decoder.py" in pushed.stdout and "tokenizer.json" in pushed.stdout
    loaded = python(hub, tmp_path / "other", "-c", LOAD_MODEL, "me/model", kind)
    assert loaded.returncode == 0, loaded.stderr
    ids = tokenizer("a dog barks", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        extra = {"decoder_input_ids": ids} if kind == "seq2seq" else {}
        expected = model.eval()(input_ids=ids, **extra).logits.sum().item()
    assert float(loaded.stdout.strip().splitlines()[-1]) == pytest.approx(expected, abs=1e-4)


# From the training scripts, and from Trainer itself

TRAINER = """
import sys
import chinchilla_hf
from datasets import Dataset
from transformers import (
    AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments
)
folder, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder)
rows = Dataset.from_dict({**tokenizer(["a dog barks", "the cat sleeps"] * 4), "labels": [0, 1] * 4})
arguments = TrainingArguments(out, max_steps=2, push_to_hub=True, report_to="none", use_cpu=True, save_strategy="no")
trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), rows, processing_class=tokenizer)
trainer.train()
trainer.push_to_hub()
"""


def test_trainers_own_push_to_hub(hub, finished, tmp_path):
    ended = python(hub, tmp_path / "home", "-c", TRAINER, finished, tmp_path / "mine")
    assert ended.returncode == 0, ended.stderr
    loaded = load_elsewhere(hub, tmp_path / "other", "me/mine", "main")
    assert loaded.returncode == 0 and "'dog'" in loaded.stdout, loaded.stderr


def test_a_training_script_pushes_its_folder(hub, tmp_path):
    options = FAST | TINY | {"dataset": str(write_csv(tmp_path / "moods.csv", sentences(60))), "num_train_epochs": 1}
    options |= {"output_dir": str(tmp_path / "moods"), "push_to_hub": True, "hub_private_repo": True, "baseline": False}

    def classify(token):
        return python(hub, tmp_path / "home", TRAINING / "classify.py", *words(options), token=token)

    refused = classify("wrong-token")
    assert refused.returncode == 1 and "error: the token is wrong or has expired" in refused.stderr
    assert not list((tmp_path / "moods").glob("*.safetensors"))  # before the training
    ended = classify("my-token")
    assert ended.returncode == 0, ended.stderr
    assert f"pushed to {hub.endpoint}/me/moods" in ended.stdout and hub.repositories["me/moods"].private
    assert {"README.md", "run.json", "model.safetensors"} <= set(hub.files("me/moods"))

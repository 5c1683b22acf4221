"""`training/pretrain.py` as its users run it: by steps or time, interrupted, on two processes, and with bad input."""

import contextlib
import functools
import json
import random
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripts import TRAINING, launch, read_record, run_forked, run_script, words
from transformers import AutoModelForMaskedLM, pipeline, set_seed

from chinchilla_hf import ChinchillaConfig, ChinchillaForMaskedLM, output_folder, train_tokenizer, training_arguments
from chinchilla_hf.callbacks import BudgetClock, StepTimer
from chinchilla_hf.optim import decayed
from chinchilla_hf.output_folder import list_checkpoints
from chinchilla_hf.trainer import PretrainingTrainer
from chinchilla_hf.training_arguments import PretrainingArguments

TINY = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "row_length": 32,
    "per_device_train_batch_size": 8,
    "logging_steps": 5,
    "eval_steps": 20,
    "save_steps": 5,
    "validation_share": 0.1,
    "report_to": "none",
    "disable_tqdm": True,
}
# About eight windows in an epoch.
STREAM = {"stream": True, "window_characters": 4000, "validation_documents": 200}
SUBJECTS, VERBS = ["the cat", "a dog", "my aunt"], ["sees", "likes", "finds"]
OBJECTS = ["a tree", "the house", "fish"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Documents of one to six sentences of a small grammar."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    with open(path, "w") as file:
        for number in range(400):
            sentences = [
                f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)} ." for _ in range(rng.randint(1, 6))
            ]
            file.write(json.dumps({"text": f"{number} " + " ".join(sentences)}) + "\n")
    return path


@pytest.fixture
def pretrain(monkeypatch, capsys, tmp_path):
    """Run the script in this process; what it printed."""

    def run(**options: object) -> str:
        run_script("pretrain", monkeypatch, words({"cache_dir": tmp_path / "cache"} | options))
        return capsys.readouterr().out

    return run


def test_by_steps(pretrain, corpus, tmp_path):
    out = tmp_path / "out"
    seldom = TINY | {"save_steps": 100, "eval_steps": 100}
    named = {"license": "mit", "language": "en"}
    printed = pretrain(dataset=corpus, **seldom, **named, max_steps=600, learning_rate=1e-2, output_dir=out)
    record = read_record(out)
    card = (out / "README.md").read_text()
    assert "\nlicense: mit\n" in card and "\nlanguage: en\n" in card
    assert record["status"] == "finished" and record["training"]["steps"] == 600
    assert record["data"]["documents"] == 400 and record["data"]["padding"] < 0.1
    assert record["scores"]["validation"]["masked_accuracy"] > 0.3  # two of three words of a phrase are free
    assert f"{record['scores']['validation']['loss']:.4f}" in printed
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob("checkpoint-*"))
    fill = pipeline("fill-mask", str(out))
    assert fill("the [MASK] sees a tree .")[0]["token_str"] in {"cat", "house"}


def test_with_next_sentences(pretrain, corpus, tmp_path):
    pretrain(dataset=corpus, **TINY, next_sentence=True, max_steps=20, output_dir=tmp_path / "out")
    scores = read_record(tmp_path / "out")["scores"]["validation"]
    assert 0 <= scores["next_sentence_accuracy"] <= 1 and scores["masked_accuracy"] > 0
    assert "seq_relationship.weight" in load_file(tmp_path / "out" / "model.safetensors")
    (tmp_path / "single.txt").write_text("\n\n".join(f"sentence number {i}" for i in range(100)))
    with pytest.raises(SystemExit, match="error: no document has two sentences"):
        pretrain(
            dataset=tmp_path / "single.txt", **TINY, next_sentence=True, max_steps=5, output_dir=tmp_path / "other"
        )


@pytest.fixture
def steady_time(monkeypatch) -> None:
    """For a time budget, a step takes a sixteenth of a second, an evaluation 7/64, and all else no time."""
    seconds = 0.0

    def taking(duration, method):
        @functools.wraps(method)
        def timed(*args, **kwargs):
            nonlocal seconds
            seconds += duration
            return method(*args, **kwargs)

        return timed

    monkeypatch.setattr(training_arguments, "BudgetClock", lambda minutes, _: BudgetClock(minutes, lambda: seconds))
    for name, duration in (("training_step", 1 / 16), ("evaluate", 7 / 64)):
        monkeypatch.setattr(PretrainingTrainer, name, taking(duration, getattr(PretrainingTrainer, name)))


def test_by_time(pretrain, interrupted, corpus, tmp_path, steady_time):
    """Evaluations count, the learning rate ends near 0, and a continued run goes on with the time that it has left."""
    options = {"dataset": corpus, **TINY, "logging_steps": 1, "max_minutes": 3 / 60, "keep_checkpoints": True}
    straight, out = tmp_path / "straight", tmp_path / "out"

    def state_and_rates(folder: Path) -> tuple[dict, list[float]]:
        state = json.loads((folder / "checkpoint-45" / "trainer_state.json").read_text())
        return state, [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]

    pretrain(**options, output_dir=straight)
    # After 45 steps, two evaluations among them, 3.03 s are used; without the evaluations there would be time for 48.
    assert read_record(straight)["training"]["steps"] == 45
    state, rates = state_and_rates(straight)
    top = PretrainingArguments(str(tmp_path)).learning_rate
    assert len(rates) == 45 and 0.9 * top < max(rates) <= top
    # The clock is read after the rate of the next step is set: the last rate is by the time that was used at step 43.
    assert rates[-1] == pytest.approx(top * decayed((43 / 16 + 2 * 7 / 64) / 3, warmup=0.05), rel=1e-4)
    assert rates[-1] < 0.04 * top
    assert state["stateful_callbacks"]["BudgetClock"]["attributes"]["seconds_used"] == 45 / 16 + 2 * 7 / 64

    interrupted(33, **options, output_dir=out)
    pretrain(**options, output_dir=out)
    assert read_record(out)["training"]["resumed"] == 1 and read_record(out)["training"]["steps"] == 45
    assert state_and_rates(out)[1] == rates


def test_going_on_from_a_model(pretrain, corpus, tmp_path):
    pretrain(dataset=corpus, **TINY, max_steps=20, output_dir=tmp_path / "first")
    shape = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    options = {name: value for name, value in TINY.items() if name not in shape}
    pretrain(dataset=corpus, **options, model=tmp_path / "first", max_steps=5, output_dir=tmp_path / "second")
    record = read_record(tmp_path / "second")
    assert record["model"]["base_model"] == str(tmp_path / "first")
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path / "second")) is ChinchillaForMaskedLM


@pytest.mark.parametrize("stream", [False, True])
def test_a_decoder(pretrain, interrupted, corpus, tmp_path, stream):
    """From text to `pipeline("text-generation")`, stopped once; what it writes is of the grammar, and has an end."""
    options = {"dataset": corpus, **TINY, **(STREAM if stream else {}), "objective": "causal", "vocab_size": 300}
    options |= {"num_key_value_heads": 1, "per_device_eval_batch_size": 4, "save_steps": 100, "eval_steps": 100}
    options |= {"learning_rate": 1e-2, "max_steps": 400, "output_dir": tmp_path / "out"}
    interrupted(150, **options)
    printed = pretrain(**options)
    record = read_record(tmp_path / "out")
    assert record["training"]["resumed"] == 1 and record["model"]["class"] == "ChinchillaForCausalLM"
    scores = record["scores"]["validation"]
    assert scores["next_token_accuracy"] > 0.5 and f"next_token_accuracy {scores['next_token_accuracy']:.4f}" in printed
    assert "pipeline('text-generation'" in printed
    write = pipeline("text-generation", str(tmp_path / "out"))
    text = write("17 the cat", max_new_tokens=10, do_sample=False, return_full_text=False)[0]["generated_text"]
    verb, *rest = text.split()
    assert verb in VERBS and " ".join(rest).startswith(tuple(OBJECTS))
    set_seed(0)
    prompt = write.tokenizer("17 the cat", return_tensors="pt")
    written = write.model.generate(**prompt, do_sample=True, num_return_sequences=16, max_new_tokens=25)
    assert (written == write.tokenizer.eos_token_id).any()

    shape = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    further = {name: value for name, value in options.items() if name not in (*shape, "num_key_value_heads")}
    further |= {"model": tmp_path / "out", "max_steps": 2, "output_dir": tmp_path / "further"}
    pretrain(**further)
    assert read_record(tmp_path / "further")["scores"]["validation"]["next_token_accuracy"] > 0.4
    with pytest.raises(SystemExit, match=r"error: .*chinchilla_decoder"):
        pretrain(**further | {"objective": "masked", "output_dir": tmp_path / "other"})


def test_a_decoder_does_not_begin_from_an_encoder(pretrain, corpus, tmp_path, minilm):
    options = {"dataset": corpus, "objective": "causal", "output_dir": tmp_path / "out", "report_to": "none"}
    with pytest.raises(SystemExit, match="error: --model is a bert checkpoint, but --objective causal trains a Chinc"):
        pretrain(**options, model=minilm)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"objective": "causal", "next_sentence": True}, "--objective is causal, for a decoder, but --next_sentence"),
        ({"next_sentence": True, "causal_share": 0.5}, "--causal_share cannot go with --next_sentence"),
    ],
)
def test_objectives_that_do_not_go_together(pretrain, capsys, corpus, tmp_path, objective, message):
    with pytest.raises(SystemExit):
        pretrain(dataset=corpus, **TINY, **objective, max_steps=5, output_dir=tmp_path / "out")
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_from_a_stream(pretrain, corpus, tmp_path):
    out = tmp_path / "out"
    options = {
        "dataset": corpus,
        **TINY,
        **STREAM,
        "gradient_accumulation_steps": 2,
        "save_steps": 100,
        "eval_steps": 100,
    }
    printed = pretrain(**options, max_steps=200, learning_rate=1e-2, output_dir=out)
    record = read_record(out)
    assert record["training"]["epochs"] >= 3 and record["training"]["examples"] == 200 * 16
    assert record["data"]["rows"]["train"] == 200 * 16 and record["data"]["rows"]["validation"] > 5
    assert record["data"]["documents"] >= 400 * record["training"]["epochs"] and 0 < record["data"]["padding"] < 0.1
    assert record["data"]["tokens"] < record["training"]["tokens"]  # the latter with special tokens
    assert record["scores"]["validation"]["masked_accuracy"] > 0.3 and printed.startswith("a stream")
    assert [path.name[:9] for path in (tmp_path / "cache").iterdir()] == ["tokenizer"]  # nothing else is stored


# ---- Interruptions ----


@pytest.fixture
def interrupted(pretrain, monkeypatch):
    """`interrupted(step, **options)`: run the script in this process until Ctrl-C at the end of `step`."""

    def run(step: int, **options: object) -> None:
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(StepTimer, "on_step_end", on_step_end)
            with pytest.raises(SystemExit, match=f"interrupted at step {step}: the same command goes on"):
                pretrain(**options)

    return run


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """What is written beyond that fails, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def same_weights(one: Path, other: Path) -> bool:
    weights = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


# float32 from a stream is in the test after this one.
@pytest.mark.parametrize(("bf16", "stream"), [(False, False), (True, False), (True, True)])
def test_a_run_that_was_stopped_twice_ends_with_the_same_bits(pretrain, corpus, tmp_path, bf16, stream):
    """Killed (-9) after a checkpoint, then told to end (SIGTERM), which saves one."""
    options = {"dataset": corpus, **TINY, "max_steps": 60, "hidden_dropout": 0.1, "bf16": bf16, "causal_share": 0.25}
    options |= STREAM if stream else {}
    options |= {"cache_dir": tmp_path / "cache"}
    straight, out = tmp_path / "straight", tmp_path / "out"
    killed = run_forked("pretrain", options | {"output_dir": out}, signal_at=(13, signal.SIGKILL))
    assert killed.code == -signal.SIGKILL
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-5", "checkpoint-10"]
    told = run_forked("pretrain", options | {"output_dir": out}, signal_at=(27, signal.SIGTERM))
    assert told.code == 1 and "the same command goes on from there" in told.errors and "Traceback" not in told.errors
    assert list_checkpoints(out)[-1].name == "checkpoint-27" and not (out / "model.safetensors").exists()

    pretrain(**options, output_dir=out)
    pretrain(**options, output_dir=straight)
    resumed, whole = read_record(out), read_record(straight)
    assert resumed["training"]["resumed"] == 2
    assert resumed["scores"] == whole["scores"] and resumed["data"] == whole["data"]
    assert same_weights(out, straight)


def test_half_written_checkpoints_and_a_full_disk_cost_no_more_than_the_last_steps(
    pretrain, interrupted, corpus, tmp_path, caplog
):
    """The run ends with the same bits, here in float32, from a stream, and on a full disk after two interruptions."""
    options = {"dataset": corpus, **TINY, **STREAM, "max_steps": 20, "hidden_dropout": 0.1, "bf16": False}
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    pretrain(**options, output_dir=straight)
    interrupted(13, **options, output_dir=stopped)
    assert [path.name for path in list_checkpoints(stopped)] == ["checkpoint-5", "checkpoint-10"]

    out = shutil.copytree(stopped, tmp_path / "full")
    # The weights fit, what the optimizer keeps does not.
    with (
        no_file_larger_than((out / "checkpoint-10" / "optimizer.pt").stat().st_size - 1),
        pytest.raises(SystemExit, match=r"^error: the checkpoint of step 15 .* Is the disk full\? Make room") as exit_,
    ):
        pretrain(**options, output_dir=out)
    assert "\n" not in exit_.value.code and (out / "checkpoint-15").exists()
    pretrain(**options, output_dir=out)
    assert f"removing {out / 'checkpoint-15'}, which was not saved to its end" in caplog.text
    assert same_weights(out, straight)

    # What a power cut leaves.
    for name, length in (("optimizer.pt", 1000), ("model.safetensors", 1000), ("trainer_state.json", None)):
        out = shutil.copytree(stopped, tmp_path / name)
        path = out / "checkpoint-10" / name
        path.unlink() if length is None else path.write_bytes(path.read_bytes()[:length])
        pretrain(**options, output_dir=out)
        assert f"removing {out / 'checkpoint-10'}, which was not saved to its end" in caplog.text
        assert same_weights(out, straight) and read_record(out)["training"]["resumed"] == 1


def test_a_disk_that_is_full_at_the_very_end_costs_nothing(pretrain, corpus, tmp_path, monkeypatch):
    out, options = tmp_path / "out", {"dataset": corpus, **TINY, **STREAM, "max_steps": 5}
    save = output_folder._save_model_folder

    def on_a_full_disk(*arguments):
        with no_file_larger_than(1000):
            save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(output_folder, "_save_model_folder", on_a_full_disk)
        with pytest.raises(
            SystemExit, match=r"^error: the model in .* could not be saved: .*File too large.*Make room"
        ):
            pretrain(**options, output_dir=out)
    assert read_record(out)["status"] == "running" and not (out / "model.safetensors").exists()
    pretrain(**options, output_dir=out)
    assert read_record(out)["training"]["steps"] == 5  # all of them were taken before


def test_a_stream_goes_on_under_the_same_readers_only(pretrain, interrupted, corpus, tmp_path):
    options = {"dataset": corpus, **TINY, **STREAM, "max_steps": 10, "output_dir": tmp_path / "out"}
    interrupted(7, **options)
    with pytest.raises(
        SystemExit, match=r"error: the checkpoint is of a stream read by 1 process.* with 0 .* 1 with 2: "
    ):
        pretrain(**options, dataloader_num_workers=2)
    pretrain(**options | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    assert read_record(tmp_path / "out")["status"] == "finished"


def test_a_stream_that_turns_bad_goes_on_without_the_bad_text(pretrain, corpus, tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"".join([*corpus.read_bytes().splitlines(keepends=True)[:300], b'{"text": "\xff"}\n']))
    options = {"dataset": path, **TINY, **STREAM, "max_steps": 40, "tokenizer_documents": 200}
    with pytest.raises(SystemExit, match=r"error: .*not UTF-8 at byte \d+ .line 301.*on_bad_text=.skip"):
        pretrain(**options, output_dir=tmp_path / "out")
    assert list_checkpoints(tmp_path / "out")
    pretrain(**options, output_dir=tmp_path / "out", on_bad_text="skip")
    record = read_record(tmp_path / "out")
    assert record["training"]["resumed"] == 1 and record["data"]["skipped"] >= 1


def test_skipped_steps_are_counted_over_interruptions(pretrain, interrupted, corpus, tmp_path, monkeypatch):
    forward, bad = ChinchillaForMaskedLM.forward, {3, 7}
    calls = 0

    @functools.wraps(forward)  # Trainer reads the signature
    def sometimes_bad(self, *args, **kwargs):
        nonlocal calls
        outputs = forward(self, *args, **kwargs)
        calls += self.training
        if self.training and calls in bad:
            outputs.loss = outputs.loss * float("nan")
        return outputs

    monkeypatch.setattr(ChinchillaForMaskedLM, "forward", sometimes_bad)
    options = {"dataset": corpus, **TINY, "max_steps": 10, "output_dir": tmp_path / "out"}
    interrupted(6, **options)  # the checkpoint of step 5 knows of one
    pretrain(**options)
    assert calls == 6 + 5 and read_record(tmp_path / "out")["training"]["skipped_steps"] == 2


def test_steps_that_are_not_finite_are_skipped_and_then_stop_the_run(pretrain, corpus, tmp_path, monkeypatch):
    forward = ChinchillaForMaskedLM.forward
    calls = {"count": 0, "bad": {3, 4}}

    @functools.wraps(forward)  # Trainer reads the signature
    def sometimes_bad(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        if self.training:
            calls["count"] += 1
            if calls["count"] in calls["bad"]:
                outputs.loss = outputs.loss * float("nan")
        return outputs

    monkeypatch.setattr(ChinchillaForMaskedLM, "forward", sometimes_bad)
    pretrain(dataset=corpus, **TINY, max_steps=10, output_dir=tmp_path / "out")
    record = read_record(tmp_path / "out")
    assert record["training"]["skipped_steps"] == 2 and record["training"]["steps"] == 10
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())

    calls.update(count=0, bad=set(range(5, 100)))
    with pytest.raises(SystemExit, match=r"error: 10 steps in a row .*the last one step 13 .*begin with item 104 "):
        pretrain(dataset=corpus, **TINY, max_steps=50, output_dir=tmp_path / "bad")


# ---- Several processes ----


def losses(folder: Path, step: int) -> list[float]:
    state = json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_take_the_steps_of_one(corpus, tmp_path, optimizer):
    options = {"dataset": corpus, **TINY, "max_steps": 50, "logging_steps": 1, "bf16": False, "keep_checkpoints": True}
    options |= {"save_steps": 50, "cache_dir": tmp_path / "cache", "optimizer": optimizer}
    for processes in (1, 2):
        share = {"per_device_train_batch_size": 8 // processes, "output_dir": tmp_path / str(processes)}
        ended = run_forked("pretrain", options | share, processes)
        assert ended.code == 0, ended.errors
    curves = [losses(tmp_path / str(processes), 50) for processes in (1, 2)]
    assert len(curves[0]) == len(curves[1]) == 50
    assert max(abs(a - b) for a, b in zip(*curves, strict=True)) < 1e-3


# The script, with notes of what a process holds, and a gradient that is not finite in one process.
OBSERVED = """
import json, runpy
from pathlib import Path

from chinchilla_hf.trainer import PretrainingTrainer
from torch.distributed.tensor import DTensor

training_step = PretrainingTrainer.training_step


def observed(self, model, *args, **kwargs):
    loss = training_step(self, model, *args, **kwargs)
    parameters = list(model.parameters())
    if self.state.global_step == 5 and self.args.process_index == 0:
        gradient = parameters[0].grad
        (gradient.to_local() if isinstance(gradient, DTensor) else gradient)[0] = float("nan")
    if self.state.global_step == 0:
        held = [parameter.to_local() if isinstance(parameter, DTensor) else parameter for parameter in parameters]
        notes = {
            "sharded": all(isinstance(parameter, DTensor) for parameter in parameters),
            "share": sum(part.numel() for part in held) / sum(parameter.numel() for parameter in parameters),
        }
        Path(self.args.output_dir, f"notes-{self.args.process_index}.json").write_text(json.dumps(notes))
    return loss


PretrainingTrainer.training_step = observed
runpy.run_path(SCRIPT, run_name="__main__")
"""

# Its launcher is told to end, as by a batch system.
STOPPED = f"""
import signal, sys

sys.path.append({str(Path(__file__).parents[1])!r})
from scripts import send_signal_at

send_signal_at(13, signal.SIGTERM, to_launcher=True)
"""


@pytest.mark.parametrize(("optimizer", "processes"), [("adamw", 2), ("muon", 1)])
def test_a_sharded_run_takes_the_steps_of_one_and_goes_on_anywhere(corpus, tmp_path, optimizer, processes):
    options = {"dataset": corpus, **TINY, "max_steps": 50, "logging_steps": 1, "bf16": False, "keep_checkpoints": True}
    options |= {"save_steps": 10, "cache_dir": tmp_path / "cache", "optimizer": optimizer}
    (tmp_path / "observed.py").write_text(OBSERVED.replace("SCRIPT", repr(str(TRAINING / "pretrain.py"))))
    straight, out = tmp_path / "straight", tmp_path / "out"
    ended = run_forked(tmp_path / "observed.py", options | {"output_dir": straight})
    assert ended.code == 0, ended.errors

    (tmp_path / "stopped.py").write_text(STOPPED + (tmp_path / "observed.py").read_text())
    shared = options | {"output_dir": out, "per_device_train_batch_size": 4}
    ended = launch(tmp_path / "stopped.py", 2, shared, fsdp=True)
    assert ended.code != 0 and "the same command goes on from there" in ended.errors, ended.errors
    assert list_checkpoints(out)[-1].name == "checkpoint-13" and not (out / "model.safetensors").exists()
    for process in range(2):
        notes = json.loads((out / f"notes-{process}.json").read_text())
        assert notes["sharded"] and 0.3 < notes["share"] < 0.7
    options |= {"output_dir": out, "per_device_train_batch_size": 8 // processes}
    ended = launch("pretrain", 2, options, fsdp=True) if processes > 1 else run_forked("pretrain", options)
    assert ended.code == 0, ended.errors

    assert read_record(out)["training"]["resumed"] == 1
    curves = losses(out, 50), losses(straight, 50)
    assert len(curves[0]) == len(curves[1]) == 50
    assert max(abs(a - b) for a, b in zip(*curves, strict=True)) < 1e-3
    models = [AutoModelForMaskedLM.from_pretrained(folder) for folder in (out, straight)]
    for ours, theirs in zip(*(model.state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    files = [{path.name for path in folder.iterdir() if path.suffix in (".py", ".json")} for folder in (out, straight)]
    assert {name for name in files[0] ^ files[1] if not name.startswith("notes")} == set()
    for config in ("config.json", "checkpoint-50/config.json"):  # the code that they name is ours
        assert (out / config).read_text() == (straight / config).read_text()


def test_a_run_goes_on_under_another_number_of_processes(corpus, tmp_path):
    options = {"dataset": corpus, **TINY, "max_steps": 40, "logging_steps": 1, "bf16": False, "keep_checkpoints": True}
    options |= {"cache_dir": tmp_path / "cache", "optimizer": "adamw"}
    out, straight = tmp_path / "out", tmp_path / "straight"
    killed = run_forked("pretrain", options | {"output_dir": out}, signal_at=(13, signal.SIGKILL))
    assert killed.code == -signal.SIGKILL
    for processes, folder in ((2, out), (1, straight)):
        share = {"output_dir": folder, "per_device_train_batch_size": 8 // processes}
        ended = run_forked("pretrain", options | share, processes)
        assert ended.code == 0, ended.errors
    curves = losses(out, 40), losses(straight, 40)
    assert len(curves[0]) == len(curves[1]) == 40
    assert max(abs(a - b) for a, b in zip(*curves, strict=True)) < 1e-3
    assert read_record(out)["training"]["resumed"] == 1


def test_two_processes_share_a_stream(corpus, tmp_path):
    """Told to end, and continued, to the same bits."""
    options = {"dataset": corpus, **TINY, **STREAM, "max_steps": 40, "cache_dir": tmp_path / "cache"}
    options |= {"hidden_dropout": 0.1, "output_dir": tmp_path / "out"}
    told = run_forked("pretrain", options, 2, signal_at=(13, signal.SIGTERM))
    assert told.code == 1 and "the same command goes on from there" in told.errors
    assert list_checkpoints(tmp_path / "out")[-1].name == "checkpoint-13"
    ended = run_forked("pretrain", options, 2)
    assert ended.code == 0, ended.errors
    record = read_record(tmp_path / "out")
    assert record["status"] == "finished" and record["training"]["resumed"] == 1
    assert record["data"]["rows"]["train"] == record["training"]["examples"] == 40 * 16
    ended = run_forked("pretrain", options | {"output_dir": tmp_path / "straight"}, 2)
    assert ended.code == 0, ended.errors
    assert same_weights(tmp_path / "out", tmp_path / "straight")
    assert read_record(tmp_path / "straight")["data"] == record["data"]


def test_two_processes_go_by_one_clock_through_a_stream(corpus, tmp_path):
    options = {"dataset": corpus, **TINY, **STREAM, "max_minutes": 0.05, "cache_dir": tmp_path / "cache"}
    ended = run_forked("pretrain", options | {"output_dir": tmp_path / "out"}, 2)
    assert ended.code == 0, ended.errors
    record = read_record(tmp_path / "out")
    assert record["status"] == "finished" and record["training"]["steps"] >= 1
    assert record["training"]["examples"] == record["training"]["steps"] * 16


# ---- Bad input ends before any training, with one line ----


SHORT = "\n\n".join(f"text number {i}" for i in range(100))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("\n\n", {}, "none with any text in it"),
        ("\n\n".join("abcdefghijklmnop"), {"validation_share": 0.5}, "no documents of two or more tokens"),
        ("the same\n\n" * 20, {}, "--validation_share is 0.1, which leaves (0|20) of 20 documents"),
        (b"ok\n\xff\xfe\n", {}, r"not UTF-8 at byte 3"),
        (SHORT, {"row_length": 1000}, "--row_length is 1000, but the model has 512 positions"),
        (SHORT, {"max_minutes": -1}, "max_minutes is -1"),
        (SHORT, {"max_steps": 0}, "max_steps is 0"),
        (SHORT, {"max_minutes": 1, "dataloader_num_workers": 2}, "dataloader_num_workers is 2"),
        (SHORT, {"masking_rate": 0}, "masking rate .start. is 0"),
        (SHORT, {"stream": True, "max_steps": -1}, "--stream needs --max_steps or --max_minutes"),
        (SHORT, {"stream": True, "next_sentence": True}, "--next_sentence cannot go with --stream"),
        (SHORT, {"stream": True, "window_characters": 0}, "window_characters is 0"),
        ("\n\n", {"stream": True}, "none with any text in it"),
        (
            "the same\n\n" * 20,
            {"stream": True},
            "validation_share is 0.1, which leaves (0|20) of the first 20 documents",
        ),
        (b"ok\n\xff\xfe\n", {"stream": True}, r"not UTF-8 at byte 3"),
    ],
)
def test_bad_input(pretrain, tmp_path, capsys, content, options, message):
    path = tmp_path / "corpus.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as exit_:
        pretrain(**{"dataset": path, **TINY, "max_steps": 5, "output_dir": tmp_path / "out", **options})
    printed = exit_.value.code if isinstance(exit_.value.code, str) else capsys.readouterr().err
    assert re.search(f"error: .*{message}", printed) and "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_larger_than_the_model(pretrain, corpus, tmp_path):
    tokenizer = train_tokenizer(["some words"] * 4, vocab_size=60, show_progress=False)
    ChinchillaForMaskedLM(ChinchillaConfig(vocab_size=10, hidden_size=32, num_hidden_layers=1)).save_pretrained(
        tmp_path / "model"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(SystemExit, match=r"error: the tokenizer has .* tokens, but the model only 10"):
        pretrain(
            dataset=corpus,
            model=tmp_path / "model",
            tokenizer=tmp_path / "tokenizer",
            max_steps=5,
            output_dir=tmp_path / "out",
        )


def test_the_folder_of_another_run_is_refused(pretrain, corpus, tmp_path):
    pretrain(dataset=corpus, **TINY, max_steps=5, output_dir=tmp_path / "out")
    (tmp_path / "other.txt").write_text("\n\n".join(f"text number {i}" for i in range(100)))
    for changes, message in (
        ({"dataset": tmp_path / "other.txt"}, "holds another run.*content has changed"),
        ({"masking_rate": 0.4}, "masking_rate: 0.3 -> 0.4"),
        ({}, "holds this very run, finished"),
    ):
        with pytest.raises(SystemExit, match=message):
            pretrain(**{"dataset": corpus, **TINY, "max_steps": 5, "output_dir": tmp_path / "out", **changes})

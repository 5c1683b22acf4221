"""The folder of a run: claimed, continued after an interruption, and filled with a model that is whole or none."""

import itertools
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_config
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainerCallback, set_seed

from chinchilla_hf import ChinchillaForSequenceClassification, output_folder, train_tokenizer
from chinchilla_hf.output_folder import (
    RUN_RECORD,
    claim_output_folder,
    last_whole_checkpoint,
    list_checkpoints,
    save_model_folder,
)
from chinchilla_hf.run_record import RunRecord
from chinchilla_hf.training_arguments import FineTuningArguments, result_neutral_options

STEPS, SAVE_STEPS, INTERRUPTED_AT = 6, 2, 5
# What Trainer needs of a checkpoint to continue; each of them can be cut short by a kill or a full disk.
CHECKPOINT_FILES = ["trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]


class InterruptAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def make_options(folder: Path, **changes) -> FineTuningArguments:
    settings = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "save_strategy": "steps",
        "save_steps": SAVE_STEPS,
        "save_total_limit": None,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return FineTuningArguments(**{**settings, **changes})


def make_record(folder: Path, fingerprint: str = "f00d", **changes) -> RunRecord:
    arguments = {"dataset": "my.csv", **make_options(folder, **changes).to_dict()}
    return RunRecord("text-classification", arguments, data={"name": "my.csv", "fingerprint": fingerprint})


def claim(folder: Path, *, overwrite: bool = False, write: bool = True, **changes) -> Path | None:
    """As a script claims it: the record of the options, and the neutral ones among them left out of the comparison."""
    record = make_record(folder, **changes)
    neutral = result_neutral_options(list(record.arguments))
    return claim_output_folder(folder, record, ignore=neutral, overwrite=overwrite, write=write)


def train(folder: Path, checkpoint: Path | None = None, interrupt_at: int = -1) -> dict[str, torch.Tensor]:
    """A real run; the weights that it ends with."""
    set_seed(0)
    model = ChinchillaForSequenceClassification(make_tiny_config(num_hidden_layers=1))
    rows = [{"input_ids": [5 + 3 * i, 6, 7 + i], "labels": i % 2, "length": 3} for i in range(24)]
    trainer = Trainer(model, make_options(folder), train_dataset=rows, callbacks=[InterruptAt(interrupt_at)])
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return model.state_dict()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """The folder of a run that was interrupted at step 5, with checkpoints of step 2 and 4. Copy it to change it."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    assert claim(folder) is None
    with pytest.raises(KeyboardInterrupt):
        train(folder, interrupt_at=INTERRUPTED_AT)
    return folder


@pytest.fixture
def run(interrupted, tmp_path) -> Path:
    return shutil.copytree(interrupted, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below `folder`: path -> bytes, `None` for a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def finish(folder: Path) -> None:
    record = RunRecord.read(folder / RUN_RECORD)
    record.status = "finished"
    record.write(folder / RUN_RECORD)


# Claiming


@pytest.mark.parametrize("there", [False, True])
def test_a_fresh_folder_is_claimed_with_a_record_that_says_running(tmp_path, there):
    folder = tmp_path / "runs" / "first"
    if there:
        folder.mkdir(parents=True)
    assert claim(folder) is None
    assert os.listdir(folder) == [RUN_RECORD]
    record = RunRecord.read(folder / RUN_RECORD)
    assert record.status == "running" and record.arguments["max_steps"] == STEPS
    assert "resumed" not in record.training


def test_the_same_command_again_finds_the_last_checkpoint_and_counts_the_interruptions(run):
    record = RunRecord.read(run / RUN_RECORD)
    record.training["head"] = {"strength": 0.1}
    record.write(run / RUN_RECORD)
    for times in (1, 2):
        assert claim(run) == run / "checkpoint-4"
        record = RunRecord.read(run / RUN_RECORD)
        assert record.training["resumed"] == times and record.status == "running"
        assert record.training["head"] == {"strength": 0.1}
    assert {path.name for path in run.iterdir()} == {RUN_RECORD, "checkpoint-2", "checkpoint-4"}


def test_a_continued_run_ends_with_the_weights_of_an_uninterrupted_one(run, tmp_path):
    whole = train(tmp_path / "whole")
    continued = train(run, checkpoint=claim(run))
    for name, weight in whole.items():
        torch.testing.assert_close(continued[name], weight, rtol=0, atol=0, msg=name)


def test_the_same_command_starts_anew_where_no_checkpoint_was_saved_yet(tmp_path):
    assert claim(tmp_path / "run") is None
    assert claim(tmp_path / "run") is None
    assert RunRecord.read(tmp_path / "run" / RUN_RECORD).training["resumed"] == 1


def test_a_kill_while_the_first_record_is_written_leaves_a_folder_that_can_be_claimed(tmp_path):
    folder = tmp_path / "run"
    code = (
        "import os, sys; from chinchilla_hf import run_record; run_record.os.fsync = lambda _: os._exit(9); "
        "run_record.RunRecord('t', {}, versions={}).write(sys.argv[1])"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code, str(folder / RUN_RECORD)], cwd=root).returncode == 9
    assert len(os.listdir(folder)) == 1  # the record's temporary file
    assert claim(folder) is None
    assert (folder / RUN_RECORD).exists()


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"learning_rate": 2e-5}, r"learning_rate: 0\.0001 -> 2e-05"),
        ({"max_steps": 8, "seed": 1}, r"max_steps: 6 -> 8; seed: 42 -> 1"),
        ({"fingerprint": "beef"}, "the data set's content has changed"),
        ({"fingerprint": "beef", "seed": 1}, "seed: 42 -> 1; the data set's content has changed"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_the_folder_of_another_run_is_refused_with_the_difference(run, changes, difference, finished):
    if finished:
        finish(run)
    before = contents(run)
    message = rf"{run} holds another run \({difference}\): choose another --output_dir, or add --overwrite true"
    with pytest.raises(FileExistsError, match=message):
        claim(run, **changes)
    assert contents(run) == before


def test_the_folder_of_the_same_run_is_refused_when_it_is_finished(run):
    finish(run)
    before = contents(run)
    with pytest.raises(FileExistsError, match=r"finished.*choose another --output_dir.* or add --overwrite true"):
        claim(run)
    assert contents(run) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_foreign_files_is_refused_and_not_touched(tmp_path, overwrite):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "model.safetensors").write_bytes(b"somebody's weights")
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"is not empty, and holds no run of ours.*choose another --output_dir"):
        claim(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("text", ['{"job": "of another program"}', "not even JSON"])
def test_a_run_json_of_another_program_is_refused_and_not_touched(tmp_path, overwrite, text):
    (tmp_path / RUN_RECORD).write_text(text)
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises((FileExistsError, ValueError), match="choose another"):
        claim(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == before


def test_neutral_options_do_not_make_another_run(run, tmp_path):
    moved = run.rename(tmp_path / "moved")  # so output_dir differs, too
    checkpoint = claim(
        moved,
        logging_steps=7,
        dataloader_num_workers=2,
        per_device_eval_batch_size=3,
        save_total_limit=2,
        disable_tqdm=False,
        hub_model_id="me/model",
        keep_checkpoints=True,
    )
    assert checkpoint == moved / "checkpoint-4"


def test_a_process_that_may_not_write_leaves_the_record_alone(run, tmp_path):
    before = contents(run)
    assert claim(run, write=False) == run / "checkpoint-4"
    assert claim(run, write=False, overwrite=True) == run / "checkpoint-4"  # deleting is the main process's as well
    assert contents(run) == before
    assert claim(tmp_path / "fresh", write=False) is None
    assert os.listdir(tmp_path / "fresh") == []


# Overwriting


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("changes", [{}, {"seed": 1, "fingerprint": "beef"}])
def test_overwrite_deletes_the_old_run_and_starts_anew(run, finished, changes):
    (run / "model.safetensors").write_bytes(b"the old model")
    if finished:
        finish(run)
    assert claim(run, overwrite=True, **changes) is None
    assert os.listdir(run) == [RUN_RECORD]
    record = RunRecord.read(run / RUN_RECORD)
    assert record.status == "running" and "resumed" not in record.training
    assert record.arguments["seed"] == changes.get("seed", 42)


def test_overwrite_works_where_tensorboard_has_logged(run):
    # Trainer puts its logs there; with TensorBoard installed, every run of ours has this folder.
    (run / "runs" / "Jan01_00-00-00").mkdir(parents=True)
    (run / "runs" / "Jan01_00-00-00" / "events.out.tfevents.0").write_bytes(b"old curves")
    assert claim(run, overwrite=True, seed=1) is None
    assert RunRecord.read(run / RUN_RECORD).arguments["seed"] == 1
    assert list_checkpoints(run) == []


def test_overwrite_that_is_interrupted_can_be_repeated(interrupted, tmp_path, monkeypatch):
    # A folder without its record, but with other files of the run, would be refused from then on.
    for crash_at in itertools.count():
        run = shutil.copytree(interrupted, tmp_path / str(crash_at))
        for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "confusion_matrix.png"):
            (run / name).write_text("of the old run")
        calls, unlink = itertools.count(), Path.unlink

        def crash(path, *args, crash_at=crash_at, calls=calls, unlink=unlink, **kwargs):
            if next(calls) == crash_at:
                raise KeyboardInterrupt
            unlink(path, *args, **kwargs)

        crashed = False
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", crash)
            try:
                claim(run, overwrite=True)
            except KeyboardInterrupt:
                crashed = True
        assert not crashed or claim(run, overwrite=True) is None
        assert os.listdir(run) == [RUN_RECORD]
        if not crashed:
            break
    assert crash_at > 0


# Checkpoints, whole and half-written


def test_checkpoints_are_listed_by_step_and_other_folders_are_not(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-100", "checkpoint-best", "checkpoint-", "logs"):
        (tmp_path / name).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]


def test_a_checkpoint_of_trainer_has_the_files_that_are_damaged_here(interrupted):
    assert set(CHECKPOINT_FILES) <= set(os.listdir(interrupted / "checkpoint-4"))


@pytest.mark.parametrize("name", ["trainer_state.json", "model.safetensors"])
def test_a_checkpoint_without_its_last_file_or_its_weights_is_removed(run, name, caplog):
    (run / "checkpoint-4" / name).unlink()
    with caplog.at_level(logging.WARNING):
        assert claim(run) == run / "checkpoint-2"
    assert f"removing {run / 'checkpoint-4'}, which was not saved to its end" in caplog.text
    assert not (run / "checkpoint-4").exists()


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_checkpoint_with_a_file_cut_short_is_removed(interrupted, run, name):
    size = (run / "checkpoint-4" / name).stat().st_size
    for length in (0, 1, size // 3, size // 2, size - 100, size - 2):  # the last byte of JSON is a mere line break
        os.truncate(run / "checkpoint-4" / name, length)
        assert claim(run) == run / "checkpoint-2", f"{name} has {length} of {size} bytes"
        assert not (run / "checkpoint-4").exists()
        shutil.copytree(interrupted / "checkpoint-4", run / "checkpoint-4")
    assert claim(run) == run / "checkpoint-4"  # whole again


def test_a_half_written_checkpoint_before_a_whole_one_is_removed_as_well(run):
    os.truncate(run / "checkpoint-2" / "optimizer.pt", 1000)
    assert claim(run) == run / "checkpoint-4"
    assert not (run / "checkpoint-2").exists()


def test_a_run_whose_checkpoints_are_all_half_written_starts_at_the_beginning(run):
    for checkpoint in list_checkpoints(run):
        (checkpoint / "trainer_state.json").unlink()
    assert last_whole_checkpoint(run) is None
    assert os.listdir(run) == [RUN_RECORD]


def test_a_checkpoint_may_hold_what_lora_trains_alone(run):
    last = list_checkpoints(run)[-1]
    (last / "model.safetensors").rename(last / "adapter_model.safetensors")
    assert last_whole_checkpoint(run) == last
    (last / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    assert last_whole_checkpoint(run) != last and not last.exists()


# The result


def make_pair(norm_placement: str, labels: list[str], texts: list[str]):
    """Pairs of one shape: weights of one load under the config of the other, and only the outputs would tell."""
    tokenizer = train_tokenizer(texts, vocab_size=60, show_progress=False)
    config = make_tiny_config(norm_placement=norm_placement, id2label=dict(enumerate(labels)))
    return ChinchillaForSequenceClassification(config), tokenizer


@pytest.fixture(scope="module")
def pairs():
    torch.manual_seed(0)
    old = make_pair("output", ["no", "yes"], ["an old text of a few old words", "old words, an old text"])
    new = make_pair("post", ["bad", "good"], ["a new text, new words of the new model", "new words make a new text"])
    return {"old": old, "new": new}


@pytest.fixture(scope="module")
def references(pairs, tmp_path_factory) -> dict[str, Path]:
    """Both models as Transformers itself saves them."""
    folders = {name: tmp_path_factory.mktemp(name) for name in pairs}
    for name, (model, tokenizer) in pairs.items():
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


def loadable(folder: Path, references: dict[str, Path]) -> str | None:
    """Which of the models `folder` holds, in every file; `None` if it does not load at all. Anything else fails."""
    try:
        ChinchillaForSequenceClassification.from_pretrained(folder)
    except OSError:
        return None
    AutoTokenizer.from_pretrained(folder)
    files = {name: data for name, data in contents(folder).items() if not name.startswith(".saving-")}
    matching = [name for name, reference in references.items() if files == contents(reference)]
    assert matching, f"a model loads from {sorted(files)}, but not every file is of the same model"
    return matching[0]


def test_a_saved_model_folder_loads_with_the_same_outputs(pairs, references, tmp_path):
    model, tokenizer = pairs["new"]
    save_model_folder(model, tokenizer, tmp_path / "deep" / "model")
    assert loadable(tmp_path / "deep" / "model", references) == "new"
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "deep" / "model").eval()
    loaded_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "deep" / "model")
    inputs = loaded_tokenizer("new words of a model", return_tensors="pt")
    assert inputs["input_ids"].tolist() == tokenizer("new words of a model", return_tensors="pt")["input_ids"].tolist()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model.eval()(**inputs).logits, rtol=0, atol=0)
    assert loaded.config.id2label == {0: "bad", 1: "good"}


def test_a_new_model_replaces_an_older_one_and_leaves_other_files(pairs, references, tmp_path):
    (tmp_path / RUN_RECORD).write_text("{}")
    for name in ("old", "new", "old"):
        save_model_folder(*pairs[name], tmp_path)
        assert (tmp_path / RUN_RECORD).read_text() == "{}"
        assert contents(tmp_path) == {**contents(references[name]), RUN_RECORD: b"{}"}


def test_a_new_model_replaces_one_whose_weights_are_in_several_files(pairs, references, tmp_path):
    pairs["old"][0].save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1 and (tmp_path / "model.safetensors.index.json").exists()
    save_model_folder(*pairs["new"], tmp_path)
    assert contents(tmp_path) == contents(references["new"])


@pytest.mark.parametrize("before", [None, "old"])
def test_a_crash_between_the_renames_leaves_a_whole_model_or_none(pairs, references, tmp_path, monkeypatch, before):
    outcomes = []
    for crash_at in itertools.count():
        folder = tmp_path / str(crash_at)
        if before:
            save_model_folder(*pairs[before], folder)
        calls, replace = itertools.count(), os.replace

        def crash(*args, crash_at=crash_at, calls=calls, replace=replace):
            if next(calls) == crash_at:
                raise KeyboardInterrupt
            replace(*args)

        crashed = False
        with monkeypatch.context() as patch:
            patch.setattr(output_folder.os, "replace", crash)
            try:
                save_model_folder(*pairs["new"], folder)
            except KeyboardInterrupt:
                crashed = True
        outcomes.append(loadable(folder, references))
        assert not list(folder.glob(".saving-*"))
        if not crashed:
            break
    assert len(outcomes) == len(contents(references["new"])) + 1
    assert outcomes[-1] == "new"


def test_a_full_disk_leaves_the_old_model_and_no_staging_folder(pairs, references, tmp_path):
    resource = pytest.importorskip("resource")
    save_model_folder(*pairs["old"], tmp_path)
    # No file may grow to the size of the weights: they fail to be written, after the config was.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((references["new"] / "model.safetensors").stat().st_size - 1, hard))
    try:
        with pytest.raises(Exception, match="File too large"):
            save_model_folder(*pairs["new"], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path) == contents(references["old"])


def test_the_staging_folder_of_a_killed_process_is_gone_after_the_next_save(pairs, references, tmp_path):
    (tmp_path / ".saving-killed").mkdir()
    (tmp_path / ".saving-killed" / "model.safetensors").write_bytes(b"as large as the model")
    save_model_folder(*pairs["new"], tmp_path)
    assert contents(tmp_path) == contents(references["new"])


# Forks a process a round, because the imports would take seconds in each. Loading starts threads, which a fork would
# leave behind with their locks, so the child does it.
SAVER = """
import os, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer
import chinchilla_hf.modeling_chinchilla
from chinchilla_hf.output_folder import save_model_folder

folder, *references = sys.argv[1:]
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        load = AutoModelForSequenceClassification.from_pretrained, AutoTokenizer.from_pretrained
        pairs = [[load_one(reference) for load_one in load] for reference in references]
        for pair, reference in zip(pairs, references):
            for part in pair:
                part.save_pretrained(reference)  # the files as they are after loading, to compare with
        for pair in pairs:
            save_model_folder(*pair, folder)
        print(os.getpid(), flush=True)
        while True:
            for pair in pairs:
                save_model_folder(*pair, folder)
    os.waitpid(child, 0)
    print("killed", flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_process_killed_while_saving_leaves_a_whole_model_or_none(references, tmp_path):
    copies = {name: shutil.copytree(folder, tmp_path / name) for name, folder in references.items()}
    folder = tmp_path / "model"
    moments = random.Random(0)
    saver = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(folder), *map(str, copies.values())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    with saver:
        try:
            for _ in range(12):
                print("next", file=saver.stdin, flush=True)
                child = int(saver.stdout.readline())  # both models are saved once, and the process goes on saving
                time.sleep(moments.uniform(0, 0.12))  # a save takes half as long
                os.kill(child, signal.SIGKILL)
                assert saver.stdout.readline() == "killed\n"
                loadable(folder, copies)
        finally:
            os.killpg(saver.pid, signal.SIGKILL)  # its child, too, if it is still saving

"""The defaults of fine-tuning, on this machine's hardware and in a plain `Trainer`."""

import dataclasses
import importlib.machinery
import importlib.util
import math
import time
from pathlib import Path

import pytest
import torch
from conftest import make_tiny_config
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from chinchilla_hf import ChinchillaForSequenceClassification, training_arguments
from chinchilla_hf.callbacks import processor_seconds
from chinchilla_hf.training_arguments import (
    FineTuningArguments,
    PretrainingArguments,
    bf16_is_fast,
    choose_attention,
    result_neutral_options,
)

ACCELERATOR = torch.accelerator.is_available()
only_cpu = pytest.mark.skipif(ACCELERATOR, reason="about machines without an accelerator")


def make_arguments(folder: Path, **changes) -> FineTuningArguments:
    return FineTuningArguments(**{"output_dir": str(folder), "report_to": "none", "disable_tqdm": True, **changes})


# Hardware


@only_cpu
def test_bf16_is_fast_where_the_processor_lists_bf16_instructions():
    cpu_info = Path("/proc/cpuinfo")
    if not cpu_info.exists():
        pytest.skip("the system does not list the processor's instruction sets")
    flags = set(cpu_info.read_text().split())
    assert bf16_is_fast() == bool(flags & {"avx512_bf16", "amx_tile"})


@pytest.mark.parametrize("fast", [False, True])
def test_bf16_is_on_by_default_where_it_is_fast(tmp_path, monkeypatch, fast):
    assert make_arguments(tmp_path).bf16 is bf16_is_fast()
    # No machine is both kinds.
    monkeypatch.setattr(training_arguments, "bf16_is_fast", lambda: fast)
    assert make_arguments(tmp_path).bf16 is fast


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_bf16_that_is_given_stays(tmp_path, monkeypatch, fast, given):
    monkeypatch.setattr(training_arguments, "bf16_is_fast", lambda: fast)
    assert make_arguments(tmp_path, bf16=given).bf16 is given


def test_bf16_is_not_chosen_beside_fp16(tmp_path, monkeypatch):
    monkeypatch.setattr(training_arguments, "bf16_is_fast", lambda: True)
    arguments = make_arguments(tmp_path, fp16=True)
    assert arguments.fp16 and arguments.bf16 is False


def test_the_cpu_is_used_only_where_there_is_no_accelerator_or_when_told_to(tmp_path):
    assert make_arguments(tmp_path).use_cpu is not ACCELERATOR
    assert make_arguments(tmp_path, use_cpu=True).use_cpu


@only_cpu
def test_bf16_works_on_a_cpu_without_being_told_to_use_it(tmp_path):
    with pytest.raises(ValueError, match="use_cpu"):  # the reason for setting it
        TrainingArguments(output_dir=str(tmp_path), bf16=True)
    assert make_arguments(tmp_path, bf16=True).device.type == "cpu"


@pytest.mark.parametrize(
    ("bf16", "mean_length", "attention"),
    [(True, 30.0, "eager"), (True, 199.9, "eager"), (True, 200.0, "sdpa"), (False, 30.0, "sdpa")],
)
def test_eager_attention_is_chosen_for_short_texts_in_bf16_on_a_cpu(tmp_path, bf16, mean_length, attention):
    arguments = make_arguments(tmp_path, bf16=bf16, use_cpu=True)
    assert choose_attention(arguments, mean_length) == attention


@pytest.mark.skipif(not ACCELERATOR, reason="about machines with an accelerator")
def test_fused_attention_is_chosen_on_an_accelerator(tmp_path):
    assert choose_attention(make_arguments(tmp_path, bf16=True), 30.0) == "sdpa"


# Where to log


@pytest.mark.parametrize(("installed", "report_to"), [(True, ["tensorboard"]), (False, [])])
def test_logs_go_to_tensorboard_where_it_is_installed(tmp_path, monkeypatch, installed, report_to):
    find_spec = importlib.util.find_spec

    def find(name, *arguments):
        if name != "tensorboard":
            return find_spec(name, *arguments)
        return importlib.machinery.ModuleSpec(name, None) if installed else None

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert make_arguments(tmp_path, report_to="auto").report_to == report_to
    assert FineTuningArguments(output_dir=str(tmp_path)).report_to == report_to


@pytest.mark.parametrize(("given", "report_to"), [("none", []), ("wandb", ["wandb"]), (["wandb", "mlflow"], None)])
def test_a_place_to_log_that_is_given_stays(tmp_path, given, report_to):
    assert make_arguments(tmp_path, report_to=given).report_to == (report_to if report_to is not None else given)


# The defaults as a whole


def test_the_defaults_are_those_of_fine_tuning(tmp_path):
    arguments = make_arguments(tmp_path)
    assert (arguments.learning_rate, arguments.num_train_epochs, arguments.warmup_steps) == (1e-4, 5.0, 0.06)
    assert arguments.eval_strategy == arguments.save_strategy == "epoch"
    assert arguments.load_best_model_at_end and arguments.save_total_limit == 1
    assert arguments.early_stopping_patience == 3
    assert not (arguments.overwrite or arguments.keep_checkpoints or arguments.push_to_hub)


def test_every_option_that_is_declared_here_has_help_and_a_default():
    declared = FineTuningArguments.__annotations__
    fields = {field.name: field for field in dataclasses.fields(FineTuningArguments)}
    for name in declared:
        assert fields[name].metadata["help"].endswith("."), name
        assert fields[name].default is not dataclasses.MISSING, name


def test_arguments_survive_a_copy(tmp_path):
    # Trainer and hyperparameter searches copy them, which runs __post_init__ again on what it made.
    arguments = make_arguments(tmp_path, learning_rate=3e-4)
    assert dataclasses.replace(arguments).to_dict() == arguments.to_dict()


def test_a_plain_trainer_runs_with_the_defaults(tmp_path):
    model = ChinchillaForSequenceClassification(make_tiny_config())
    rows = [{"input_ids": [5 + i, 6, 7 + i], "labels": i % 2, "length": 3} for i in range(8)]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    run = Trainer(
        model,
        make_arguments(tmp_path, num_train_epochs=2, per_device_train_batch_size=8),
        train_dataset=rows,
        eval_dataset=rows,
    )
    assert isinstance(run._get_train_sampler(), LengthGroupedSampler)
    result = run.train()
    assert run.state.global_step == 2 and math.isfinite(result.training_loss)
    assert any(not torch.equal(weight.cpu(), before[name]) for name, weight in model.state_dict().items())
    # The best one stays, and so does the last one, to continue from.
    losses = {log["step"]: log["eval_loss"] for log in run.state.log_history if "eval_loss" in log}
    assert run.state.best_global_step == min(losses, key=losses.get)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {
        "checkpoint-2",
        f"checkpoint-{run.state.best_global_step}",
    }


# Options that may differ between a run and its continuation


def test_options_that_only_show_or_keep_are_neutral():
    shown = ["logging_steps", "log_level", "report_to", "run_name", "disable_tqdm", "output_dir", "overwrite"]
    kept = ["save_total_limit", "keep_checkpoints", "push_to_hub", "hub_model_id", "hub_token"]
    fast = ["dataloader_num_workers", "dataloader_pin_memory", "per_device_eval_batch_size"]
    assert result_neutral_options([*shown, *kept, *fast]) == {*shown, *kept, *fast}


@pytest.mark.parametrize(
    "name",
    [
        "dataset",
        "model",
        "learning_rate",
        "max_steps",
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "seed",
        "data_seed",
        "bf16",
        "optim",
        "train_sampling_strategy",
        "metric_for_best_model",
        "load_best_model_at_end",
        "save_strategy",
        "eval_steps",
        # Without the last, smaller batch an epoch has one step less, and some texts are never seen.
        "dataloader_drop_last",
    ],
)
def test_options_that_change_the_result_are_not_neutral(name):
    assert result_neutral_options([name, "logging_steps"]) == {"logging_steps"}


def test_the_neutral_options_are_options():
    names = {field.name for field in dataclasses.fields(FineTuningArguments)}
    assert names >= training_arguments.RESULT_NEUTRAL_OPTIONS
    for prefix in training_arguments.RESULT_NEUTRAL_PREFIXES:
        assert any(name.startswith(prefix) for name in names), prefix


def test_minutes_are_of_the_wall_or_of_the_cpu(tmp_path):
    assert PretrainingArguments(str(tmp_path)).clock() is None
    for budget, seconds in (("wall", time.monotonic), ("cpu", processor_seconds)):
        clock = PretrainingArguments(str(tmp_path), max_minutes=2, time_budget=budget, use_cpu=True).clock()
        assert clock.max_minutes == 2 and clock._now is seconds

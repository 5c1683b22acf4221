import enum
import getpass
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from chinchilla_hf import run_record
from chinchilla_hf.run_record import (
    RunRecord,
    command_line,
    describe_machine,
    describe_model,
    package_versions,
    peak_memory_bytes,
    write_atomically,
)

KEYS = ["task", "arguments", "data", "model", "training", "scores", "plan", "samples", "exported", "machine"]
KEYS += ["versions", "command", "status"]


class Schedule(enum.Enum):
    LINEAR = "linear"


def test_written_and_read_back_the_same(tmp_path):
    path = tmp_path / "out" / "run.json"
    record = RunRecord(
        "text-classification", {"learning_rate": 3e-5, "b": 1}, data={"rows": {"train": 7}}, status="finished"
    )
    record.write(path)
    written = path.read_bytes()
    assert list(json.loads(written)) == KEYS
    again = RunRecord.read(path)
    assert again == record
    again.write(path)
    assert path.read_bytes() == written
    assert os.listdir(path.parent) == ["run.json"]


def test_values_are_safe_for_any_json_reader(tmp_path):
    arguments = {
        "nan": float("nan"),
        "infinity": np.float32("inf"),
        "number": np.float32(0.5),
        "integer": np.int64(3),
        "array": np.array([1.0, np.nan]),
        "tensor": torch.tensor([1, 2]),
        "path": Path("data/train.csv"),
        "schedule": Schedule.LINEAR,
        "dtype": torch.bfloat16,
        "set": {"b", "a"},
        "tuple": (1, 2),
        "nested": {1: [float("nan")]},
        "flag": True,
    }
    RunRecord("t", arguments).write(tmp_path / "run.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads((tmp_path / "run.json").read_text(), parse_constant=refuse)
    assert read["arguments"] == {
        "nan": None,
        "infinity": None,
        "number": 0.5,
        "integer": 3,
        "array": [1.0, None],
        "tensor": [1, 2],
        "path": "data/train.csv",
        "schedule": "linear",
        "dtype": "torch.bfloat16",
        "set": ["a", "b"],
        "tuple": [1, 2],
        "nested": {"1": [None]},
        "flag": True,
    }


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_record_whole(tmp_path, monkeypatch, failing):
    path = tmp_path / "run.json"
    RunRecord("t", {"a": 1}).write(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(run_record.os, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        RunRecord("t", {"a": 2}).write(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["run.json"]


def test_a_kill_while_writing_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "run.json"
    write_atomically(path, b"old")
    # The process dies between writing the bytes and putting them in place.
    code = (
        "import os, sys; from chinchilla_hf import run_record; run_record.os.fsync = lambda _: os._exit(9); "
        "run_record.write_atomically(sys.argv[1], b'new' * 10000)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[1]).returncode == 9
    assert path.read_bytes() == b"old"


def test_a_record_that_cannot_be_written_is_refused_before_the_old_one_is_touched(tmp_path):
    path = tmp_path / "run.json"
    RunRecord("t", {}).write(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="'done', but a run is one of running, finished"):
        RunRecord("t", {}, status="done").write(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"task": "t"}', '{"task": "t", "arguments": {}, "novelty": 1}', "\x00"]
)
def test_reading_something_else_says_what_to_do(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is not a run record .*choose another output folder"):
        RunRecord.read(path)


def test_reading_does_not_fill_in_this_process(tmp_path):
    (tmp_path / "run.json").write_text('{"task": "t", "arguments": {}}')
    record = RunRecord.read(tmp_path / "run.json")
    assert record.versions == {} and record.command == ""


def test_differences_are_readable_and_sorted():
    record = RunRecord(
        "t", {"learning_rate": 3e-5, "epochs": 3, "files": ("a", "b"), "logging_steps": 10, "hub_token": "x"}
    )
    same = {"files": ["a", "b"], "epochs": 3.0, "learning_rate": 3e-5, "logging_steps": 50, "new_option": None}
    assert record.differences(same, ignore={"logging_steps"}) == []
    assert record.differences({"learning_rate": 5e-5, "epochs": 3, "files": ["a"], "seed": 1}) == [
        "files: ['a', 'b'] -> ['a']",
        "learning_rate: 3e-05 -> 5e-05",
        "logging_steps: 10 -> None",
        "seed: None -> 1",
    ]


def test_differences_after_reading_back(tmp_path):
    arguments = {"learning_rate": 3e-5, "output_dir": Path("out"), "schedule": Schedule.LINEAR, "ratio": float("nan")}
    RunRecord("t", arguments).write(tmp_path / "run.json")
    assert RunRecord.read(tmp_path / "run.json").differences(arguments) == []


def test_command_line_is_as_typed_without_secrets(monkeypatch):
    typed = ["training/classify.py", "--train_file", "my data.csv", "--hub_token", "hf_abc", "--hf-token=hf_abc"]
    monkeypatch.setattr(sys, "argv", [*typed, "--mask_token", "[MASK]"])
    assert command_line() == (
        "python training/classify.py --train_file 'my data.csv' --hub_token ... --hf-token=... --mask_token '[MASK]'"
    )


def test_command_line_of_a_module_is_not_a_path_nobody_typed(tmp_path):
    (tmp_path / "job.py").write_text("from chinchilla_hf.run_record import command_line\nprint(command_line())")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "job", "--epochs", "3"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "python -m job --epochs 3"


def test_no_secret_and_no_name_of_user_or_host(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["training/classify.py"])
    arguments = {
        "hub_token": "hf_secret",
        "push_to_hub_token": "hf_secret",
        "token": "hf_secret",
        "mask_token": "[MASK]",
    }
    RunRecord("t", arguments, machine=describe_machine("cpu")).write(tmp_path / "run.json")
    text = (tmp_path / "run.json").read_text()
    assert "hf_secret" not in text and "[MASK]" in text
    words = set(text.replace('"', " ").replace("/", " ").split())
    assert platform.node() not in words and getpass.getuser() not in words


def test_machine_and_versions():
    machine = describe_machine("cpu")
    assert machine["device"] == "cpu" and machine["gpu"] is None
    assert machine["threads"] == torch.get_num_threads() and 1 <= machine["cpus"] <= (os.cpu_count() or 1)
    assert set(machine["cpu_features"]) <= set(run_record.CPU_FEATURES)
    versions = package_versions()
    assert (
        versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
        and versions["python"] == platform.python_version()
    )
    assert list(versions)[:2] == ["python", "chinchilla_hf"]


def test_model_is_described_with_shared_parameters_once():
    config = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertForMaskedLM(config)  # ties the embeddings to the head
    described = describe_model(model, base_model="me/base")
    assert described["parameters"] == model.num_parameters()
    assert described["class"] == "BertForMaskedLM" and described["base_model"] == "me/base"
    assert described["config"]["hidden_size"] == 8 and "norm_placement" not in described["config"]


def test_peak_memory_is_in_bytes():
    code = (
        "from chinchilla_hf.run_record import peak_memory_bytes as peak; before = peak(); block = bytearray(2**27); "
        "block[::4096] = b'x' * len(block[::4096]); print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert 2**27 * 0.8 < int(done.stdout) < 2**27 * 1.5


def test_peak_memory_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(run_record.os.path, "exists", lambda _: False)
    assert 2**24 < peak_memory_bytes() < 2**37  # from getrusage
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_bytes() is None

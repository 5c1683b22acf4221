"""What the tests of the scripts in `training/` share."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

TRAINING = Path(__file__).parents[1] / "training"


def load_script(name: str, monkeypatch) -> ModuleType:
    """The script `training/<name>.py`, which is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(name, TRAINING / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # the annotations of its dataclasses are looked up there
    spec.loader.exec_module(module)
    return module


def run_script(name: str, monkeypatch, arguments: list[str]) -> None:
    """Run the script in this process, as if `arguments` stood on its command line."""
    monkeypatch.setattr(sys, "argv", [str(TRAINING / f"{name}.py"), *arguments])
    load_script(name, monkeypatch).main()


def launcher(processes: int, *, fsdp: bool = False) -> list[str]:
    """The beginning of a command line that starts a script in several processes."""
    if fsdp:
        config = str(TRAINING / "accelerate" / "fsdp.yaml")
        accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
        return [*accelerate, "--num_processes", str(processes), "--main_process_port", "0"]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def launch(
    name: str, processes: int, options: dict[str, object], *, fsdp: bool = False, folder: Path = TRAINING
) -> str:
    """Run the script in several processes, each with one thread; what they printed."""
    command = [*launcher(processes, fsdp=fsdp), str(folder / f"{name}.py"), *words(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def words(options: dict[str, object]) -> list[str]:
    """Options as a command line."""
    listed = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    return [str(word) for name, values in listed.items() for word in (f"--{name}", *values)]


def read_record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> None:
    """Until `condition()` holds; fails when the process ends before that, or in `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended early: {process.stderr.read()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop_at_checkpoint(command: list[str], folder: Path, step: int, signal_number: int) -> tuple[int, str]:
    """Start `command`, send the signal when the checkpoint of `step` is whole: exit status and standard error."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(folder.glob(f"checkpoint-{step}/trainer_state.json")), process)
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=60)
    assert not (folder / "model.safetensors").exists()
    return process.returncode, errors

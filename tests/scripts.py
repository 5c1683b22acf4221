"""What the tests of the scripts in `training/` share."""

import functools
import importlib.util
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from types import ModuleType

import torch
from torch.distributed import TCPStore
from transformers.trainer_callback import DefaultFlowCallback

from chinchilla_hf.scaling import machine

TRAINING = Path(__file__).parents[1] / "training"
# The ceiling of the machine is in no result that tests look at, and takes a second to measure.
QUICK_MEASUREMENT = functools.partial(machine.matmul_flops_per_second, size=64, seconds=0.01)


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
    monkeypatch.setattr(machine, "matmul_flops_per_second", QUICK_MEASUREMENT)
    load_script(name, monkeypatch).main()


# ---- In processes of their own ----
#
# They are forked from one that has imported what the scripts import, which takes longer than most runs here, and has
# done nothing else. What is about the launchers themselves, or about how a process ends, uses `launch` instead. Where
# there is an accelerator, one process takes it, and several train on the CPU unless there is one for each.


@functools.cache
def process_context() -> BaseContext:
    if torch.accelerator.is_available():
        return multiprocessing.get_context("spawn")  # CUDA cannot be used in a process that was forked
    context = multiprocessing.get_context("forkserver")
    ours = (
        "baselines",
        "data.labelled",
        "data.questions",
        "data.streaming",
        "data.tagged",
        "modeling_chinchilla",
        "modeling_chinchilla_seq2seq",
        "trainer",
    )
    context.set_forkserver_preload(["scripts", *(f"chinchilla_hf.{name}" for name in ours)])
    return context


@dataclass
class Ended:
    """How the processes of a run ended: exit status, of one that failed if any did, and what all of them printed."""

    code: int
    output: str
    errors: str


def run_forked(
    script: str | Path,
    options: dict[str, object],
    processes: int = 1,
    signal_at: tuple[int, signal.Signals] | None = None,
) -> Ended:
    """
    Run a script of `training/`, by its name, or another file, each process with one thread.

    Args:
        script: the script.
        options: of its command line.
        processes: how many, as torchrun would start them.
        signal_at: a step, and the signal that every process gets at its end.
    """
    path = TRAINING / f"{script}.py" if isinstance(script, str) else script
    environment = environment_of(processes)
    if processes > 1:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # the meeting point; a free port
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "LOCAL_WORLD_SIZE": str(processes)}
        environment |= {"WORLD_SIZE": str(processes)}
    output, errors = (Path(options["output_dir"]).with_suffix(suffix) for suffix in (".stdout", ".stderr"))
    for file in (output, errors):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    started = []
    for rank in range(processes):
        own = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})
        arguments = (str(path), words(options), own, str(output), str(errors), signal_at)
        started.append(process_context().Process(target=_run_here, args=arguments))
        started[-1].start()
    deadline = time.monotonic() + 250
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
    ended = [process.exitcode is not None for process in started]
    for process in started:
        process.kill()
    assert all(ended), f"still running after 250 s: {errors.read_text()}"
    code = next((process.exitcode for process in started if process.exitcode), 0)
    return Ended(code, output.read_text(), errors.read_text())


def environment_of(processes: int) -> dict[str, str]:
    """Ours, without accelerators if there are not enough of them."""
    enough = processes == 1 or torch.accelerator.device_count() >= processes
    return dict(os.environ) | ({} if enough else {"CUDA_VISIBLE_DEVICES": ""})


def _run_here(
    path: str,
    arguments: list[str],
    environment: dict[str, str],
    output: str,
    errors: str,
    signal_at: tuple[int, signal.Signals] | None,
) -> None:
    """Be the process of a script, from its command line to its end."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [path, *arguments]
    for descriptor, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
    machine.matmul_flops_per_second = QUICK_MEASUREMENT
    if signal_at is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs do not have
        send_signal_at(*signal_at)
    runpy.run_path(path, run_name="__main__")


def send_signal_at(step: int, number: signal.Signals, to_launcher: bool = False) -> None:
    """
    At the end of this step, before its checkpoint, a run of Trainer in this process gets the signal.

    With `to_launcher` the launcher gets it, and the first process waits until it is handed on.
    """
    on_step_end = DefaultFlowCallback.on_step_end  # Trainer's first callback

    def signalled(self, args, state, control, **kwargs):
        if state.global_step == step and not to_launcher:
            os.kill(os.getpid(), number)
        elif state.global_step == step and os.environ["RANK"] == "0":
            handler, received = signal.getsignal(number), []
            signal.signal(number, lambda *arguments: received.append(handler(*arguments)))
            os.kill(os.getppid(), number)
            while not received:
                time.sleep(0.01)
        return on_step_end(self, args, state, control, **kwargs)

    DefaultFlowCallback.on_step_end = signalled


def launch(script: str | Path, processes: int, options: dict[str, object], *, fsdp: bool = False) -> Ended:
    """Start a script of `training/`, by its name, or another file, as users do: with a launcher."""
    path = TRAINING / f"{script}.py" if isinstance(script, str) else script
    if fsdp:
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", str(TRAINING / "accelerate" / "fsdp.yaml")]
        command += ["--num_processes", str(processes), "--main_process_port", "0"]
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(path), *words(options)]
    environment = environment_of(processes)
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    return Ended(result.returncode, result.stdout, result.stderr)


def words(options: dict[str, object]) -> list[str]:
    """Options as a command line."""
    listed = {name: value if isinstance(value, list) else [value] for name, value in options.items()}
    return [str(word) for name, values in listed.items() for word in (f"--{name}", *values)]


def read_record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())

"""
The record of a run: `run.json` beside a checkpoint.

It says what was run, on what, and what came out, so that every number in a model card can be looked up and every run
repeated, and so that a script can tell whether an output folder holds the run that it is about to continue or another
one. The record is written when a run starts (`status` is `"running"`) and again when it ends (`"finished"`).

It is meant to be published with the checkpoint: it holds no host name, no user name and no access token. The command
line is kept as the user typed it, with whatever paths are in it.
"""

import dataclasses
import enum
import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainerState

STATUSES = ("running", "finished")

# What a reader needs to tell one model from another; the rest is in config.json, in the same folder.
CONFIG_ESSENTIALS = (
    "model_type",
    "problem_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "norm_placement",
    "position_embedding_type",
)
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "scikit-learn", "numpy")
# Instruction sets that decide how fast bfloat16, int8 and plain float32 are; names as in /proc/cpuinfo.
CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "bf16", "i8mm")

# Watts that an estimate of the energy of a run assumes: of a thread of a CPU, with its share of memory and supply, and
# of any other device. Nobody measured them.
ASSUMED_WATTS = {"cpu": 10.0, "accelerator": 400.0}

# Options that hold a secret: hub_token, push_to_hub_token, --hf-token; but not mask_token.
_SECRET_OPTION = re.compile(r"(--)?(\w+[_-])?((hub|hf|access|auth|api)[_-])token|(--)?token", re.IGNORECASE)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """
    Write `content` so that `path` holds either what it held before or all of `content`, whatever happens meanwhile.

    Raises:
        OSError: the folder cannot be written; the old file is whole and no temporary file is left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path, os.getpid())
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _temporary(path: Path, process: int | str) -> Path:
    # In the same folder, because a rename is atomic only within one file system.
    return path.with_name(f".{path.name}.{process}.tmp")


def is_temporary(candidate: Path, path: Path) -> bool:
    """Whether `candidate` is what [`write_atomically`] leaves of `path` when the process is killed."""
    return candidate.match(_temporary(path, "*").name)


def peak_memory_bytes() -> int | None:
    """Largest resident memory of this process so far, in bytes; `None` where the system does not tell (Windows)."""
    # Linux keeps ru_maxrss across exec, so under a launcher getrusage would tell the launcher's peak if that is larger.
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status", encoding="utf-8") as file:
            for line in file:
                if line.startswith("VmHWM:"):  # in kB, proc_pid_status(5)
                    return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage(2): bytes on macOS, kilobytes elsewhere.
    return peak if sys.platform == "darwin" else peak * 1024


def command_line() -> str:
    """The command that started this process, ready for a shell; the value of an access token is left out."""
    main_spec = getattr(sys.modules["__main__"], "__spec__", None)
    arguments = list(sys.argv)
    # With `python -m package.module`, Python puts the full path of the module there: a path that nobody typed.
    if main_spec is not None and arguments and os.path.isabs(arguments[0]):
        arguments[:1] = ["-m", main_spec.name.removesuffix(".__main__")]
    for i, argument in enumerate(arguments):
        option, equals, _ = argument.partition("=")
        if _SECRET_OPTION.fullmatch(option) and equals:
            arguments[i] = f"{option}=..."
        elif i > 0 and _SECRET_OPTION.fullmatch(arguments[i - 1]):
            arguments[i] = "..."
    return shlex.join(["python", *arguments])


def package_versions() -> dict[str, str]:
    """Versions of Python, of this library and of the packages whose change could change a result."""
    from . import __version__

    versions = {"python": platform.python_version(), "chinchilla_hf": __version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # not every job needs all of them
            continue
    return versions


def describe_machine(device: "torch.device | str") -> dict[str, Any]:
    """What decides the speed of a run on `device`: CPU model, number and instruction sets, threads, GPU name."""
    import torch

    device = torch.device(device)
    cpu_info: dict[str, str] = {}
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                cpu_info.setdefault(key.strip(), value.strip())
    flags = cpu_info.get("flags", cpu_info.get("Features", "")).split()
    # A container or a batch system may give this process fewer CPUs than the machine has.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_info.get("model name"),
        "cpu_features": [feature for feature in CPU_FEATURES if feature in flags],
        "cpus": cpus,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def describe_model(model: "PreTrainedModel", base_model: str | None = None) -> dict[str, Any]:
    """
    Class, number of parameters (shared ones once) and the essentials of the config of `model`, and `base_model`: name
    or path of the checkpoint that the training starts from, `None` for random weights.
    """
    config = model.config.to_dict()
    return {
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "base_model": base_model,
        "config": {name: config[name] for name in CONFIG_ESSENTIALS if name in config},
    }


def scores_of(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """The scores among the `metrics` of a Trainer, without their prefix: not the loss, nor times and speeds."""
    scores = {
        name.removeprefix(f"{prefix}_"): value for name, value in metrics.items() if name.startswith(f"{prefix}_")
    }
    return {
        name: scores[name]
        for name in sorted(scores)
        if name not in ("loss", "model_preparation_time", "runtime") and not name.endswith("_per_second")
    }


def describe_training(state: "TrainerState", lengths: Collection[int], seconds: float, seed: int) -> dict[str, Any]:
    """
    What a fine-tuning was, for [`RunRecord`].

    Args:
        state: of the Trainer, at the end.
        lengths: tokens of every training row.
        seconds: of the training.
        seed: of the run.
    """
    epochs = state.epoch or 0.0
    return {
        "steps": state.global_step,
        "epochs": epochs,
        "examples": round(epochs * len(lengths)),
        "tokens": round(epochs * sum(lengths)),
        "seconds": seconds,
        "flops": state.total_flos,
        "seed": seed,
        "best_step": state.best_global_step,
        "peak_memory_bytes": peak_memory_bytes(),
    }


@dataclasses.dataclass
class RunRecord:
    """
    What `run.json` holds, key by key in this order. The groups are plain dictionaries: a job adds what it measures.

    Args:
        task: a pipeline task, `"text-classification"`.
        arguments: every option of the run by name, the ones that the user left at their default too.
        data: `name`, `fingerprint` (of the texts and labels), `rows` (split -> number), `label_names`, `text_pairs`
            (whether an example is two texts).
        model: see [`describe_model`].
        training: `steps`, `epochs`, `examples`, `tokens`, `seconds`, `flops`, `seed`, `resumed` (how often the run
            was continued), `peak_memory_bytes`, `energy` (`watt_hours` and `assumed_watts`, an estimate that is made
            when a finished run is written), `head` (a [`FittedHead`], where one was fitted; its seconds are in
            `seconds`).
        scores: `validation` and `test` (metric -> value, the keys of `chinchilla_hf.metrics`), `test_interval`
            (metric -> [low, high], 95%), `baseline` (`TfidfBaseline.scores`: `model`, `test`, `test_interval`,
            `seconds`, all on the same test rows).
        plan: where the run was planned, `predicted` (what `scaling.planner.Plan.prediction` says) and `actual` (`loss`,
            `seconds`, `tokens`, `flops`, `steps`, `peak_memory_bytes`, whether the loss is `inside` the interval, and
            `predicted_loss` and `predicted_loss_interval` for the tokens that were seen).
        samples: of the test rows, what was asked, what is right, and what the model says: of a translation, or of
            answers to questions.
        exported: where the model was exported, what that export's check found: `texts`, `milliseconds` and `megabytes`
            by runtime, `machine`.
        machine: see [`describe_machine`].
        versions: see [`package_versions`].
        command: the command line; the one of this process if not given.
        status: `"running"` or `"finished"`.
    """

    task: str
    arguments: dict[str, Any]
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    plan: dict[str, Any] = dataclasses.field(default_factory=dict)
    samples: list[Any] = dataclasses.field(default_factory=list)
    exported: dict[str, Any] = dataclasses.field(default_factory=dict)
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=package_versions)
    command: str = dataclasses.field(default_factory=command_line)
    status: str = "running"

    def to_dict(self) -> dict[str, Any]:
        """The record in JSON's own types: NaN and infinity become `None`, paths and enums strings."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        # Transformers puts tokens among its arguments.
        fields["arguments"] = {
            name: value for name, value in self.arguments.items() if not _SECRET_OPTION.fullmatch(name)
        }
        return _json_value(fields)

    def write(self, path: str | os.PathLike[str]) -> None:
        """
        Write the record to `path` as a whole or not at all. In a distributed run, call it in the main process only.

        Raises:
            ValueError: `status` is not one of `STATUSES`.
            OSError: the file cannot be written; an older record is whole.
        """
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}, but a run is one of {', '.join(STATUSES)}: set one of these")
        if self.status == "finished" and self.machine and self.training.get("seconds"):
            self.training.setdefault("energy", self._energy(self.training["seconds"]))
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(path, f"{text}\n".encode())

    def _energy(self, seconds: float) -> dict[str, float]:
        """Of the training, estimated: see `ASSUMED_WATTS`."""
        on_cpu = self.machine.get("device", "cpu") == "cpu"
        watts = ASSUMED_WATTS["cpu"] * self.machine.get("threads", 1) if on_cpu else ASSUMED_WATTS["accelerator"]
        return {"watt_hours": seconds * watts / 3600, "assumed_watts": watts}

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "RunRecord":
        """
        Read what [`write`] wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no run record, or one of another version of this library.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            # Not the defaults: those describe this process, not the one that wrote the record.
            return cls(**{"versions": {}, "command": "", **fields})
        except (ValueError, TypeError) as error:  # not JSON, not UTF-8; not an object, a key too many or too few
            raise ValueError(
                f"{os.fspath(path)} is not a run record of this version of chinchilla_hf ({error}): "
                "move it away, or choose another output folder"
            ) from error

    def differences(self, other_arguments: Mapping[str, Any], ignore: Collection[str] = ()) -> list[str]:
        """
        How `other_arguments` differ from the arguments of this run, one readable line an option, sorted by name:
        `"learning_rate: 3e-05 -> 5e-05"`. Empty means that both describe the same run.

        Args:
            other_arguments: options by name, as in `arguments`.
            ignore: names that do not change the result: how often to log, where to write.
        """
        mine = self.to_dict()["arguments"]
        others = RunRecord(self.task, dict(other_arguments), versions={}, command="").to_dict()["arguments"]
        names = sorted({*mine, *others} - set(ignore))
        # An option that one of the two does not have yet counts as None, the usual default of a new option.
        return [
            f"{name}: {mine.get(name)} -> {others.get(name)}" for name in names if mine.get(name) != others.get(name)
        ]


def _json_value(value: Any) -> Any:
    """`value` in JSON's own types; anything unknown becomes its string, so that no finished run loses its record."""
    if isinstance(value, enum.Enum):
        return _json_value(value.value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((_json_value(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if hasattr(value, "tolist"):  # numbers and arrays of NumPy and torch
        return _json_value(value.tolist())
    return str(value)

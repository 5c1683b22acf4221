"""
The folder of a run: who owns it, what in it is whole, and how the result gets there.

A run's folder holds `run.json` from its first second, Trainer's `checkpoint-<step>` folders while it runs, and at the
end the model itself, laid out as a Hub repository.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .run_record import RunRecord, is_temporary
from .sentence_folder import POOLING_FOLDER
from .sharding import in_its_own_class

logger = logging.getLogger(__name__)

RUN_RECORD = "run.json"
TRAINER_LOGS = "runs"  # where Trainer puts TensorBoard's files
STAGES = "stages"  # where a run that prunes in stages keeps them
TARGET_TOKENIZER = "target_tokenizer"  # the tokenizer of the targets of a translator, if they have their own
_STAGING = ".saving-"
# A folder with the configuration but without weights does not load, so these are the last to get there.
_WEIGHTS = re.compile(r"model.*\.safetensors(\.index\.json)?")


class NotSavedError(OSError):
    """Something could not be written, because the disk is full, most of the time."""


def claim_output_folder(
    folder: str | Path, record: RunRecord, *, ignore: Collection[str] = (), overwrite: bool = False, write: bool = True
) -> Path | None:
    """
    Make `folder` the home of the run that `record` describes, or find where that run was interrupted.

    Args:
        folder: made if it is not there.
        record: of the run that is about to start; its `training["resumed"]` counts the interruptions, and what
            else the interrupted run knows of its training is taken over.
        ignore: names of options that may differ between a run and its continuation.
        overwrite: delete the run that the folder holds, and start anew.
        write: false in all but the main process of a distributed run.

    Returns:
        The whole checkpoint to continue from, or `None` to start at the beginning.

    Raises:
        FileExistsError: the folder holds another run, this run finished, or files that are no run at all.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record_path = folder / RUN_RECORD
    earlier = RunRecord.read(record_path) if record_path.exists() else None
    checkpoint = None
    if earlier is not None and overwrite and write:
        _delete_all_but_the_record(folder)
    elif earlier is not None:
        differences = earlier.differences(record.arguments, ignore)
        if earlier.data.get("fingerprint") != record.data.get("fingerprint"):
            differences.append("the data set's content has changed")
        if differences:
            raise FileExistsError(
                f"{folder} holds another run ({'; '.join(differences)}): choose another --output_dir, or add "
                "--overwrite true to delete that run and start anew"
            )
        if earlier.status == "finished":
            raise FileExistsError(
                f"{folder} holds this very run, finished, with its scores in {RUN_RECORD}: choose another "
                "--output_dir for a new one, or add --overwrite true to delete it and start anew"
            )
        record.training |= earlier.training
        record.training["resumed"] = earlier.training.get("resumed", 0) + int(write)
        checkpoint = last_whole_checkpoint(folder)
    elif any(not is_temporary(path, record_path) for path in folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty, and holds no run of ours (there is no {RUN_RECORD}): choose another --output_dir"
        )
    if write:
        record.write(record_path)
    return checkpoint


def finished_run(folder: str | Path) -> RunRecord | None:
    """The record of the run in `folder`, if it has come to its end."""
    path = Path(folder) / RUN_RECORD
    record = RunRecord.read(path) if path.is_file() else None
    return record if record is not None and record.status == "finished" else None


def _delete_all_but_the_record(folder: Path) -> None:
    """What a run leaves. Its record stays, so that an interruption here leaves a folder that is known to be a run's."""
    for path in folder.iterdir():
        if path.is_dir():
            ours = path.name in (TRAINER_LOGS, TARGET_TOKENIZER, STAGES, POOLING_FOLDER)
            if ours or path.name.startswith((PREFIX_CHECKPOINT_DIR, _STAGING)):
                shutil.rmtree(path)
        elif path.name != RUN_RECORD:
            path.unlink()


def last_whole_checkpoint(folder: str | Path) -> Path | None:
    """
    The newest `checkpoint-<step>` of a Trainer in `folder` that was written to its end, or `None`.

    Half-written ones (killed while saving, disk full) are removed with a warning, so that nothing loads them later.
    """
    whole = None
    for checkpoint in list_checkpoints(folder):
        damage = _damage(checkpoint)
        if damage is None:
            whole = checkpoint
        else:
            logger.warning("removing %s, which was not saved to its end: %s", checkpoint, damage)
            shutil.rmtree(checkpoint, ignore_errors=True)
    return whole


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Trainer's checkpoints in `folder`, by step."""
    steps = {path: path.name.rpartition("-")[2] for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    return sorted((path for path, step in steps.items() if step.isdigit()), key=lambda path: int(steps[path]))


def _damage(checkpoint: Path) -> str | None:
    """What is missing or cut short in a Trainer checkpoint, or `None`."""
    # With LoRA, a checkpoint holds what is trained alone.
    weights = sorted([*checkpoint.glob("model*.safetensors"), *checkpoint.glob("adapter_model.safetensors")])
    if not weights:
        return "no model weights"
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))  # Trainer writes it last
        for path in weights:
            with safe_open(path, framework="pt"):  # compares the header with the length of the file
                pass
    except (OSError, ValueError, SafetensorError) as error:
        return str(error)
    for path in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]:
        if not zipfile.is_zipfile(path):  # the table of contents of torch's archives stands at their end
            return f"{path.name} is cut short"
    return None


@contextlib.contextmanager
def clear_save_errors(what: str) -> Iterator[None]:
    """
    Around writing the files of a run. What a full disk raises differs between Python, torch and safetensors.

    Args:
        what: is written, for the message.

    Raises:
        NotSavedError: instead of these.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)  # torch adds where in its code it was
        raise NotSavedError(
            f"{what} could not be saved: {reason}. Is the disk full? Make room, and the same command goes on from the "
            "last checkpoint that is whole"
        ) from error


def save_model_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    state_dict: dict[str, torch.Tensor] | None = None,
    tokenizers: Mapping[str, PreTrainedTokenizerBase] | None = None,
) -> None:
    """
    Save model, code files and tokenizer in `folder`, which may hold an older model.

    Everything is written beside the final names and renamed at the end, the weights last: a process that is killed
    leaves the old model, none that loads, or the new one, but never a half.

    Args:
        model: what to save.
        tokenizer: beside it.
        folder: made if it is not there.
        state_dict: the weights, where `model` holds only a part of them: `accelerator.get_state_dict` under FSDP.
        tokenizers: others, by the name of their folder in `folder`.

    Raises:
        NotSavedError: the files cannot be written; an older model is whole.
    """
    with clear_save_errors(f"the model in {folder}"):
        _save_model_folder(model, tokenizer, Path(folder), state_dict, tokenizers or {})


def _save_model_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    state_dict: dict[str, torch.Tensor] | None,
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for abandoned in folder.glob(f"{_STAGING}*"):  # by a process that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
    try:
        with in_its_own_class(model):
            model.save_pretrained(staging, state_dict=state_dict)
        tokenizer.save_pretrained(staging)
        for name, other in tokenizers.items():
            other.save_pretrained(staging / name)
        files = [path.relative_to(staging) for path in staging.rglob("*") if path.is_file()]
        files.sort(key=lambda path: (bool(_WEIGHTS.fullmatch(path.name)), path))
        for path in files:
            with open(staging / path, "rb") as file:
                os.fsync(file.fileno())
        for path in folder.iterdir():
            if _WEIGHTS.fullmatch(path.name):
                path.unlink()
        for path in files:
            (folder / path).parent.mkdir(exist_ok=True)
            os.replace(staging / path, folder / path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)

"""What the training scripts need beside `transformers.Trainer`: folders that survive a kill, the right precision."""

import json
import logging
import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

# A folder with the configuration but without weights does not load, so these come last.
_WEIGHTS = re.compile(r"model.*\.safetensors")


def bf16_is_fast() -> bool:
    """Whether this machine multiplies bfloat16 matrices in hardware: then mixed precision pays."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.mps.is_available():
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def save_checkpoint_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """
    Save model, code files and tokenizer in `folder`, which may hold an older checkpoint.

    Everything is written beside the final names and renamed at the end, the weights last: a process that is killed
    leaves either no loadable checkpoint, or the old one, or the new one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        files = sorted(staging.iterdir(), key=lambda path: (bool(_WEIGHTS.fullmatch(path.name)), path.name))
        for path in files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        for old in folder.iterdir():
            if _WEIGHTS.fullmatch(old.name):
                old.unlink()
        for path in files:
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def last_whole_checkpoint(folder: str | Path) -> Path | None:
    """
    The newest `checkpoint-<step>` of a Trainer in `folder` that was written to its end, or `None`.

    Half-written ones (killed while saving, disk full) are removed with a warning, so that nothing loads them later.
    """
    checkpoints = sorted(
        (path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    whole = None
    for checkpoint in checkpoints:
        damage = _damage(checkpoint)
        if damage is None:
            whole = checkpoint
        else:
            logger.warning("removing %s, which was not saved to its end: %s", checkpoint, damage)
            shutil.rmtree(checkpoint)
    return whole


def _damage(checkpoint: Path) -> str | None:
    """What is missing or cut short in a Trainer checkpoint, or `None`."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))  # Trainer writes it last
        weights = [path for path in checkpoint.iterdir() if _WEIGHTS.fullmatch(path.name)]
        for path in weights:
            with safe_open(path, framework="pt"):  # compares the header with the length of the file
                pass
    except (OSError, ValueError, SafetensorError) as error:
        return str(error)
    if not weights:
        return "no model weights"
    for path in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]:
        if not zipfile.is_zipfile(path):  # the table of contents of torch's archives stands at their end
            return f"{path.name} is cut short"
    return None

"""
The vectors that a teacher gives for many texts, asked for once and kept on disk.

    vectors = teacher_vectors(teacher, tokenizer, texts)  # (texts, hidden_size), a file that is not read as a whole

They take 2 bytes a number: 0.8 GB for a million texts and MiniLM's 384 numbers. A call that was interrupted goes on
where it was.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..run_record import write_atomically
from .distillation import DEFAULT_CACHE, cache_key, mean_states

logger = logging.getLogger(__name__)

VECTORS, DONE = "vectors.npy", "done"
BATCHES_BETWEEN = 50  # so many batches are lost at most by an interruption


def teacher_vectors(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    max_length: int = 512,
    batch_size: int = 256,
    bf16: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    show_progress: bool = True,
) -> np.ndarray:
    """
    The mean of the last hidden states of each text, of length 1, computed once: the next call with the same weights,
    texts and precision reads it.

    Args:
        teacher: any encoder or decoder, on the device to work on.
        tokenizer: of the teacher.
        texts: to be read by it.
        max_length: texts are cut at so many tokens.
        batch_size: texts in a step, of like length.
        bf16: under bfloat16 autocast.
        cache_dir: where vectors are kept; `chinchilla_hf/teachers` in the cache of Hugging Face if not given.
        show_progress: with a bar.

    Returns:
        `(texts, hidden_size)`, float16, mapped from the file and not to be written to.

    Raises:
        ValueError: no texts.
        OSError: there is no room for the file.
    """
    if not texts:
        raise ValueError("there are no texts to ask the teacher for: pass some")
    key = cache_key(teacher, tokenizer, texts, ["vectors", max_length, bf16])
    folder = Path(cache_dir or DEFAULT_CACHE) / f"vectors-{key}"
    done = int((folder / DONE).read_text()) if (folder / DONE).is_file() else 0
    if done == 0:
        _make_room(folder, (len(texts), teacher.config.hidden_size))
    if done < len(texts):
        vectors = np.lib.format.open_memmap(folder / VECTORS, mode="r+")
        order = np.argsort([-len(text) for text in texts], kind="stable")  # the longest first: what fails, fails early
        bar = tqdm(total=len(texts), initial=done, unit="text", desc="Asking the teacher", disable=not show_progress)
        teacher.eval()
        with bar, torch.inference_mode(), torch.autocast(teacher.device.type, torch.bfloat16, enabled=bf16):
            for number, begin in enumerate(range(done, len(texts), batch_size), start=1):
                chosen = order[begin : begin + batch_size]
                inputs = tokenizer(
                    [texts[i] for i in chosen],
                    truncation=True,
                    max_length=max_length,
                    padding=True,
                    return_tensors="pt",
                ).to(teacher.device)
                pooled = mean_states(teacher(**inputs).last_hidden_state.float(), inputs["attention_mask"])
                vectors[chosen] = nn.functional.normalize(pooled, dim=-1).half().cpu().numpy()
                bar.update(len(chosen))
                if number % BATCHES_BETWEEN == 0 or begin + len(chosen) == len(texts):
                    vectors.flush()
                    write_atomically(folder / DONE, str(begin + len(chosen)).encode())
    else:
        logger.info("the teacher's vectors are in %s", folder)
    return np.load(folder / VECTORS, mmap_mode="r")


def _make_room(folder: Path, shape: tuple[int, int]) -> None:
    """A file for the vectors of which every byte has its place: else, a full disk ends the process without a word."""
    folder.mkdir(parents=True, exist_ok=True)
    np.lib.format.open_memmap(folder / VECTORS, mode="w+", dtype=np.float16, shape=shape).flush()
    if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
        with open(folder / VECTORS, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(folder / VECTORS))
            except OSError as error:
                needed = shape[0] * shape[1] * 2 / 1e9
                raise OSError(
                    f"the teacher's vectors of {shape[0]:,} texts need {needed:.1f} GB in {folder.parent}, but: "
                    f"{error.strerror}. Make room, or name another --teacher_cache_dir"
                ) from error

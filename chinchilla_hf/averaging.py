"""The mean of the weights of several checkpoints of one run, which is often better than each of them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_NAME


def averaged_weights(checkpoints: Sequence[str | Path]) -> dict[str, torch.Tensor]:
    """
    The mean of the weights in `checkpoints`, made in float32 (Vaswani et al. 2017, section 6.1).

    Args:
        checkpoints: folders with `model.safetensors`, of one run.

    Returns:
        Tensors by their names, in the dtype of the first checkpoint.

    Raises:
        ValueError: no checkpoint, or checkpoints with other tensors than the first.
    """
    if not checkpoints:
        raise ValueError("there is no checkpoint to average: save some while training")
    sums: dict[str, torch.Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for checkpoint in checkpoints:
        with safe_open(Path(checkpoint) / SAFE_WEIGHTS_NAME, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if sums and shapes != {name: tuple(tensor.shape) for name, tensor in sums.items()}:
                raise ValueError(
                    f"{checkpoint} holds other weights than {checkpoints[0]}: average checkpoints of one run"
                )
            for name in shapes:
                tensor = file.get_tensor(name)
                dtypes.setdefault(name, tensor.dtype)
                sums[name] = tensor.float() if name not in sums else sums[name].add_(tensor.float())
    return {name: (tensor / len(checkpoints)).to(dtypes[name]) for name, tensor in sums.items()}

"""
Training with shards: whether FSDP or DeepSpeed is asked for, and what Accelerate's FSDP2 lacks.

Under FSDP, a process keeps a part of each matrix, of its gradient and of the optimizer's state. Matrices are gathered
to be used, and checkpoints hold whole ones.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments


def fsdp_is_requested(arguments: TrainingArguments) -> bool:
    """Whether `accelerate launch` or the option `fsdp` asks for it."""
    return bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def deepspeed_is_requested(arguments: TrainingArguments) -> bool:
    """Whether `accelerate launch` or the option `deepspeed` asks for it."""
    return bool(arguments.deepspeed) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def check_fsdp(arguments: TrainingArguments) -> None:
    """
    Where FSDP is asked for, see that there is something to do for it.

    Raises:
        ValueError: there is one process, or it is the first version of FSDP.
    """
    if not fsdp_is_requested(arguments):
        return
    if arguments.world_size == 1:
        raise ValueError(
            "FSDP is asked for, but this is the only process, so there is nothing to share: start several with "
            "`torchrun --nproc_per_node N` or `accelerate launch --num_processes N`, or leave FSDP out"
        )
    plugin = arguments.fsdp_plugin_args
    version = os.environ.get("FSDP_VERSION", "1") if plugin is None else plugin["fsdp_version"]
    if int(version) != 2:
        raise ValueError(
            f"the version of FSDP is {version}, but must be 2: add --fsdp_version 2 to `accelerate launch`, or use "
            "--config_file training/accelerate/fsdp.yaml"
        )


def prepare_sharding(accelerator: Accelerator, arguments: TrainingArguments, model: nn.Module) -> bool:
    """
    Let `accelerator` shard models where FSDP is asked for: on CPUs as well, and with the arithmetic of one process.

    Accelerate shards on GPUs only: on CPUs it says nothing and takes DDP. And in mixed precision it would keep all of a
    sharded model in bfloat16, sums over processes and LayerNorms included, where a model that is whole is under
    autocast; Trainers that call this put it under `accelerator.autocast()`.

    Args:
        accelerator: that has not prepared a model yet.
        arguments: that `check_fsdp` has passed.
        model: that will be trained; its blocks are gathered one by one, where the plugin goes by blocks.

    Returns:
        Whether it shards.
    """
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU and fsdp_is_requested(arguments):
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**(arguments.fsdp_plugin_args or {}))
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    if state.distributed_type != DistributedType.FSDP:
        return False
    plugin = state.fsdp_plugin
    plugin.mixed_precision_policy = None
    plugin.set_state_dict_type("FULL_STATE_DICT")  # a checkpoint has the whole model.safetensors
    if plugin.transformer_cls_names_to_wrap is None:
        # Not all of `_no_split_modules`: Accelerate takes the embeddings, too, but together with a head tied to them.
        blocks = (block for module in model.modules() if isinstance(module, nn.ModuleList) for block in module)
        plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in blocks})
    return True


@contextlib.contextmanager
def in_its_own_class(model: nn.Module) -> Iterator[None]:
    """
    While a sharded model is saved: give it the class that it had before.

    FSDP derives a class from it, of which `save_pretrained` would name the code, torch's, as that of the checkpoint.
    """
    current = type(model)
    own = (parent for parent in current.__mro__ if issubclass(parent, nn.Module) and not issubclass(parent, FSDPModule))
    model.__class__ = next(own)
    try:
        yield
    finally:
        model.__class__ = current


def gathered(optimizer_state: dict[str, Any]) -> dict[str, Any]:
    """The `state_dict` of an optimizer with whole tensors, on the CPU. All processes have to call it."""

    def whole(value: Any) -> Any:
        return value.full_tensor().cpu() if isinstance(value, DTensor) else value

    states = {
        index: {name: whole(value) for name, value in state.items()}
        for index, state in optimizer_state["state"].items()
    }
    return {**optimizer_state, "state": states}


def scattered(optimizer_state: dict[str, Any], parameters: list[torch.Tensor]) -> dict[str, Any]:
    """What `gathered` returned, with of each tensor what this process keeps of its parameter, by the same number."""

    def share(value: Any, parameter: torch.Tensor) -> Any:
        if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
            return value
        mesh = parameter.device_mesh
        # Every process has read the whole tensor, so none has to send it.
        return distribute_tensor(value.to(parameter.device), mesh, parameter.placements, src_data_rank=None)

    states = {
        index: {name: share(value, parameters[index]) for name, value in state.items()}
        for index, state in optimizer_state["state"].items()
    }
    return {**optimizer_state, "state": states}

"""
What a pruned model has to be: of so many parameters, or as fast as this, on this machine. [`share_for`] finds the share
of the FLOPs that does it.
"""

import copy
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from ..modeling_chinchilla_pretrained import ChinchillaFamilyPreTrainedModel
from ..scaling.flops import blocks_forward
from .pruning import BlockParts, BlockScores, choose_parts, prune

NEURON_MULTIPLE = 16
STEPS = 8  # of a search: shares are told apart to a part in 256


def milliseconds_of(model: ChinchillaFamilyPreTrainedModel, length: int, calls: int = 40) -> float:
    """The median time that `model` takes for one text of `length` tokens, on one thread of the CPU, as it is."""
    inputs = torch.randint(model.config.vocab_size, (1, length))
    was_training, threads = model.training, torch.get_num_threads()
    model.eval()
    torch.set_num_threads(1)
    times = []
    try:
        with torch.inference_mode():
            for _ in range(calls + 5):
                start = time.perf_counter()
                model(inputs)
                times.append(1e3 * (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
        model.train(was_training)
    return statistics.median(times[5:])  # the first are to warm up


def smallest_parts(scores: Sequence[BlockScores]) -> list[BlockParts]:
    """The best head and the best neurons of each block, as few as `choose_parts` leaves."""
    parts = []
    for block in scores:
        strongest = block.neurons.topk(min(NEURON_MULTIPLE, len(block.neurons))).indices
        parts.append(BlockParts([int(block.heads.argmax())], strongest.sort().values.tolist()))
    return parts


def share_for(
    model: ChinchillaFamilyPreTrainedModel,
    scores: Sequence[BlockScores],
    length: int,
    cost: Callable[[ChinchillaFamilyPreTrainedModel], float],
    target: float,
    unit: str,
) -> float:
    """
    The largest share of the FLOPs of the blocks with which a pruned model costs no more than `target`.

    Args:
        model: to be pruned; it stays as it is.
        scores: one a block.
        length: tokens of a text.
        cost: of a model, such as its parameters or [`milliseconds_of`].
        target: in the unit of `cost`.
        unit: for messages.

    Raises:
        ValueError: even the smallest model costs more; the message says what it costs.
    """

    def pruned(parts: list[BlockParts]) -> ChinchillaFamilyPreTrainedModel:
        smaller = copy.deepcopy(model)
        prune(smaller, parts)
        return smaller

    if cost(model) <= target:
        return 1.0
    smallest = pruned(smallest_parts(scores))
    least = cost(smallest)
    if least > target:
        raise ValueError(
            f"the target is {target:g} {unit}, but a head and {NEURON_MULTIPLE} neurons in each of the {len(scores)} "
            f"blocks have {least:.4g}: ask for that, or leave out blocks or tokens, too"
        )
    whole = blocks_forward(model.config, length)
    low, high = blocks_forward(smallest.config, length) / whole, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if cost(pruned(choose_parts(model.config, scores, middle, length, NEURON_MULTIPLE))) <= target:
            low = middle
        else:
            high = middle
    return low

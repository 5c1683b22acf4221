"""
Structured pruning: whole attention heads, neurons of the feed-forward networks, and blocks are taken out of a trained
model. What is left is a smaller dense model, which is faster everywhere; its sizes stand in its config, so that
`from_pretrained` builds it again. (Single weights set to zero make no model faster without kernels made for that.)

    scores = first_order_scores(model, batches)      what the loss would lose; or learned_scores, or magnitude_scores
    parts = choose_parts(model.config, scores, flop_share=0.5, length=32)
    prune(model, parts)

Score and prune a little, train, and again, as `training/prune.py` does: one large cut loses more.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from ..configuration_chinchilla import ChinchillaBlockConfig
from ..modeling_chinchilla_block import ChinchillaLayer
from ..modeling_chinchilla_pretrained import ChinchillaFamilyPreTrainedModel
from ..scaling.flops import blocks_forward


@dataclasses.dataclass(frozen=True)
class BlockScores:
    """
    How much each part of one block matters; one scale for all blocks of a model.

    Args:
        heads: `(key_value_heads,)`: a head of keys and values, with the attention heads that share it.
        neurons: `(intermediate_size,)`.
    """

    heads: torch.Tensor
    neurons: torch.Tensor


@dataclasses.dataclass(frozen=True)
class BlockParts:
    """The parts of one block that stay: indices of heads of keys and values, and of neurons, in ascending order."""

    heads: list[int]
    neurons: list[int]


def _layers(model: ChinchillaFamilyPreTrainedModel) -> list[ChinchillaLayer]:
    layers = getattr(model.base_model, "layers", None)
    if layers is None:
        raise ValueError(
            f"a {type(model).__name__} has no blocks of its own: prune model.get_encoder() or model.get_decoder()"
        )
    return list(layers)


def magnitude_scores(model: ChinchillaFamilyPreTrainedModel) -> list[BlockScores]:
    """
    The sum of the squared weights that a part reads and writes by: for this, no data are needed.
    """
    scores = []
    for layer in _layers(model):
        attention, mlp = layer.self_attn, layer.mlp
        width, groups = model.config.head_dim, model.config.num_key_value_groups
        heads = attention.o_proj.weight.square().sum(dim=0).view(-1, width * groups).sum(dim=1)
        heads += attention.q_proj.weight.square().sum(dim=1).view(-1, width * groups).sum(dim=1)
        for projection in (attention.k_proj, attention.v_proj):
            heads += projection.weight.square().sum(dim=1).view(-1, width).sum(dim=1)
        neurons = mlp.down_proj.weight.square().sum(dim=0) + mlp.up_proj.weight.square().sum(dim=1)
        scores.append(BlockScores(heads.detach().cpu(), neurons.detach().cpu()))
    return scores


def first_order_scores(
    model: ChinchillaFamilyPreTrainedModel, batches: Iterable[dict[str, torch.Tensor]]
) -> list[BlockScores]:
    """
    How much the loss would change, to first order, if a part wrote nothing (Michel et al. 2019, "Are Sixteen Heads
    Really Better than One?"; Molchanov et al. 2019): the sum over a part of weight times gradient of the matrix that it
    writes by, its absolute value averaged over batches.

    The model's gradients are used for it, and gone afterwards; dropout is off.

    Args:
        model: gives a `loss`.
        batches: on its device, with labels. Small batches tell more than large ones of as many rows.

    Raises:
        ValueError: no batches, or a model without a loss.
    """
    width = model.config.head_dim * model.config.num_key_value_groups
    # Matrix, and how many of its columns belong to a part: heads and neurons of every block in turn.
    written: list[tuple[torch.Tensor, int]] = []
    for layer in _layers(model):
        written += [(layer.self_attn.o_proj.weight, width), (layer.mlp.down_proj.weight, 1)]
    totals = [torch.zeros(matrix.shape[1] // of_part, device=matrix.device) for matrix, of_part in written]
    count = 0
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            loss = model(**batch).loss
            if loss is None:
                raise ValueError("the model gives no loss for these batches: pass them with labels")
            gradients = torch.autograd.grad(loss, [matrix for matrix, _ in written])
            for total, (matrix, of_part), gradient in zip(totals, written, gradients, strict=True):
                change = (matrix.detach() * gradient).sum(dim=0).float()
                total += change.view(-1, of_part).sum(dim=1).abs()
            count += 1
    finally:
        model.train(was_training)
    if count == 0:
        raise ValueError("no batches to score by: pass some of the training data")
    means = [(total / count).cpu() for total in totals]
    return [BlockScores(*pair) for pair in zip(means[::2], means[1::2], strict=True)]


def learned_scores(
    model: ChinchillaFamilyPreTrainedModel,
    batches: Sequence[dict[str, torch.Tensor]],
    length: int,
    *,
    epochs: int = 3,
    learning_rate: float = 0.02,
    price: float = 1.0,
) -> list[BlockScores]:
    """
    How long a part holds out against the price of its FLOPs: what it writes is multiplied by a gate, which begins at 1
    and is learned, while the weights stay, to lower the loss plus `price` times the share of the FLOPs that is open (as
    Louizos et al. 2018, arXiv 1712.01312, and Xia et al. 2022, arXiv 2204.00408, learn masks). A part's score is the
    mean of its gate over the steps, times its FLOPs.

    Args:
        model: gives a `loss`; it stays as it is.
        batches: on its device, with labels.
        length: tokens of a text.
        epochs: how often the batches are seen.
        learning_rate: of the gates, by Adam.
        price: of all FLOPs of the blocks, in the unit of the loss.

    Raises:
        ValueError: no batches, or a model without a loss.
    """
    if not batches:
        raise ValueError("no batches to score by: pass some of the training data")
    head_flops, neuron_flops = part_flops(model.config, length)
    width = model.config.head_dim * model.config.num_key_value_groups
    whole = blocks_forward(model.config, length)
    gates: list[tuple[torch.Tensor, float]] = []  # and the FLOPs of a part
    handles = []
    for layer in _layers(model):
        for matrix, of_part, flops in (
            (layer.self_attn.o_proj, width, head_flops),
            (layer.mlp.down_proj, 1, neuron_flops),
        ):
            gate = torch.ones(matrix.in_features // of_part, device=matrix.weight.device, requires_grad=True)
            gates.append((gate, flops))
            handles.append(
                matrix.register_forward_pre_hook(
                    lambda _, inputs, gate=gate, of_part=of_part: (
                        inputs[0] * gate.repeat_interleave(of_part).to(inputs[0].dtype)
                    )
                )
            )
    optimizer = torch.optim.Adam([gate for gate, _ in gates], lr=learning_rate)
    totals = [torch.zeros_like(gate) for gate, _ in gates]
    was_training = model.training
    model.eval()
    try:
        for batch in itertools.chain.from_iterable([batches] * epochs):
            loss = model(**batch).loss
            if loss is None:
                raise ValueError("the model gives no loss for these batches: pass them with labels")
            loss = loss + price * sum(flops / whole * gate.sum() for gate, flops in gates)
            for (gate, _), gradient in zip(gates, torch.autograd.grad(loss, [gate for gate, _ in gates]), strict=True):
                gate.grad = gradient
            optimizer.step()
            with torch.no_grad():
                for (gate, _), total in zip(gates, totals, strict=True):
                    total += gate.clamp_(0, 1)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    steps = epochs * len(batches)
    scores = [flops * (total / steps).cpu() for (_, flops), total in zip(gates, totals, strict=True)]
    return [BlockScores(*pair) for pair in zip(scores[::2], scores[1::2], strict=True)]


def part_flops(config: ChinchillaBlockConfig, length: int) -> tuple[int, int]:
    """What a head of keys and values, with the attention heads that share it, and a neuron execute for a token."""
    assert config.head_dim is not None, "it is set in __post_init__"
    groups = config.num_key_value_groups
    return 2 * config.head_dim * (config.hidden_size * (2 * groups + 2) + 2 * length * groups), 4 * config.hidden_size


def choose_parts(
    config: ChinchillaBlockConfig,
    scores: Sequence[BlockScores],
    flop_share: float,
    length: int,
    neuron_multiple: int = 16,
) -> list[BlockParts]:
    """
    The parts to keep, so that the blocks of the model execute `flop_share` of their FLOPs.

    The parts with the least score for their FLOPs go first, wherever they are. Neurons go by groups, so that matrices
    have sizes that processors like; every block keeps a head and a group.

    Args:
        config: of the model that `scores` are of.
        scores: one a block.
        flop_share: of what the blocks execute now, above 0 and up to 1.
        length: tokens of a text, because attention costs more in long ones.
        neuron_multiple: neurons of a group.

    Raises:
        ValueError: an argument out of range, or a share that even the smallest model does not meet (the message says
            what it has).
    """
    if not 0 < flop_share <= 1:
        raise ValueError(f"flop_share is {flop_share}, expected a share above 0 and up to 1")
    if neuron_multiple < 1 or length < 1:
        raise ValueError(f"neuron_multiple is {neuron_multiple} and length {length}, expected at least 1")
    if len(scores) != config.num_hidden_layers:
        raise ValueError(f"there are scores of {len(scores)} blocks, but the model has {config.num_hidden_layers}")
    head_flops, neuron_flops = part_flops(config, length)
    units = []  # score for a FLOP, block, kind, parts, FLOPs
    for layer_idx, block in enumerate(scores):
        for head in block.heads.argsort().tolist()[:-1]:
            units.append((float(block.heads[head]) / head_flops, layer_idx, "heads", [head], head_flops))
        order = block.neurons.argsort().tolist()
        # The remainder goes first: what stays is a multiple.
        first = len(order) % neuron_multiple or neuron_multiple
        cuts = [0, *range(first, len(order), neuron_multiple)]
        for begin, end in itertools.pairwise(cuts):
            chosen, flops = order[begin:end], neuron_flops * (end - begin)
            units.append((float(block.neurons[chosen].sum()) / flops, layer_idx, "neurons", chosen, flops))
    units.sort(key=lambda unit: unit[0])

    whole = blocks_forward(config, length)
    left = whole
    dropped: list[dict[str, set[int]]] = [{"heads": set(), "neurons": set()} for _ in scores]
    for _, layer_idx, kind, chosen, flops in units:
        if left <= flop_share * whole:
            break
        dropped[layer_idx][kind].update(chosen)
        left -= flops
    if left > flop_share * whole:
        raise ValueError(
            f"flop_share is {flop_share:g}, but a head and {neuron_multiple} neurons in each of the "
            f"{len(scores)} blocks are {left / whole:.3f}: ask for that, or drop blocks with keep_layers"
        )
    return [
        BlockParts(
            [head for head in range(len(block.heads)) if head not in of_block["heads"]],
            [neuron for neuron in range(len(block.neurons)) if neuron not in of_block["neurons"]],
        )
        for block, of_block in zip(scores, dropped, strict=True)
    ]


def prune(model: ChinchillaFamilyPreTrainedModel, parts: Sequence[BlockParts]) -> None:
    """
    Keep only `parts` of the blocks of `model`, in place, and write their sizes into its config.

    Parameters become new ones: make the optimizer afterwards.

    Args:
        model: any of the family with blocks of its own.
        parts: one a block.

    Raises:
        ValueError: parts that the model does not have, or a block left without a head or a neuron; nothing is pruned.
    """
    config, layers = model.config, _layers(model)
    groups = config.num_key_value_groups
    if len(parts) != len(layers):
        raise ValueError(f"there are parts of {len(parts)} blocks, but the model has {len(layers)}")
    for layer_idx, of_block in enumerate(parts):
        for kind, chosen, size in (
            ("head", of_block.heads, config.attention_heads_of(layer_idx) // groups),
            ("neuron", of_block.neurons, config.intermediate_size_of(layer_idx)),
        ):
            if not chosen:
                raise ValueError(f"block {layer_idx} would have no {kind} left: keep one, or drop it with keep_layers")
            if sorted(set(chosen)) != list(chosen) or not 0 <= chosen[0] <= chosen[-1] < size:
                raise ValueError(f"block {layer_idx} has {kind}s 0 to {size - 1}, but {chosen} were to stay")
    for layer, of_block in zip(layers, parts, strict=True):
        attention = layer.self_attn
        queries = _channels(of_block.heads, config.head_dim * groups)
        shared = _channels(of_block.heads, config.head_dim)
        attention.q_proj = _part_of(attention.q_proj, rows=queries)
        attention.k_proj = _part_of(attention.k_proj, rows=shared)
        attention.v_proj = _part_of(attention.v_proj, rows=shared)
        attention.o_proj = _part_of(attention.o_proj, columns=queries)
        neurons = torch.tensor(of_block.neurons)
        layer.mlp.up_proj = _part_of(layer.mlp.up_proj, rows=neurons)
        layer.mlp.down_proj = _part_of(layer.mlp.down_proj, columns=neurons)
    config.attention_heads_by_layer = [groups * len(of_block.heads) for of_block in parts]
    config.intermediate_size_by_layer = [len(of_block.neurons) for of_block in parts]


def keep_layers(model: ChinchillaFamilyPreTrainedModel, kept: Sequence[int]) -> None:
    """
    Keep only the blocks `kept` of `model`, in place, in this order.

    Raises:
        ValueError: no block, one twice, or one that the model does not have.
    """
    config, layers = model.config, _layers(model)
    if not kept or len(set(kept)) != len(kept) or not all(0 <= layer_idx < len(layers) for layer_idx in kept):
        raise ValueError(f"blocks {list(kept)} are to stay, expected different ones from 0 to {len(layers) - 1}")
    by_layer = {
        name: [getattr(config, name)[layer_idx] for layer_idx in kept]
        for name in ("attention_heads_by_layer", "intermediate_size_by_layer")
        if getattr(config, name) is not None
    }
    model.base_model.layers = nn.ModuleList([layers[layer_idx] for layer_idx in kept])
    for layer_idx, layer in enumerate(model.base_model.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = layer_idx
    config.num_hidden_layers = len(kept)
    for name, values in by_layer.items():
        setattr(config, name, values)


def _channels(heads: Sequence[int], width: int) -> torch.Tensor:
    """The channels of `heads`, each `width` wide."""
    return (torch.tensor(heads).unsqueeze(1) * width + torch.arange(width)).flatten()


def _part_of(linear: nn.Linear, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None) -> nn.Linear:
    """A layer with the outputs `rows`, or the inputs `columns`, of `linear`."""
    weight = linear.weight.detach()
    bias = None if linear.bias is None else linear.bias.detach()
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    part.weight = nn.Parameter(weight.contiguous(), requires_grad=linear.weight.requires_grad)
    if bias is not None:
        part.bias = nn.Parameter(bias.clone(), requires_grad=linear.bias.requires_grad)
    return part.train(linear.training)

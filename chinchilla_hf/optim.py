"""
Muon for the matrices of the blocks and AdamW for the rest, in one optimizer; schedules that end with a time budget.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim.lr_scheduler import LambdaLR

DECAYS = ("linear", "cosine", "sqrt", "inverse_sqrt")
# The quintic that pulls all singular values towards 1, and how often (Jordan et al. 2024).
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def parameter_groups(model: nn.Module, weight_decay: float, muon: bool) -> list[dict[str, Any]]:
    """
    Trainable parameters of `model`, each once, in groups for [`MuonWithAdamW`] or `torch.optim.AdamW`.

    Matrices decay. Biases and the vectors of LayerNorms do not: pulling them to zero is no regularisation. Muon takes
    the matrices inside the blocks (`model.layers`), not embeddings, nor what projects to the vocabulary or to classes:
    their rows are used one by one, so that there is nothing to orthogonalise (Jordan et al. 2024).

    Args:
        model: of ours, or any with its blocks in a `ModuleList`.
        weight_decay: of the matrices, embeddings included.
        muon: whether matrices of blocks are in a group of their own, marked `"muon": True`.
    """
    in_blocks = {
        parameter
        for module in model.modules()
        if isinstance(module, nn.ModuleList)
        for parameter in module.parameters()
        if parameter.ndim == 2
    }
    groups: dict[str, list[nn.Parameter]] = {"muon": [], "decayed": [], "plain": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            name = "plain" if parameter.ndim < 2 else "muon" if muon and parameter in in_blocks else "decayed"
            groups[name].append(parameter)
    settings: dict[str, dict[str, Any]] = {"muon": {"muon": True}, "decayed": {}, "plain": {"weight_decay": 0.0}}
    return [
        {"params": parameters, "weight_decay": weight_decay, **settings[name]}
        for name, parameters in groups.items()
        if parameters
    ]


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """
    `U V^T` of each of `matrices = U S V^T`, `(number, rows, columns)`, roughly: singular values become 0.7 to 1.2, but
    for those far below the largest, which five steps do not lift all the way.

    By Newton-Schulz (Jordan et al. 2024, "Muon"), in the dtype of the matrices.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # the smaller of the two products with the transpose
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value is above 1
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def _evaluate(closure: Callable[[], float] | None) -> float | None:
    """What a `closure` that an optimizer's step was given returns; it makes gradients."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class Muon(torch.optim.Optimizer):
    """
    What `torch.optim.Muon` computes with Nesterov's momentum and `adjust_lr_fn="match_rms_adamw"`, and four additions.

    Matrices of one shape are orthogonalised together. The precision of that can be chosen: in bfloat16, a difference in
    the last bits of a float32 gradient, such as the order of a sum over processes makes, may round to one of 1/256, and
    in float32 it stays what it is. And a matrix that is sharded over processes (FSDP) is gathered for it, because a
    shard on its own has other singular vectors; each process then keeps its share of the result. Processes that all
    have whole matrices and the same gradients (DDP) orthogonalise a share of the matrices each, and exchange them.

    Args:
        groups: of matrices.
        lr: learning rate, of an update whose root mean square is about that of AdamW.
        momentum: decay of the average of the gradients.
        weight_decay: of groups that name none.
        dtype: in which matrices are orthogonalised.
        replicated: whether all processes of the default group have the same parameters and gradients.

    Raises:
        ValueError: a parameter is no matrix.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        dtype: torch.dtype = torch.bfloat16,
        replicated: bool = False,
    ):
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        self.replicated = replicated
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(
                        f"Muon orthogonalises matrices, but a parameter has the shape {tuple(parameter.shape)}: put it "
                        "in a group without Muon, as `parameter_groups` does"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step. Returns what `closure`, if given, returns."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            of_one_shape: dict[torch.Size, list[tuple[nn.Parameter, torch.Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    direction = self._direction(parameter, parameter.grad, group["momentum"])
                    of_one_shape.setdefault(parameter.shape, []).append((parameter, direction))
            for shape, pairs in of_one_shape.items():
                lr = 0.2 * math.sqrt(max(shape)) * group["lr"]  # Liu et al. 2025, section 2.2
                updates = self._orthogonalised([direction for _, direction in pairs])
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(_sharded_like(parameter, update), alpha=-lr)
        return loss

    def _orthogonalised(self, directions: list[torch.Tensor]) -> torch.Tensor:
        """All of them, of one shape, in `dtype`: `(number, rows, columns)`."""
        if not self.replicated:
            return orthogonalised(torch.stack([direction.to(self.dtype) for direction in directions]))
        processes, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        share = math.ceil(len(directions) / processes)
        own = directions[rank * share : (rank + 1) * share]  # fewer, or none, in the last processes
        updates = directions[0].new_zeros((processes * share, *directions[0].shape), dtype=self.dtype)
        of_this = torch.zeros_like(updates[:share])
        if own:
            of_this[: len(own)] = orthogonalised(torch.stack([direction.to(self.dtype) for direction in own]))
        torch.distributed.all_gather_into_tensor(updates, of_this)
        return updates[: len(directions)]

    def _direction(self, parameter: nn.Parameter, gradient: torch.Tensor, momentum: float) -> torch.Tensor:
        """Nesterov's momentum, the whole matrix."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        direction = gradient.lerp(state["momentum_buffer"], momentum)
        return direction.full_tensor() if isinstance(direction, DTensor) else direction


def _sharded_like(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Of a matrix that all processes have, what `parameter` holds of its own."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh = parameter.device_mesh
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(mesh, parameter.placements)


class MuonWithAdamW(torch.optim.Optimizer):
    """
    [`Muon`] for the groups marked `"muon": True`, fused `torch.optim.AdamW` for the others.

    One object, with one state, so that Trainer, Accelerate and schedulers treat it as any other optimizer. The update
    of Muon is scaled to the size of AdamW's (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2), so
    both share one learning rate and one weight decay. Not for fine-tuning a model that was pretrained with AdamW: the
    same paper (section 3.5) finds no gain there.

    Args:
        groups: see [`parameter_groups`].
        lr: learning rate of both.
        momentum: of Muon.
        betas, eps: of AdamW.
        weight_decay: of groups that name none.
        muon_dtype: in which Muon orthogonalises: that of the multiplications of the model is quick and precise enough.
        replicated: see [`Muon`].

    Raises:
        ValueError: a parameter of a Muon group is no matrix.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        muon_dtype: torch.dtype = torch.bfloat16,
        replicated: bool = False,
    ):
        muon = [group for group in groups if group.get("muon")]
        others = [group for group in groups if not group.get("muon")]
        shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self._parts: list[torch.optim.Optimizer] = []
        if muon:
            self._parts.append(Muon(muon, momentum=momentum, dtype=muon_dtype, replicated=replicated, **shared))
        if others:
            self._parts.append(torch.optim.AdamW(others, betas=betas, eps=eps, fused=True, **shared))
        # The groups are the very dictionaries of the parts: a scheduler that sets a learning rate here sets it there.
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the parts work on the groups and the state of this optimizer."""
        begin = 0
        for part in self._parts:
            end = begin + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[begin:end], self.state
            begin = end

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both. Returns what `closure`, if given, returns."""
        loss = _evaluate(closure)
        for part in self._parts:
            part.step()
        return loss


def decayed(progress: float, warmup: float, decay: str = "linear") -> float:
    """
    The share of the highest learning rate at `progress`, 0 to 1: up in a line to 1 at `warmup`, then down, to 0 at 1.

    Args:
        progress: share of the run that is done.
        warmup: share of the run that it takes to reach the highest rate.
        decay: `"linear"` (Bergsma et al. 2025, "Straight to Zero": best for most budgets), `"cosine"`, or `"sqrt"`:
            `1 - sqrt(progress)` (Hägele et al. 2024), steep at first; or `"inverse_sqrt"`: `sqrt(warmup / progress)`
            (Vaswani et al. 2017, equation 3), which ends above 0, and needs a warm-up.

    Raises:
        ValueError: another `decay`.
    """
    if decay not in DECAYS:
        raise ValueError(f"decay is {decay!r}, but must be one of {', '.join(DECAYS)}: choose one")
    if decay == "inverse_sqrt" and not warmup > 0:
        raise ValueError("decay is 'inverse_sqrt', which falls from the end of the warm-up: give a warmup above 0")
    if progress < warmup:
        return progress / warmup
    if decay == "inverse_sqrt":
        return math.sqrt(warmup / progress)
    rest = min((progress - warmup) / (1 - warmup), 1.0)
    if decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * rest))
    return 1 - (rest if decay == "linear" else math.sqrt(rest))


def decaying_schedule(
    optimizer: torch.optim.Optimizer,
    num_steps: int,
    warmup: float,
    decay: str = "linear",
    progress: Callable[[], float] | None = None,
) -> LambdaLR:
    """
    A schedule along [`decayed`] that ends exactly after `num_steps` steps, or when `progress()` is 1.

    Args:
        optimizer: whose learning rates are scaled.
        num_steps: steps of the whole run; without effect beside `progress`.
        warmup, decay: see [`decayed`].
        progress: share of a time budget that is used; the number of steps then is what fits into the time.
    """

    def scale(step: int) -> float:
        # The middle of the step: neither the first nor the last step then has a rate of 0, and does nothing.
        return decayed((step + 0.5) / num_steps if progress is None else progress(), warmup, decay)

    return LambdaLR(optimizer, scale)

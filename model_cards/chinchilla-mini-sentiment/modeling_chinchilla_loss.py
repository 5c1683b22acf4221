"""
Cross-entropy of a vocabulary projection whose logits never exist all at once.

The gradient of a softmax needs nothing that comes later, so it is made in the forward pass, a few rows at a time,
while their logits are at hand. Beside the projection with `torch.nn.functional.cross_entropy` this saves the memory of
logits, of their copy in float32, and of the gradients of both; and on a CPU time, because a few rows stay in the cache.

This file travels inside every checkpoint: it needs transformers and torch alone, and the file that it imports from.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.modeling_utils import PreTrainedModel

from .modeling_chinchilla_block import matmul_dtype

# Logits at a time. On a CPU, 6 MB of them in bfloat16 and 12 MB in float32; a GPU is busy with more only.
CHUNK_OF_CPU = 3 << 20
CHUNK_OF_ACCELERATOR = 1 << 26


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.LongTensor,
        label_smoothing: float,
    ) -> torch.Tensor:
        dtype = matmul_dtype(hidden_states)
        inputs, matrix = hidden_states.to(dtype), weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        precise = torch.promote_types(dtype, torch.float)
        loss = torch.zeros((), dtype=precise, device=weight.device)
        grad_inputs = torch.empty_like(inputs)
        grad_weight = torch.zeros_like(weight, dtype=precise)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=precise)
        chunk = CHUNK_OF_CPU if weight.device.type == "cpu" else CHUNK_OF_ACCELERATOR
        rows = max(1, chunk // weight.shape[0])
        of_label, of_each = 1 - label_smoothing, label_smoothing / weight.shape[0]  # the distribution to predict
        for start in range(0, len(labels), rows):
            part, targets = inputs[start : start + rows], labels[start : start + rows].unsqueeze(1)
            logits = nn.functional.linear(part, matrix, offset)
            grad_logits = logits.softmax(dim=1, dtype=precise)  # to become softmax minus the distribution to predict
            # The logarithm of the sum that a softmax divides by, from the largest of its values, which is never 0.
            loss += (logits.amax(dim=1).to(precise) - grad_logits.amax(dim=1).log()).sum()
            loss -= of_label * logits.gather(1, targets).to(precise).sum()
            if of_each:
                loss -= of_each * logits.sum(dtype=precise)
                grad_logits -= of_each
            grad_logits.scatter_add_(1, targets, torch.full_like(targets, -of_label, dtype=precise))
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
            grad_logits = grad_logits.to(dtype)
            torch.mm(grad_logits, matrix, out=grad_inputs[start : start + rows])
            grad_weight += grad_logits.t() @ part
        ctx.save_for_backward(grad_inputs, grad_weight, grad_bias)
        ctx.dtypes = hidden_states.dtype, weight.dtype, weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return (
            *(None if gradient is None else (grad_loss * gradient).to(dtype) for gradient, dtype in gradients),
            None,
            None,
        )


def summed_cross_entropy(
    hidden_states: torch.Tensor, head: nn.Linear, labels: torch.LongTensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """
    The sum of the cross-entropies of `softmax(head(hidden_states))` with `labels`, in float32 at least.

    As `cross_entropy(head(hidden_states).float(), labels, reduction="sum")`, gradients of both included, for training:
    the forward pass makes the gradients in any case.

    Args:
        hidden_states: `(tokens, hidden_size)`.
        head: projection to the vocabulary.
        labels: `(tokens,)`, all of them ids in the vocabulary.
        label_smoothing: share of the target that is spread over the vocabulary, as in `cross_entropy`.
    """
    return _SummedCrossEntropy.apply(hidden_states, head.weight, head.bias, labels, label_smoothing)


def makes_gradients_with_loss(model: PreTrainedModel) -> bool:
    """In training, with a head that is all here: not in shards of the vocabulary, nor another module in its place."""
    head = model.lm_head
    if type(head) is not nn.Linear or type(head.weight) is not nn.Parameter:
        return False
    # torch.compile fuses by itself what comes after the projection, and cannot loop over a number it does not know.
    in_training = model.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return in_training and head.weight.shape[0] == model.config.vocab_size


def next_token_loss(
    model: PreTrainedModel,
    hidden_states: torch.Tensor,
    targets: torch.LongTensor,
    num_items_in_batch: torch.Tensor | int | None,
    fused: bool,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """
    Scores of the next tokens by `model.lm_head`, and their mean cross-entropy with `targets`.

    Args:
        hidden_states: `(batch, length, hidden_size)`.
        targets: `(batch, length)`; the token that follows each, -100 where there is none to predict.
        num_items_in_batch: what to divide the sum by, if not by the number of targets.
        fused: in training, make the gradients with the loss, a few tokens at a time; the scores are then `None`.
        label_smoothing: in training, the share of the target that is spread over the vocabulary.
    """
    targets = targets.to(hidden_states.device)
    kept = targets != -100
    smoothing = label_smoothing if model.training else 0.0
    logits = None
    if fused and makes_gradients_with_loss(model):
        loss = summed_cross_entropy(hidden_states[kept], model.lm_head, targets[kept], smoothing)
    else:
        logits = model.lm_head(hidden_states)
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), reduction="sum", label_smoothing=smoothing
        )
    if num_items_in_batch is None:
        num_items_in_batch = kept.sum().clamp(min=1)
    return logits, loss / torch.as_tensor(num_items_in_batch, device=loss.device)

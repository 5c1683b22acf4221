"""
Cross-entropy of a vocabulary projection whose logits never exist all at once.

The gradient of a softmax needs nothing that comes later, so it is made in the forward pass, a few rows at a time,
while their logits are at hand. Beside the projection with `torch.nn.functional.cross_entropy` this saves the memory of
logits, of their copy in float32, and of the gradients of both; and on a CPU time, because a few rows stay in the cache.

This file travels inside every checkpoint: it needs torch alone, and the file that it imports from.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .modeling_chinchilla_block import matmul_dtype

# Logits at a time. On a CPU, 8 MB of them in bfloat16 and 16 MB in float32; a GPU is busy with more only.
CHUNK_OF_CPU = 1 << 22
CHUNK_OF_ACCELERATOR = 1 << 26


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.LongTensor
    ) -> torch.Tensor:
        dtype = matmul_dtype(hidden_states)
        inputs, matrix, offset = hidden_states.to(dtype), weight.to(dtype), bias.to(dtype)
        precise = torch.promote_types(dtype, torch.float)
        loss = torch.zeros((), dtype=precise, device=weight.device)
        grad_inputs = torch.empty_like(inputs)
        grad_weight = torch.zeros_like(weight, dtype=precise)
        grad_bias = torch.zeros_like(bias, dtype=precise)
        chunk = CHUNK_OF_CPU if weight.device.type == "cpu" else CHUNK_OF_ACCELERATOR
        rows = max(1, chunk // weight.shape[0])
        for start in range(0, len(labels), rows):
            part, targets = inputs[start : start + rows], labels[start : start + rows].unsqueeze(1)
            log_probs = torch.addmm(offset, part, matrix.t()).log_softmax(dim=1, dtype=precise)
            loss -= log_probs.gather(1, targets).sum()
            grad_logits = log_probs.exp_()  # softmax minus one-hot
            grad_logits.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=precise))
            grad_bias += grad_logits.sum(dim=0)
            grad_logits = grad_logits.to(dtype)
            torch.mm(grad_logits, matrix, out=grad_inputs[start : start + rows])
            grad_weight += grad_logits.t() @ part
        ctx.save_for_backward(grad_inputs, grad_weight, grad_bias)
        ctx.dtypes = hidden_states.dtype, weight.dtype, bias.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *((grad_loss * gradient).to(dtype) for gradient, dtype in gradients), None


def summed_cross_entropy(hidden_states: torch.Tensor, head: nn.Linear, labels: torch.LongTensor) -> torch.Tensor:
    """
    The sum of the cross-entropies of `softmax(head(hidden_states))` with `labels`, in float32 at least.

    As `cross_entropy(head(hidden_states).float(), labels, reduction="sum")`, gradients of both included, for training:
    the forward pass makes the gradients in any case.

    Args:
        hidden_states: `(tokens, hidden_size)`.
        head: projection to the vocabulary, with a bias.
        labels: `(tokens,)`, all of them ids in the vocabulary.
    """
    return _SummedCrossEntropy.apply(hidden_states, head.weight, head.bias, labels)

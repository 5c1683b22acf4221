"""What this machine can do, measured."""

import time

import torch


def matmul_flops_per_second(
    device: torch.device | str, dtype: torch.dtype, size: int | None = None, seconds: float = 1.0
) -> float:
    """
    FLOP/s of the product of two square matrices: the ceiling that a training run is compared with.

    Args:
        device: where.
        dtype: of the matrices.
        size: rows and columns of the matrices: 2,048 on a CPU if not given, and 8,192 elsewhere, whose products end
            too soon to be measured otherwise.
        seconds: how long to measure. The best of the products counts, others may have been disturbed.
    """
    device = torch.device(device)
    size = size or (2048 if device.type == "cpu" else 8192)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def product() -> float:
        start = time.perf_counter()
        torch.mm(left, right)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - start

    product()
    end = time.perf_counter() + seconds
    best = product()
    while time.perf_counter() < end:
        best = min(best, product())
    return 2 * size**3 / best

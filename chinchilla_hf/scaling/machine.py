"""What this machine can do, measured."""

import time

import torch


def matmul_flops_per_second(
    device: torch.device | str, dtype: torch.dtype, size: int = 2048, seconds: float = 1.0
) -> float:
    """
    FLOP/s of the product of two square matrices: the ceiling that a training run is compared with.

    Args:
        device: where.
        dtype: of the matrices.
        size: rows and columns of the matrices.
        seconds: how long to measure. The best of the products counts, others may have been disturbed.
    """
    device = torch.device(device)
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

"""
Attention where a text is written on a CPU, one query or a few at a time: PyTorch's SDPA kernel against two products.

    python tests/benchmarks/few_queries.py [--repeats 200]

What `few_queries_attention_forward` decides between, by shape and dtype; its rule is the one that this table gives. The
mask leaves out the last two keys. Printed are medians of calls that take turns, and the share of SDPA's time.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from chinchilla_hf import ChinchillaConfig
from chinchilla_hf.modeling_chinchilla_block import ChinchillaAttention, additive_mask, few_queries_attention_forward

# Rows, heads, queries, keys, width of a head: beams of a translation, their own past, texts alone and in batches.
SHAPES = [
    (32, 4, 5, 20, 32),
    (32, 8, 5, 60, 64),
    (1, 8, 5, 30, 64),
    (160, 4, 1, 12, 32),
    (160, 4, 1, 100, 32),
    (32, 8, 1, 100, 64),
    (1, 8, 1, 20, 64),
    (1, 8, 1, 1000, 64),
]


@torch.inference_mode()
def microseconds(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """The median time of each, called in turns."""
    times: list[list[float]] = [[] for _ in functions]
    for number in range(repeats + 10):
        for function, of_function in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if number >= 10:
                of_function.append(1e6 * (time.perf_counter() - start))
    return list(map(median, times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200, help="Calls of each (default: 200).")
    options = parser.parse_args()
    print(
        f"{torch.get_num_threads()} threads\n"
        f"{'rows, heads, queries, keys, width':<36}{'SDPA':>9}{'products':>10}{'share':>7}"
    )
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            rows, heads, queries, keys, width = shape
            attention = ChinchillaAttention(ChinchillaConfig(hidden_size=heads * width, num_attention_heads=heads), 0)
            attention.eval()
            query = torch.randn(rows, queries, heads, width, dtype=dtype).transpose(1, 2)
            key, value = torch.randn(2, rows, heads, keys, width, dtype=dtype)
            mask = additive_mask((torch.arange(keys) < keys - 2).expand(rows, 1, queries, keys), dtype)
            arguments = (query, key, value, mask)
            sdpa, products = microseconds(
                [
                    lambda a=arguments: nn.functional.scaled_dot_product_attention(*a).transpose(1, 2),
                    lambda a=arguments, m=attention: few_queries_attention_forward(m, *a, m.scaling),
                ],
                options.repeats,
            )
            name = f"{', '.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}"
            print(f"{name:<36}{sdpa:>6.0f} us{products:>7.0f} us{products / sdpa:>7.2f}", flush=True)


if __name__ == "__main__":
    main()

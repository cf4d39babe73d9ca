"""In which arithmetic a device scores fastest."""

from __future__ import annotations

import statistics
import time
from functools import lru_cache

import torch
from torch.nn import functional as F

# Below it the choice would hang on the noise of a measurement. Where bfloat16 is multiplied in hardware it is 2 to 5.
WORTH = 1.3


def best_precision(device: torch.device) -> str:
    """ "float16" on a GPU; on a CPU "bfloat16" where that is faster here, else "float32"."""
    if device.type == "cuda":
        return "float16"
    return "bfloat16" if device.type == "cpu" and bfloat16_gain() >= WORTH else "float32"


@lru_cache(maxsize=1)
def bfloat16_gain() -> float:
    """How many times faster this CPU convolves in bfloat16 than in float32; 1 where it has no instructions for it.

    Measured once per process, on one 3x3 convolution of 256 channels, in less than a second: processors that convert
    to float32 in between are slower than without.
    """
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return 1.0

    def seconds(dtype: torch.dtype) -> float:
        x = torch.randn(1, 256, 33, 33).to(dtype).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(256, 256, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
        taken = []
        with torch.inference_mode():
            for _ in range(6):
                start = time.perf_counter()
                F.conv2d(x, weight, padding=1)
                taken.append(time.perf_counter() - start)
        return statistics.median(taken[1:])  # the first one also makes the kernel

    return seconds(torch.float32) / seconds(torch.bfloat16)

"""In which arithmetic a device scores."""

from __future__ import annotations

import torch


def best_precision(device: torch.device) -> str:
    """ "float16" on a GPU; on a CPU "bfloat16" where it has instructions for it (AVX-512 BF16 or AMX), else "float32".

    The processor's kind alone decides, not a measurement: two processes of a busy machine come to different results, and
    the masks of one table must not depend on that.
    """
    if device.type == "cuda":
        return "float16"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if device.type == "cpu" and fast else "float32"

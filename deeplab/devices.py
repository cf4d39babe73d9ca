"""Which device computes, and in which precision."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

from deeplab.errors import UserError


class DeviceError(UserError):
    """The requested device is unknown, or this machine does not have it."""


def device_named(name: str) -> torch.device:
    """ "auto" is the GPU if there is one, else the CPU; other names are torch's. Raises DeviceError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r}: 'auto', 'cpu' and 'cuda' are accepted") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device {name}: torch finds no GPU here; 'cpu' and 'auto' are accepted")
    return device


def best_precision(device: torch.device) -> str:
    """ "float16" on a GPU; on a CPU "bfloat16" where it has instructions for it (AVX-512 BF16 or AMX), else "float32".

    The kind of processor decides, not a measurement: on a busy machine two processes would measure different results, and
    the masks of one table must not depend on that.
    """
    if device.type == "cuda":
        return "float16"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if device.type == "cpu" and fast else "float32"


def available_cpus() -> int:
    """CPUs that this process may use: those that it is bound to, and no more than the quota of its control group."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no Linux, or the quota is "max"
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        cpus = min(cpus, max(1, quota // period))
    return cpus

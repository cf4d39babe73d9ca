"""How a weights file holds what int8 needs: tensors beside the weights, and the digest of the weights that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch

from deeplab.networks.network import Quantization

PREFIX = "quantization."
FIELDS = ("scale", "zero", "bias")
BELONGS = PREFIX + "weights_sha256"  # 32 bytes

Tensors = Mapping[str, torch.Tensor]


def with_quantization(weights: Tensors, quantization: Quantization | None) -> dict[str, torch.Tensor]:
    """The tensors of a weights file: weights as they are stored, and the quantization if there is one."""
    if quantization is None:
        return dict(weights)
    own = {PREFIX + field: torch.from_numpy(getattr(quantization, field)) for field in FIELDS}
    return {**weights, **own, BELONGS: torch.tensor(list(_digest(weights)), dtype=torch.uint8)}


def taken_apart(tensors: Tensors) -> tuple[dict[str, torch.Tensor], Quantization | None]:
    """The weights of a file, and its quantization; ValueError with the reason if it is damaged or of other weights."""
    weights = {key: value for key, value in tensors.items() if not key.startswith(PREFIX)}
    own = {key.removeprefix(PREFIX): value.numpy() for key, value in tensors.items() if key.startswith(PREFIX)}
    if not own:
        return weights, None
    belongs = own.pop(BELONGS.removeprefix(PREFIX), np.empty(0, np.uint8))
    if set(own) != set(FIELDS):
        raise ValueError(f"its int8 ranges are not complete: {', '.join(FIELDS)} are needed")
    if belongs.tobytes() != _digest(weights):
        raise ValueError("its int8 ranges are those of other weights")
    return weights, Quantization(**own)


def _digest(weights: Tensors) -> bytes:
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(key.encode() + b"\0" + weights[key].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()

"""The one strict way in which foreign tensors get into a network: every key filled or refused, every shape the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from deeplab.errors import UserError

Tensors = dict[str, torch.Tensor]


class WeightsError(UserError):
    """Weights do not fit; the message lists what is missing, unknown or of another shape."""


def read_safetensors(path: str | Path) -> Tensors:
    """A safetensors file as float32 tensors; WeightsError where it is missing or damaged (pickles are never loaded)."""
    try:
        return {key: value.float() for key, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def read_pth(path: str | Path) -> Tensors:
    """A .pth state dict (also one under "state_dict" or "model") as tensors, read with `weights_only=True`: no code runs."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip, EOF, key and runtime errors here; all mean the same
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"{path}: not a .pth file of tensors alone ({reason[0][:200]})") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise WeightsError(f"{path}: holds no state dict (names -> tensors)")
    return {str(key): value for key, value in loaded.items()}


def load_backbone(backbone: nn.Module, tensors: Tensors, keys: Mapping[str, str], dropped: tuple[str, ...]) -> None:
    """Fill a module through a key map. Keys that start with one of `dropped` (a classifier) are left out by intent.

    Raises WeightsError unless every parameter and statistic of the module is filled and every other key was used.
    """
    mapped = {keys.get(key, key): value for key, value in tensors.items() if not key.startswith(dropped)}
    expected = backbone.state_dict()
    problems = [f"{k} missing" for k in expected if k not in mapped and not k.endswith("num_batches_tracked")]
    problems += [f"{k} unknown" for k in mapped if k not in expected]
    problems += [
        f"{k} is {tuple(v.shape)}, not {tuple(expected[k].shape)}"
        for k, v in mapped.items()
        if k in expected and v.shape != expected[k].shape
    ]
    if problems:
        raise WeightsError(f"{len(problems)} weights do not fit {type(backbone).__name__}: {'; '.join(problems[:6])}")
    backbone.load_state_dict({**expected, **mapped})

"""Strict loading of foreign tensors into a network: every key is filled or refused, and every shape must match."""

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
    """Weights do not fit; the message lists missing and unknown keys and wrong shapes."""


def read_safetensors(path: str | Path) -> Tensors:
    """A safetensors file as float32 tensors; WeightsError if it is missing or damaged (pickles are never loaded)."""
    try:
        return {key: value.float() for key, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def load_backbone(backbone: nn.Module, tensors: Tensors, keys: Mapping[str, str], dropped: tuple[str, ...]) -> None:
    """Fill a module through a key map. Keys that start with one of `dropped` (a classifier's) are left out.

    Raises WeightsError unless every parameter and statistic of the module is filled and every other key is used.
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

"""Foreign weights into our networks: explicit key maps, every key accounted for."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from deeplab import checkpoint
from deeplab.errors import UserError
from deeplab.mobilenet import MobileNetV2
from deeplab.network import SegmentationNetwork


class WeightsError(UserError):
    """Weights do not fit; the message lists what is missing, unknown or of another shape."""


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """A safetensors file as float32 tensors; WeightsError where it is missing or damaged (pickles are never loaded)."""
    try:
        return {key: value.float() for key, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def mobilenet_v2_keys() -> dict[str, str]:
    """torchvision's MobileNetV2 key -> ours. Only the last two layers of a block sit elsewhere (`project`)."""
    keys = {}
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def conv_norm(source: str, target: str) -> None:
        keys[f"{source}0.weight"] = f"{target}0.weight"
        keys.update({f"{source}1.{part}": f"{target}1.{part}" for part in parts})

    conv_norm("features.0.", "features.0.")
    for block in range(1, 18):
        inner = 1 if block == 1 else 2  # the first block has no expansion
        for layer in range(inner):
            conv_norm(f"features.{block}.conv.{layer}.", f"features.{block}.conv.{layer}.")
        keys[f"features.{block}.conv.{inner}.weight"] = f"features.{block}.project.0.weight"
        for part in parts:
            keys[f"features.{block}.conv.{inner + 1}.{part}"] = f"features.{block}.project.1.{part}"
    conv_norm("features.18.", "features.18.")
    return keys


def load_backbone(backbone: nn.Module, tensors: dict[str, torch.Tensor], keys: dict[str, str], dropped: tuple[str, ...]) -> None:
    """Fill a backbone through a key map. Keys that start with one of `dropped` (a classifier) are left out by intent.

    Raises WeightsError unless every parameter and statistic of the backbone is filled and every other key was used.
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


def initialise(network: SegmentationNetwork, reference: str | Path) -> str:
    """Start `network` from ImageNet weights (.safetensors, torchvision's keys) or from a model; says what was filled.

    From a model (folder or bundled name) the head comes along when it has the same shape. Raises WeightsError or
    ModelError when the backbone does not fit.
    """
    if str(reference).endswith(".safetensors"):
        keys = mobilenet_v2_keys() if isinstance(network.backbone, MobileNetV2) else {}
        load_backbone(network.backbone, read_safetensors(reference), keys, ("classifier.", "fc."))
        return f"backbone from {reference}"
    source = checkpoint.load(reference)
    load_backbone(network.backbone, source.network.backbone.state_dict(), {}, ())
    head, ours = source.network.head.state_dict(), network.head.state_dict()
    if {k: v.shape for k, v in head.items()} == {k: v.shape for k, v in ours.items()}:
        network.head.load_state_dict(head)
        return f"backbone and head from {source.label}"
    return f"backbone from {source.label}; the head is new (other classes)"

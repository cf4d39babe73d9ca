"""Layers of a .caffemodel -> tensors under our keys, and the zoo's network that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from deeplab.weights import key_maps
from deeplab.weights.caffemodel import Layer
from deeplab.weights.strict_loading import Tensors, WeightsError

COPIES = ("res05_", "res075_")  # MSC's branches at scales 0.5 and 0.75: copies of the same weights
DECONVNET_EPS = 1e-5  # of batch norm in our DeconvNet, torch's default


@dataclass
class CaffeNet:
    """The zoo's name and options, tensors under our keys, and the layers that were deliberately left out."""

    architecture: str
    options: dict[str, Any]
    tensors: Tensors
    skipped: list[str] = field(default_factory=list)


def convert(layers: Sequence[Layer]) -> CaffeNet:
    """Recognises the network by the layers' names and shapes. WeightsError if a layer with weights has no place in it."""
    skipped = [layer.name for layer in layers if layer.blobs and layer.name.startswith(COPIES)]
    skipped += [layer.name for layer in layers if layer.blobs and any(f"_{copy[:-1]}" in layer.name for copy in COPIES)]
    weighted = [layer for layer in layers if layer.blobs and layer.name not in skipped]
    by_name = {layer.name: layer for layer in weighted}
    if "fc6-deconv" in by_name:
        return CaffeNet("deconvnet", {}, _deconvnet(weighted), skipped)
    if "res2a_branch1" in by_name:
        depth = 101 if "res4b22_branch2a" in by_name else 50
        return CaffeNet(f"resnet{depth}-aspp", {"mean": "deeplab"}, _resnet(weighted, depth), skipped)
    if "conv1_1" not in by_name:
        raise WeightsError(f"no network of the family: layers {', '.join(list(by_name)[:6])}")
    if "score_fr" in by_name or "score" in by_name or "upscore" in by_name:
        return _fcn(weighted, skipped)
    return _deeplab_vgg(weighted, by_name, any(layer.name == "pool5a" for layer in layers), skipped)


def _place(layers: Sequence[Layer], names: dict[str, str], tensors: Tensors) -> None:
    """Store the weight, and the bias if there is one, of convolutions under our keys."""
    for layer in layers:
        if layer.name not in names:
            raise WeightsError(f"layer {layer.name} has weights and no place in this network")
        for part, blob in zip(("weight", "bias"), layer.blobs, strict=False):
            # In files before 2015 a bias has four dimensions, (1, 1, 1, n).
            values = blob.reshape(-1) if part == "bias" else blob
            tensors[f"{names[layer.name]}.{part}"] = torch.from_numpy(np.array(values))
        if len(layer.blobs) > 2:
            raise WeightsError(f"layer {layer.name} has {len(layer.blobs)} blobs; a convolution has one or two")


def _resnet(layers: Sequence[Layer], depth: int) -> Tensors:
    """BN statistics divided by the moving-average factor; Scale's two blobs become the norm's weight and bias."""
    names = key_maps.caffe_resnet(depth)
    names |= {f"fc1_voc12_c{i}": f"head.branches.{i}" for i in range(4)}
    tensors: Tensors = {}
    for layer in layers:
        if layer.name.startswith("bn"):
            if layer.name not in names or len(layer.blobs) != 3 or layer.blobs[2].size != 1:
                raise WeightsError(f"layer {layer.name}: a BatchNorm of this network with mean, variance and factor is expected")
            factor = float(layer.blobs[2].reshape(-1)[0])
            if factor == 0:
                raise WeightsError(f"layer {layer.name}: moving-average factor 0, so its statistics hold nothing")
            for part, blob in zip(("running_mean", "running_var"), layer.blobs[:2], strict=True):
                tensors[f"{names[layer.name]}.{part}"] = torch.from_numpy(blob.reshape(-1) / np.float32(factor))
        elif layer.name.startswith("scale"):
            target = names.get("bn" + layer.name.removeprefix("scale"))
            if target is None or len(layer.blobs) != 2:
                raise WeightsError(f"layer {layer.name}: a Scale of this network with weight and bias is expected")
            for part, blob in zip(("weight", "bias"), layer.blobs, strict=True):
                tensors[f"{target}.{part}"] = torch.from_numpy(np.array(blob.reshape(-1)))
        else:
            _place([layer], names, tensors)
    return tensors


def _deeplab_vgg(layers: Sequence[Layer], names: dict[str, Layer], average: bool, skipped: list[str]) -> CaffeNet:
    tensors: Tensors = {}
    places = key_maps.caffe_vgg()
    scores = sorted(name for name in names if name.startswith("fc8"))
    if "fc6_1" in names:
        rates = tuple(names[f"fc6_{i}"].dilation for i in range(1, 5) if f"fc6_{i}" in names)
        for i in range(4):
            places |= {f"fc{n}_{i + 1}": f"backbone.branches.{i}.fc{n}" for n in (6, 7)}
            places |= {name: f"head.scores.{i}" for name in scores if name.endswith(f"_{i + 1}")}
        _place(layers, places, tensors)
        return CaffeNet("vgg16-aspp-s" if rates == (2, 4, 8, 12) else "vgg16-aspp-l", {}, tensors, skipped)
    if "fc6" not in names or len(scores) != 1:
        raise WeightsError(f"VGG-16 without fc6 or with {len(scores)} layers fc8*; one network of the family is expected")
    places |= {"fc6": "backbone.fc.fc6", "fc7": "backbone.fc.fc7", scores[0]: "head.score"}
    _place(layers, places, tensors)
    side = names["fc6"].blobs[0].shape[-1]
    # The 4x4 variants with hole 4 and 8 have the same shapes and differ only in the file's dilation, if it has one.
    four = "vgg16-4x4-hole8" if names["fc6"].dilation == 8 else "vgg16-4x4"
    architecture = {7: "vgg16-7x7", 4: four}.get(side, "vgg16-largefov" if average else "vgg16-v2-largefov")
    return CaffeNet(architecture, {} if side == 3 else {"average": average}, tensors, skipped)


def _fcn(layers: Sequence[Layer], skipped: list[str]) -> CaffeNet:
    names = {layer.name for layer in layers}
    stride = 8 if "score_pool3" in names else 16 if "score_pool4" in names else 32
    ups = {8: ("upscore2", "upscore_pool4", "upscore8"), 16: ("upscore2", "upscore16"), 32: ("upscore",)}[stride]
    places = key_maps.caffe_vgg() | {"fc6": "backbone.fc.fc6", "fc7": "backbone.fc.fc7", "score_fr": "head.score_fr"}
    places |= {"score_pool4": "head.score_pool4", "score_pool3": "head.score_pool3"}
    places |= {name: f"head.upscores.{i}" for i, name in enumerate(ups)}
    tensors: Tensors = {}
    _place(layers, places, tensors)
    return CaffeNet(f"fcn{stride}s", {}, tensors, skipped)


def _deconvnet(layers: Sequence[Layer]) -> Tensors:
    """The inference file, whose BN layers hold a scale and a shift that include mean and variance."""
    places = key_maps.caffe_deconvnet()
    tensors: Tensors = {}
    for layer in layers:
        if "bn" not in layer.name:
            _place([layer], places, tensors)
            continue
        if layer.name not in places or len(layer.blobs) != 2:
            raise WeightsError(f"layer {layer.name}: a BN with scale and shift (the inference file's) is expected")
        for part, blob in zip(("weight", "bias"), layer.blobs, strict=True):
            tensors[f"{places[layer.name]}.{part}"] = torch.from_numpy(np.array(blob.reshape(-1)))
        channels = layer.blobs[0].size
        tensors[f"{places[layer.name]}.running_mean"] = torch.zeros(channels)
        tensors[f"{places[layer.name]}.running_var"] = torch.full((channels,), 1 - DECONVNET_EPS)
    return tensors

"""Imports whole foreign networks, in the geometry of their family."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from deeplab.networks.network import SegmentationNetwork
from deeplab.placement import Geometry
from deeplab.weights import caffe_layers, key_maps
from deeplab.weights.caffemodel import read_caffemodel
from deeplab.weights.pth_files import read_pth, unprefixed
from deeplab.weights.strict_loading import Tensors, WeightsError, load_backbone, read_safetensors
from deeplab.weights.tflite_file import read_tflite
from deeplab.zoo import build

FAMILIES = ("kazuto", "isht7", "torchvision", "caffe", "tflite")
SCORES = ("head.branches.0.weight", "head.scores.0.weight", "head.score.weight", "head.score_fr.weight")

# How each code base scales and pads at test, and where its scores lie.
# kazuto: `MSC` (F.interpolate with scale_factor), and an evaluation that resizes scores to the image; no padding.
# torchvision: scores are resized to the input's size. It has one scale; others are made as kazuto's.
OWN_SIZE = Geometry(scales="areas", align_corners=False, padded=False)
# The official v1 and v2 (`crop_size: 513` in TEST, Interp, padded with the mean as doubles), and isht7's evalpyt.py.
OFFICIAL = Geometry(least_side=513, exact_mean=True)


@dataclass
class Imported:
    """A filled network in its code base's geometry (evaluation mode), how the zoo builds it, and the foreign keys left out."""

    network: SegmentationNetwork
    architecture: str
    options: dict[str, Any]
    left_out: list[str]


def import_state_dict(tensors: Tensors, family: str = "kazuto") -> SegmentationNetwork:
    """A foreign state dict -> our network in that family's own geometry.

    "kazuto": kazuto1011/deeplab-pytorch with MSC (`base.*`; ResNet-101, ceil pooling, align_corners False as since its
    PR 53, images at their own size). "isht7": isht7/pytorch-deeplab-resnet (`Scale.*`; align_corners True, images padded to
    513). "torchvision": deeplabv3_resnet50/101, deeplabv3_mobilenet_v3_large, fcn_resnet50/101 (floor pooling,
    align_corners False, images at their own size). The scores give the number of classes. Raises WeightsError unless every
    key of ours is filled and every key of theirs has a place.
    """
    return import_weights(tensors, family).network


def import_weights(tensors: Tensors, family: str) -> Imported:
    """Like `import_state_dict`; also returns the architecture's name and the keys that were left out.

    Prefixes that DataParallel, torch.compile and Lightning put before every key are removed; tensors outside the network
    are left out.
    """
    if family not in FAMILIES:
        near = get_close_matches(family, FAMILIES, n=1, cutoff=0.0)[0]
        raise WeightsError(f"unknown family {family!r}; nearest: {near}; known: {', '.join(FAMILIES)}")
    if family in ("caffe", "tflite"):
        raise WeightsError(f"family {family} is not a state dict: give the file to import_file")
    tensors, outside = unprefixed(tensors)
    imported = _torchvision(tensors) if family == "torchvision" else _resnet_aspp(tensors, family)
    imported.left_out += outside
    return imported


def import_file(path: str | Path, family: str) -> Imported:
    """A .caffemodel of family "caffe", a .tflite of "tflite"; of others .safetensors, or .pth read with `weights_only=True`."""
    if family == "tflite":
        tensors, classes = read_tflite(path)
        return _filled("mobilenet-v2-image-pooling", {}, tensors, {}, (), [], classes)
    if family == "caffe":
        net = caffe_layers.convert(read_caffemodel(path))
        deeplab = not net.architecture.startswith(("fcn", "deconvnet"))
        return _filled(net.architecture, net.options, net.tensors, {}, (), net.skipped, geometry=OFFICIAL if deeplab else None)
    read = read_safetensors if str(path).endswith(".safetensors") else read_pth
    return import_weights(read(path), family)


def _classes(tensors: Tensors, key: str, family: str) -> int:
    """The number of classes, from the scores at `key`; WeightsError, with the first keys, if it is not of this family."""
    if key not in tensors or tensors[key].ndim != 4:
        raise WeightsError(f"not of family {family}: no {key} among {len(tensors)} keys ({', '.join(list(tensors)[:4])}, ...)")
    return int(tensors[key].shape[0])


def _filled(
    architecture: str, options: dict[str, Any], tensors: Tensors, keys: dict[str, str], dropped: tuple[str, ...],
    left_out: list[str], classes: int | None = None, geometry: Geometry | None = None,
) -> Imported:  # fmt: skip
    """geometry: of the code base; None is the architecture's own."""
    score = next((key for key in SCORES if key in tensors), None)
    if classes is None and score is None:
        raise WeightsError(f"weights of {architecture} without class scores; an ImageNet file is what `train --init` takes")
    network = build(architecture, classes or int(tensors[str(score)].shape[0]), **options).eval()
    network.geometry = geometry or network.geometry
    load_backbone(network, tensors, keys, dropped)
    return Imported(network, architecture, options, left_out)


def _resnet_aspp(tensors: Tensors, family: str) -> Imported:
    if family == "kazuto":
        keys, first = key_maps.kazuto(), "base.aspp.c0.weight"
        if first not in tensors and "fc.weight" in tensors:
            raise WeightsError("kazuto's COCO init has 91 image scores instead of an ASPP: it is what `train --init` takes")
        geometry = OWN_SIZE
    else:
        keys, first, geometry = key_maps.isht7(), "Scale.layer5.conv2d_list.0.weight", OFFICIAL
    classes = _classes(tensors, first, family)
    return _filled("resnet101-aspp", {"mean": "deeplab"}, tensors, keys, (), [], classes, geometry)


def _torchvision(tensors: Tensors) -> Imported:
    pyramid = "classifier.0.project.0.weight" in tensors
    classes = _classes(tensors, "classifier.4.weight", "torchvision")
    mobilenet = "backbone.0.0.weight" in tensors
    if mobilenet:
        architecture = "mobilenet-v3-aspp-v3"
    else:
        depth = 101 if "backbone.layer3.22.conv1.weight" in tensors else 50
        architecture = f"resnet{depth}-{'aspp-v3' if pyramid else 'fcn'}"
    keys = key_maps.torchvision_segmentation(tensors, mobilenet)
    left_out = [key for key in tensors if key.startswith("aux_classifier.")]
    return _filled(architecture, {}, tensors, keys, ("aux_classifier.",), left_out, classes, OWN_SIZE)

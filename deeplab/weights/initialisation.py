"""Initial weights of a training: from ImageNet, or from a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from deeplab import zoo
from deeplab.models import checkpoint
from deeplab.networks.deconvnet import DeconvNetBackbone
from deeplab.networks.fcn import FCN
from deeplab.networks.image_pooling_head import ShortMobileNetV2
from deeplab.networks.mobilenet import MobileNetV2
from deeplab.networks.network import SegmentationNetwork
from deeplab.networks.resnet import ResNet
from deeplab.networks.vgg import VGG16, FullyConnected
from deeplab.weights import key_maps
from deeplab.weights.pth_files import read_pth, unprefixed
from deeplab.weights.strict_loading import Tensors, WeightsError, load_backbone, read_safetensors

SUBSET_SEED = 20160602  # selects the 1024 of VGG's 4096 filters that LargeFOV keeps, which are random in the paper


def initialise(network: SegmentationNetwork, reference: str | Path, classes: Sequence[str]) -> str:
    """Fill `network` from ImageNet weights (.safetensors or .pth, torchvision's keys) or a model; returns what was filled.

    VGG-16: fc6 and fc7 (`classifier.0`, `.3`) become convolutions, subsampled for the 4x4 and LargeFOV variants; if the
    file lacks them, they stay new. From a model (folder or bundled name) of the same head, its layers are copied too, and the
    scores of the classes whose names both have; `classes`: the network's, in order. From an FCN of a coarser stage, all layers
    that both have. Raises WeightsError or ModelError if the backbone does not fit.
    """
    name = str(reference)
    if name.endswith((".safetensors", ".pth", ".pt")):
        tensors, _ = unprefixed(read_safetensors(reference) if name.endswith(".safetensors") else read_pth(reference))
        backbone = network.backbone
        if isinstance(backbone, VGG16 | DeconvNetBackbone):
            return f"{load_vgg(backbone, tensors)} from {reference}"
        keys = key_maps.mobilenet_v2_keys() if isinstance(backbone, MobileNetV2) else {}
        if isinstance(backbone, ResNet) and "layer2.block1.reduce.conv.weight" in tensors:  # kazuto's COCO init
            depth = 101 if "layer4.block23.reduce.conv.weight" in tensors else 50
            keys = {k: v.removeprefix("backbone.") for k, v in key_maps.kazuto(depth, "", head=False).items()}
        load_backbone(backbone, tensors, keys, ("classifier.", "fc.", *_unused(backbone)))
        return f"backbone from {reference}"
    source = checkpoint.load(reference)
    if isinstance(network, FCN) and isinstance(source.network, FCN) and source.network.classes == network.classes:
        network.load_stage(source.network)
        return f"all layers of {source.label}; the others are new"
    load_backbone(network.backbone, source.network.backbone.state_dict(), {}, _unused(network.backbone))
    return f"backbone {_load_head(network, source, list(classes))}"


def known_classes(reference: str | Path, architecture: str) -> list[str]:
    """The classes whose scores `initialise` can take from there for a network of that architecture. Raises ModelError."""
    if str(reference).endswith((".safetensors", ".pth", ".pt")):
        return []
    card = checkpoint.read_card(reference)
    theirs = card["architecture"]["name"] if "architecture" in card else None  # an ensemble has none
    return [entry["name"] for entry in card["classes"]] if theirs == architecture else []


def _unused(backbone: nn.Module) -> tuple[str, ...]:
    """Layers of whole networks that this backbone ends before."""
    return ("features.18.",) if isinstance(backbone, ShortMobileNetV2) else ()


def _load_head(network: SegmentationNetwork, source: checkpoint.Model, classes: list[str]) -> str:
    """Copy the head of a model as far as it fits: layers of the same shape, and the scores of classes of the same name."""
    theirs, ours = source.network.head.state_dict(), dict(network.head.state_dict())
    by_class = _class_tensors(source)
    fits = theirs.keys() == ours.keys() and all(
        value.shape[key in by_class :] == ours[key].shape[key in by_class :] for key, value in theirs.items()
    )
    if not fits:
        return f"from {source.label}; the head is new (another one)"
    names = list(source.classes.names)
    shared = [name for name in classes if name in names]
    new = [name for name in classes if name not in names]
    rows, their_rows = [classes.index(name) for name in shared], [names.index(name) for name in shared]
    for key, value in theirs.items():
        if key not in by_class:
            ours[key] = value
        elif shared:
            ours[key] = ours[key].index_copy(0, torch.tensor(rows), value[their_rows].to(ours[key].dtype))
    network.head.load_state_dict(ours)
    if not new:
        return f"and head from {source.label}"
    return f"and head from {source.label}; scores of new classes: {len(new)} of {len(classes)}"


def _class_tensors(model: checkpoint.Model) -> set[str]:
    """The head's tensors whose rows are classes: those that have one row more in the same network with one class more."""
    architecture = model.card["architecture"]
    with torch.device("meta"):
        larger = zoo.build(architecture["name"], len(model.classes) + 1, **architecture.get("options", {})).head.state_dict()
    return {key for key, value in model.network.head.state_dict().items() if value.shape != larger[key].shape}


def load_vgg(backbone: VGG16 | DeconvNetBackbone, tensors: Tensors) -> str:
    """Fill a backbone made of VGG-16 from torchvision's; returns what was filled.

    Raises WeightsError if one of the 13 convolutions is missing, and for keys that VGG-16 does not have.
    """
    known = {f"features.{i}.{part}" for i in key_maps.VGG_INDICES for part in ("weight", "bias")}
    known |= {f"classifier.{i}.{part}" for i in (0, 3, 6) for part in ("weight", "bias")}
    unknown, missing = sorted(set(tensors) - known), sorted(k for k in known if k not in tensors and "features" in k)
    if unknown or missing:
        shown = [f"{key} unknown" for key in unknown[:3]] + [f"{key} missing" for key in missing[:3]]
        raise WeightsError(f"{len(unknown) + len(missing)} weights do not fit VGG-16: {'; '.join(shown)}")
    deconv = isinstance(backbone, DeconvNetBackbone)
    own = backbone.state_dict()
    names = [f"stages.{c[0]}.{c[1]}.0" for c in _stage_positions()] if deconv else [f"features.{i}" for i in key_maps.VGG_INDICES]
    filled = {
        f"{ours}.{part}": tensors[f"features.{index}.{part}"]
        for ours, index in zip(names, key_maps.VGG_INDICES, strict=True)
        for part in ("weight", "bias")
    }
    summary = "the 13 convolutions"
    if "classifier.0.weight" in tensors and (deconv or any(isinstance(m, FullyConnected) for m in backbone.modules())):
        prefixes = sorted({key.rsplit("fc6", 1)[0] for key in own if "fc6" in key})
        for prefix in prefixes:
            suffix = ".0" if deconv else ""
            side, width = own[f"{prefix}fc6{suffix}.weight"].shape[-1], own[f"{prefix}fc6{suffix}.weight"].shape[0]
            for layer, part, value in fully_connected(tensors, side, width):
                filled[f"{prefix}{layer}{suffix}.{part}"] = value
        summary = "the 13 convolutions, fc6 and fc7"
    wrong = [f"{k} is {tuple(v.shape)}, not {tuple(own[k].shape)}" for k, v in filled.items() if v.shape != own[k].shape]
    if wrong:
        raise WeightsError(f"{len(wrong)} weights do not fit VGG-16: {'; '.join(wrong[:6])}")
    backbone.load_state_dict({**own, **filled})
    return summary


def _stage_positions() -> list[tuple[int, int]]:
    return [(stage, layer) for stage, count in enumerate((2, 2, 3, 3, 3)) for layer in range(count)]


def fully_connected(tensors: Tensors, side: int, width: int) -> list[tuple[str, str, torch.Tensor]]:
    """VGG's fc6 (4096 x 25088) and fc7 as convolutions of `side` x `side` and 1 x 1 with `width` filters.

    A smaller kernel keeps evenly spaced positions of the 7 x 7 (0, 2, 4, 6 or 0, 3, 6); fewer filters are a random subset,
    as LargeFOV's 1024 (arXiv 1412.7062, section 5.1). WeightsError if the two matrices have other shapes.
    """
    fc6, fc7 = tensors["classifier.0.weight"], tensors.get("classifier.3.weight", torch.empty(0))
    if fc6.shape != (4096, 512 * 49) or fc7.shape != (4096, 4096):
        raise WeightsError(f"classifier.0 and .3 are {tuple(fc6.shape)}, {tuple(fc7.shape)}; VGG-16 has 4096 x 25088, 4096 x 4096")
    if 6 % (side - 1) or width > 4096:
        raise WeightsError(f"fc6 of {side} x {side}, {width} filters: sides 7, 4 and 3, and at most 4096 filters are accepted")
    positions = torch.arange(0, 7, 6 // (side - 1))
    filters = torch.arange(4096)
    if width < 4096:
        filters = torch.randperm(4096, generator=torch.Generator().manual_seed(SUBSET_SEED))[:width].sort().values
    kernel = fc6.view(4096, 512, 7, 7)[filters][:, :, positions][:, :, :, positions]
    return [
        ("fc6", "weight", kernel),
        ("fc6", "bias", tensors["classifier.0.bias"][filters]),
        ("fc7", "weight", fc7[filters][:, filters][:, :, None, None]),
        ("fc7", "bias", tensors["classifier.3.bias"][filters]),
    ]

"""Key maps of each family: their name -> ours."""

from __future__ import annotations

from collections.abc import Iterable

from deeplab.networks.resnet import BLOCKS

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Of a ResNet block's layer: our names of its convolution and norm, Caffe's name of the branch, kazuto's name.
BRANCHES = (
    ("conv1", "bn1", "2a", "reduce"),
    ("conv2", "bn2", "2b", "conv3x3"),
    ("conv3", "bn3", "2c", "increase"),
    ("downsample.0", "downsample.1", "1", "shortcut"),
)


def unit(their_conv: str, their_norm: str, our_conv: str, our_norm: str) -> dict[str, str]:
    """A convolution without bias and its batch norm."""
    return {f"{their_conv}.weight": f"{our_conv}.weight"} | {f"{their_norm}.{part}": f"{our_norm}.{part}" for part in NORM}


def mobilenet_v2_keys() -> dict[str, str]:
    """torchvision's MobileNetV2 key -> ours. Only the last two layers of a block differ (`project`)."""
    keys = unit("features.0.0", "features.0.1", "features.0.0", "features.0.1")
    for block in range(1, 18):
        base = f"features.{block}"
        inner = 1 if block == 1 else 2  # the first block has no expansion
        for layer in range(inner):
            keys |= unit(*[f"{base}.conv.{layer}.{part}" for part in (0, 1, 0, 1)])
        keys |= unit(f"{base}.conv.{inner}", f"{base}.conv.{inner + 1}", f"{base}.project.0", f"{base}.project.1")
    return keys | unit("features.18.0", "features.18.1", "features.18.0", "features.18.1")


def kazuto(depth: int = 101, prefix: str = "base.", head: bool = True) -> dict[str, str]:
    """kazuto1011/deeplab-pytorch: `base.layer2.block1.reduce.conv.weight` -> `backbone.layer1.0.conv1.weight`."""
    stem = f"{prefix}layer1.conv1"
    keys = unit(f"{stem}.conv", f"{stem}.bn", "backbone.conv1", "backbone.bn1")
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        for block in range(blocks):
            for conv, norm, _, name in BRANCHES[: 4 if block == 0 else 3]:
                theirs, ours = f"{prefix}layer{stage + 1}.block{block + 1}.{name}", f"backbone.layer{stage}.{block}."
                keys |= unit(f"{theirs}.conv", f"{theirs}.bn", ours + conv, ours + norm)
    if head:
        keys |= {f"{prefix}aspp.c{i}.{p}": f"head.branches.{i}.{p}" for i in range(4) for p in ("weight", "bias")}
    return keys


def isht7(depth: int = 101) -> dict[str, str]:
    """isht7/pytorch-deeplab-resnet: `Scale.layer1..4` are torchvision's names, `Scale.layer5.conv2d_list` the ASPP."""
    keys = unit("Scale.conv1", "Scale.bn1", "backbone.conv1", "backbone.bn1")
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        for block in range(blocks):
            for conv, norm, _, _ in BRANCHES[: 4 if block == 0 else 3]:
                name = f"layer{stage}.{block}."
                keys |= unit(f"Scale.{name}{conv}", f"Scale.{name}{norm}", f"backbone.{name}{conv}", f"backbone.{name}{norm}")
    return keys | {f"Scale.layer5.conv2d_list.{i}.{p}": f"head.branches.{i}.{p}" for i in range(4) for p in ("weight", "bias")}


def torchvision_segmentation(keys: Iterable[str], mobilenet: bool) -> dict[str, str]:
    """torchvision's `backbone.*` and `classifier.*`; its MobileNetV3 counts layers without our `features`."""
    renamed = {}
    for key in keys:
        if key.startswith("classifier."):
            renamed[key] = "head." + key.removeprefix("classifier.")
        elif mobilenet and key.startswith("backbone."):
            renamed[key] = "backbone.features." + key.removeprefix("backbone.")
    return renamed


def caffe_resnet(depth: int) -> dict[str, str]:
    """Caffe layer -> our module, norms as `bn...`: `res4b22_branch2a` -> `backbone.layer3.22.conv1` and so on.

    Stages of three blocks count a, b, c; longer ones a, b1, b2, ... in ResNet-101 (ResNet-50 has letters throughout).
    """
    names = {"conv1": "backbone.conv1", "bn_conv1": "backbone.bn1"}
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        for block in range(blocks):
            numbered = depth == 101 and stage in (2, 3) and block > 0
            label = f"b{block}" if numbered else "abcdef"[block]
            for conv, norm, branch, _ in BRANCHES[: 4 if block == 0 else 3]:
                layer, ours = f"{stage + 1}{label}_branch{branch}", f"backbone.layer{stage}.{block}."
                names |= {f"res{layer}": ours + conv, f"bn{layer}": ours + norm}
    return names


VGG_CONVOLUTIONS = ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3")
VGG_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of torchvision's `features`


def caffe_vgg() -> dict[str, str]:
    """`conv1_1` -> `backbone.features.0`, and so on."""
    return {f"conv{c}": f"backbone.features.{i}" for c, i in zip(VGG_CONVOLUTIONS, VGG_INDICES, strict=True)}


def caffe_deconvnet() -> dict[str, str]:
    """DeconvNet's layers and norms (`DeconvNet_inference_deploy.prototxt`) -> our modules."""
    names = {"seg-score-voc": "head.score", "fc6-deconv": "head.fc6.0", "fc6-deconv-bn": "head.fc6.1"}
    for number in (6, 7):
        names |= {f"fc{number}": f"backbone.fc{number}.0", f"bnfc{number}": f"backbone.fc{number}.1"}
    for stage, count in enumerate((2, 2, 3, 3, 3), 1):
        for layer in range(1, count + 1):
            encoder, decoder = f"backbone.stages.{stage - 1}.{layer - 1}", f"head.stages.{5 - stage}.{layer - 1}"
            names |= {f"conv{stage}_{layer}": f"{encoder}.0", f"bn{stage}_{layer}": f"{encoder}.1"}
            names |= {f"deconv{stage}_{layer}": f"{decoder}.0", f"debn{stage}_{layer}": f"{decoder}.1"}
    return names

"""The published sizes of the published nets, and that every entry is built, named and counted."""

from __future__ import annotations

import itertools

import pytest
import torch

from deeplab.zoo import ARCHITECTURES, build
from deeplab.zoo.sizes import measure

# Millions of parameters: arXiv 1412.7062, Table 2; DeconvNet's about 252 M; FCN-32s is VGG-16's 134 M.
PUBLISHED = {
    "vgg16-7x7": 134.3, "vgg16-4x4": 65.1, "vgg16-4x4-hole8": 65.1, "vgg16-largefov": 20.5, "vgg16-v2-largefov": 20.5,
    "deconvnet": 251.8, "fcn32s": 134.3,
}  # fmt: skip


def count_by_hand(name: str) -> int:
    """Weights and biases from the layer tables' channel numbers alone."""
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    body = sum(9 * i * o + o for i, o in itertools.pairwise(channels))
    kernel, width = {"vgg16-7x7": (7, 4096), "fcn32s": (7, 4096), "vgg16-largefov": (3, 1024), "vgg16-v2-largefov": (3, 1024)}.get(
        name, (4, 4096)
    )
    return body + kernel * kernel * 512 * width + width + width * width + width + width * 21 + 21


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    with torch.device("meta"):
        network = build(name, 21)
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert parameters / 1e6 == pytest.approx(PUBLISHED[name], abs=0.06)
    if name != "deconvnet":
        assert parameters == count_by_hand(name)


@pytest.mark.parametrize(("name", "view"), [("vgg16-7x7", 224), ("vgg16-4x4", 128), ("vgg16-largefov", 224), ("fcn8s", 224)])
def test_fields_of_view_are_the_papers(name, view):
    assert ARCHITECTURES[name].field_of_view == view


def test_the_operations_of_largefov_are_those_of_its_table():
    """Two for each multiply-add, at 513: maps of 513, 257, 129 and 65 a side; fc6 3x3, fc7 and fc8 1x1."""
    maps = {64: 513**2, 128: 257**2, 256: 129**2, 512: 65**2}
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    adds = sum(9 * i * o * maps[o] for i, o in itertools.pairwise(channels))
    adds += 65**2 * (9 * 512 * 1024 + 1024 * 1024 + 1024 * 21)
    size = measure("vgg16-largefov")
    assert size.gflop == pytest.approx(2 * adds / 1e9, rel=1e-6)
    assert (size.stride, size.val, size.val_crf, size.test) == (8, 62.25, 67.64, 70.3)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_built_and_has_a_source(name):
    with torch.device("meta"), torch.no_grad():
        network = build(name, 2).eval()
        side = network.lattice_size(65)
        scores = network(torch.empty(1, 3, side, side))
    assert scores.shape == (1, 2, (side - 1) // network.stride + 1, (side - 1) // network.stride + 1)
    entry = ARCHITECTURES[name]
    assert entry.name == name
    assert entry.source
    assert network.backbone.layers()


def test_msc_and_attention_see_the_nearest_name():
    with pytest.raises(ValueError, match="nearest: vgg16-largefov-features;"):
        build("vgg16-largefov-feature", 2)
    with pytest.raises(ValueError, match="nearest: deconvnet;"):
        build("deconvnets", 2)

"""Named architectures, each with the paper it follows and its published figures.

The layers themselves are networks/.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import torch

from deeplab.networks.network import SegmentationNetwork
from deeplab.zoo import fcn_deconvnet_attention, mobilenet, resnet, vgg
from deeplab.zoo.architecture import Architecture

__all__ = ["ARCHITECTURES", "Architecture", "build"]

ARCHITECTURES = {
    entry.name: entry for entry in (*mobilenet.ENTRIES, *resnet.ENTRIES, *vgg.ENTRIES, *fcn_deconvnet_attention.ENTRIES)
}  # fmt: skip


def build(name: str, classes: int, *, seed: int | None = None, **options: Any) -> SegmentationNetwork:
    """A freshly initialised network by its zoo name; equal seeds give equal weights. `options`: of the architecture.

    ValueError for an unknown name, with the nearest one.
    """
    if name not in ARCHITECTURES:
        near = get_close_matches(name, ARCHITECTURES, n=1, cutoff=0.0)
        raise ValueError(f"unknown architecture {name!r}; nearest: {near[0]}; known: {', '.join(ARCHITECTURES)}")
    if seed is not None:
        torch.manual_seed(seed)
    return ARCHITECTURES[name].build(classes, **options)

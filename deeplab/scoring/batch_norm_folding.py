"""Folds every batch norm of a network into the convolution before it, for scoring only."""

from __future__ import annotations

import copy
from itertools import pairwise

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deeplab.networks.network import SegmentationNetwork


def folded(network: SegmentationNetwork) -> SegmentationNetwork:
    """A copy in evaluation mode with the same scores; `network` is not changed.

    A convolution (or deconvolution) and the batch norm that directly follows it among a module's children form a pair, as
    in every backbone and head here. An identity replaces the norm; `conv_norm` recognises it.
    """
    twin = copy.deepcopy(network).eval()
    for module in twin.modules():
        for (first, conv), (second, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(norm, _BatchNorm):
                fused = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
                setattr(module, first, fused)
                setattr(module, second, nn.Identity())
    return twin.requires_grad_(False)

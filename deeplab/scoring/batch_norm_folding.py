"""A network for scoring only: every batch norm gone into the convolution before it."""

from __future__ import annotations

import copy
from itertools import pairwise

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from deeplab.networks.network import SegmentationNetwork


def folded(network: SegmentationNetwork) -> SegmentationNetwork:
    """A copy in evaluation mode that gives the same scores; `network` stays as it is.

    A convolution (or deconvolution) and the batch norm that follows it among a module's children are one pair, as in
    every backbone and head here. The norm's place is taken by an identity, which `conv_norm` knows.
    """
    twin = copy.deepcopy(network).eval()
    for module in twin.modules():
        for (first, conv), (second, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(norm, _BatchNorm):
                fused = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
                setattr(module, first, fused)
                setattr(module, second, nn.Identity())
    return twin.requires_grad_(False)

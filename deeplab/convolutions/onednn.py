"""Convolutions through oneDNN for scoring on a CPU: what follows a convolution is done before its result is stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from deeplab.convolutions.dilated import few_outputs

# PyTorch's own names of what oneDNN does after a convolution, with its numbers.
ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
}
DTYPES = (torch.float32, torch.bfloat16)


def available(module: nn.Module) -> bool:
    """Whether the weights of `module` are where oneDNN can take them, and this PyTorch has its fused convolution."""
    weight = next(module.parameters(), None)
    if weight is None or weight.device.type != "cpu" or weight.dtype not in DTYPES:
        return False
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class FusedConv(nn.Module):
    """`activation(conv(x) + add)`, of which `add` and the activation may be missing; no gradients.

    PyTorch's compiler ends at the same calls; made directly they need no compilation, and take every size of image.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None = None) -> None:
        super().__init__()
        assert conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        self.geometry = conv.padding, conv.stride, conv.dilation, conv.groups
        # In PyTorch's order: oneDNN's own saves 0 to 5 % of a network, but it depends on the image's size, and with that of
        # another size a 1x1 convolution takes up to seven times as long.
        self.weight = conv.weight.detach()
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.activation = ("none", []) if activation is None else ACTIVATIONS[type(activation)]

    def forward(self, x: torch.Tensor, add: torch.Tensor | None = None, relu: bool = False) -> torch.Tensor:
        """B x D x H x W, channels innermost; `add`: a tensor of the result's shape. `relu`: where none came at construction."""
        convolution: Any = torch.ops.mkldnn._convolution_pointwise
        name, numbers = ACTIVATIONS[nn.ReLU] if relu else self.activation
        if add is None:
            return convolution(x, self.weight, self.bias, *self.geometry, name, numbers, "")
        after = None if name == "none" else name
        return convolution.binary(x, add, self.weight, self.bias, *self.geometry, "add", 1.0, after, numbers, "")


def fuse(network: nn.Module) -> None:
    """Replace every convolution of `network` by its fused form, with an activation that follows it among a module's children.

    Its batch norms must have been folded (`deeplab.scoring.batch_norm_folding`), and its parameters must have the dtype that they
    are to score in.
    """
    for module in list(network.modules()):
        children = list(module.named_children())
        for index, (name, conv) in enumerate(children):
            if not isinstance(conv, nn.Conv2d) or few_outputs(conv):
                continue
            following = next(((n, m) for n, m in children[index + 1 :] if not isinstance(m, nn.Identity)), None)
            activation = None
            if isinstance(module, nn.Sequential) and following is not None and type(following[1]) in ACTIVATIONS:
                activation = following[1]
                setattr(module, following[0], nn.Identity())
            setattr(module, name, FusedConv(conv, activation))

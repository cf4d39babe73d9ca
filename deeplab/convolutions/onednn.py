"""Convolutions through oneDNN for scoring on a CPU, fused with the addition and the activation that follow them."""

from __future__ import annotations

import torch
from torch import nn

from deeplab.convolutions.dilated import few_outputs

# PyTorch's names and arguments of the activations that oneDNN applies to a convolution's result.
ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
}
DTYPES = (torch.float32, torch.bfloat16)


def available(module: nn.Module) -> bool:
    """Whether oneDNN can use the weights of `module`, and this PyTorch has the fused convolution."""
    weight = next(module.parameters(), None)
    if weight is None or weight.device.type != "cpu" or weight.dtype not in DTYPES:
        return False
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class FusedConv(nn.Module):
    """`activation(conv(x) + add)`; the addition and the activation are optional. No gradients.

    PyTorch's compiler generates the same calls. Made directly, they need no compilation and accept every image size.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None = None) -> None:
        super().__init__()
        assert conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        self.geometry = conv.padding, conv.stride, conv.dilation, conv.groups
        # In PyTorch's layout. oneDNN's own saves 0 to 5 % of a network's time, but it depends on the image's size: with the
        # layout for another size a 1x1 convolution takes up to seven times as long.
        self.weight = conv.weight.detach()
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.activation = ("none", []) if activation is None else ACTIVATIONS[type(activation)]

    def forward(self, x: torch.Tensor, add: torch.Tensor | None = None, relu: bool = False) -> torch.Tensor:
        """x: B x D x H x W, channels innermost; `add`: of the result's shape; `relu` replaces the constructor's activation."""
        convolution = torch.ops.mkldnn._convolution_pointwise
        name, numbers = ACTIVATIONS[nn.ReLU] if relu else self.activation
        y: torch.Tensor
        if add is None:
            y = convolution(x, self.weight, self.bias, *self.geometry, name, numbers, "")
        else:
            after = None if name == "none" else name
            y = convolution.binary(x, add, self.weight, self.bias, *self.geometry, "add", 1.0, after, numbers, "")
        return y


def fuse(network: nn.Module) -> None:
    """Replace every convolution of `network` by its fused form, together with an activation that directly follows it.

    Batch norms must be folded already (`deeplab.scoring.batch_norm_folding`), and parameters must have the dtype for scoring.
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

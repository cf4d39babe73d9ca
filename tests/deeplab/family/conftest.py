"""Random weights that let every layer show, and the relative difference that counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    """Every weight by fan-in, every bias, statistic and affine term at random, evaluation mode."""

    def fill(network: nn.Module, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                if module.weight.requires_grad:
                    fan = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.weight[:, 0].numel()
                    nn.init.normal_(module.weight, 0, (2 / fan) ** 0.5)
                if module.bias is not None:
                    nn.init.normal_(module.bias, 0, 0.2)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.6, 1.2)
                nn.init.normal_(module.bias, 0, 0.2)
                nn.init.normal_(module.running_mean, 0, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        return network.eval()

    return fill


@pytest.fixture
def assert_close() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Same shape, and apart by at most 1e-4 of the reference's largest value; the reference says something at all."""

    def compare(ours: torch.Tensor, theirs: torch.Tensor) -> None:
        assert ours.shape == theirs.shape
        assert float(theirs.std()) > 0.01
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4

    return compare

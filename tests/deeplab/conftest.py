"""Small real things: encoded pictures, labelled folders, networks with random weights."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from deeplab.networks.deeplab_heads import ASPP
from deeplab.networks.network import TENSORFLOW, SegmentationNetwork
from tests.material import make_dataset, randomise


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Sums in one order, and no fight with the other processes of a test run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """(Pillow image, format, **options) -> the bytes of that file."""

    def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def photo(rng: np.random.Generator) -> Callable[[int, int], np.ndarray]:
    """(height, width) -> a smooth coloured picture, no two regions alike: H x W x 3 uint8."""

    def make(height: int, width: int) -> np.ndarray:
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))

    return make


class SmallBackbone(nn.Module):
    """Stride 8 through three strided convolutions; a score sees 15 pixels either side of its own."""

    output_stride = 8
    channels = 16

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 8), (8, 12), (12, 16)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)

    def layers(self) -> list[nn.Module]:
        return list(self.features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x)


@pytest.fixture
def small_network() -> Callable[..., SegmentationNetwork]:
    """A network of a few thousand random weights whose scores see at most 15 + 8 * max(rates) pixels around them."""

    def make(classes: int = 3, rates: tuple[int, ...] = (1, 2), seed: int = 0) -> SegmentationNetwork:
        torch.manual_seed(seed)
        network = SegmentationNetwork(SmallBackbone(), ASPP(SmallBackbone.channels, classes, rates), classes, TENSORFLOW)
        with torch.no_grad():
            for module in network.backbone.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
            for branch in network.head.branches:
                branch.weight.normal_(0, 0.3)
                branch.bias.normal_(0, 0.1)
        return network.eval()

    return make


@pytest.fixture
def labelled_folder(tmp_path: Path) -> Callable[..., Path]:
    """A data set folder of `count` pictures: dark ground (class 0) with a bright square (class 1), a 255 line between."""

    def make(count: int = 4, side: int = 41, classes: tuple[str, ...] = ("ground", "square"), name: str = "data") -> Path:
        return make_dataset(tmp_path / name, count, side, classes)

    return make


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    """Every weight by fan-in, every bias, statistic and affine term at random, evaluation mode."""
    return randomise


@pytest.fixture
def assert_close() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Same shape, and apart by at most 1e-4 of the reference's largest value; the reference says something at all."""

    def compare(ours: torch.Tensor, theirs: torch.Tensor) -> None:
        assert ours.shape == theirs.shape
        assert float(theirs.std()) > 0.01
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4

    return compare

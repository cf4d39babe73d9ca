"""Images and scores for the CRF tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.material import EXAMPLES


@pytest.fixture(autouse=True)
def one_torch_thread():
    """Small tensors gain nothing from more threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Four of the example photos, 188 x 250 x 3 uint8."""
    chosen = sorted((EXAMPLES / "images").glob("*.jpg"))[::4][:4]
    return [np.asarray(Image.open(file).convert("RGB").resize((250, 188), Image.Resampling.BICUBIC)) for file in chosen]


def painted(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image with regions, gradients and noise, H x W x 3 uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width, 2)
    image = np.stack([120 * x, 120 * y, 60 * (x + y)], -1)
    for _ in range(6):
        centre, radius = rng.random(2), 0.1 + 0.3 * rng.random()
        image[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] += rng.uniform(-60, 130, 3)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def smooth_scores(classes: int, height: int, width: int, seed: int = 0, amplitude: float = 3.0) -> np.ndarray:
    """Class scores that vary smoothly over about eight pixels, C x H x W float32."""
    rng = np.random.default_rng(seed)
    grid = rng.normal(0, amplitude, (classes, -(-height // 8) + 1, -(-width // 8) + 1))
    return np.ascontiguousarray(grid.repeat(8, 1).repeat(8, 2)[:, :height, :width], dtype=np.float32)

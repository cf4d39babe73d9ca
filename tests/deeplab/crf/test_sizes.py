"""Images of a million pixels and more: their lattice has as many vertices as an independent construction finds."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deeplab.crf import DenseCRF


@pytest.mark.parametrize("side", [900, 1030])  # keys and ids share 64 bits in the table; from some size on they no longer do
def test_no_vertex_is_met_twice(side: int, rng: np.random.Generator) -> None:
    image = np.array(Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((side, side)))
    scores = rng.normal(size=(2, -(-(side - 1) // 8) + 1, -(-(side - 1) // 8) + 1)).astype(np.float16)
    found = {}
    for backend in ("native", "torch"):
        crf = DenseCRF(iterations=1, backend=backend)
        crf.labels(image, scores=scores, stride=8)
        found[backend] = crf.stats["bilateral_vertices"]
    # Points on a border between cells may fall to either side.
    assert found["native"] == pytest.approx(found["torch"], rel=1e-3)

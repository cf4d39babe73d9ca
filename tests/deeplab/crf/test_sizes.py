"""Large lattices have as many vertices as an independent construction finds."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deeplab.crf import DenseCRF


# Keys and ids share 64 bits in the table; with small deviations and many vertices they no longer fit.
@pytest.mark.parametrize(("side", "deviation"), [(1030, 3.0), (300, 0.5)])
def test_no_vertex_is_met_twice(side: int, deviation: float, rng: np.random.Generator) -> None:
    image = np.array(Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((side, side)))
    scores = rng.normal(size=(2, -(-(side - 1) // 8) + 1, -(-(side - 1) // 8) + 1)).astype(np.float16)
    found = {}
    for backend in ("native", "torch"):
        crf = DenseCRF(iterations=1, bi_rgb_std=deviation, backend=backend)
        crf.labels(image, scores=scores, stride=8)
        found[backend] = crf.stats["bilateral_vertices"]
    # Points on a border between cells may fall to either side.
    assert found["native"] == pytest.approx(found["torch"], rel=1e-3)

"""The coarse-to-fine search of CRF parameters."""

from __future__ import annotations

import pytest

from deeplab.crf import PARAMETER_SETS
from deeplab.crf.search import coarse, search


@pytest.mark.parametrize(("grid", "size"), [("deeplab-v2", 4 * 8 * 4), ("deeplab-v1", 6 * 6 * 8)])
def test_the_papers_grids_change_the_bilateral_kernel_only(grid, size):
    candidates = coarse(grid)
    assert len(set(candidates)) == size
    fixed = {(c.pos_w, c.pos_xy_std, c.iterations, c.normalization) for c in candidates}
    assert fixed == {(3, 3, 10, "after")}
    assert PARAMETER_SETS["deeplab-v2"] in coarse("deeplab-v2")


def test_the_search_goes_from_coarse_to_fine_to_the_best():
    def measure(candidates):
        asked.append(len(candidates))
        return [-abs(c.bi_w - 4.4) - abs(c.bi_xy_std - 62) / 10 - abs(c.bi_rgb_std - 5.6) for c in candidates]

    asked = []
    found = search(measure, coarse(), rounds=0)
    assert (found.best.bi_w, found.best.bi_xy_std, found.best.bi_rgb_std) == (4, 60, 6)
    found = search(measure, coarse(), rounds=2)
    assert (found.best.bi_w, found.best.bi_xy_std, found.best.bi_rgb_std) == (4.5, 62.5, 5.5)
    assert found.figure == max(figure for _, figure in found.tried)
    assert asked == [128, 128, 26, 26]  # 27 neighbours less the one that is known


def test_ties_stay_with_the_first_and_nothing_leaves_the_domain():
    grid = [c for c in coarse() if c.bi_w == 3 and c.bi_rgb_std == 3]
    seen = []
    found = search(lambda candidates: [seen.append(c) or 0.0 for c in candidates], grid, rounds=4)
    assert found.best == grid[0]
    assert all(c.bi_w == 3 and c.bi_rgb_std == 3 for c in seen)  # one value on an axis: no step there

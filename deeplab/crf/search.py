"""The papers' search for CRF parameters: a coarse grid, then finer steps around the best of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from deeplab.crf.parameters import PARAMETER_SETS, CRFParameters

# w1, sigma_alpha and sigma_beta in MATLAB's first:step:last. w2 = 3 and sigma_gamma = 3 stay fixed in both papers.
GRIDS: dict[str, tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]] = {
    # DeepLab v2 (arXiv 1606.00915), section 4.1: w1 in 3:6, sigma_alpha in 30:10:100, sigma_beta in 3:6.
    "deeplab-v2": (tuple(range(3, 7)), tuple(range(30, 101, 10)), tuple(range(3, 7))),
    # DeepLab v1 (arXiv 1412.7062): w1 in 5:10, sigma_alpha in 50:10:100, sigma_beta in 3:10.
    "deeplab-v1": (tuple(range(5, 11)), tuple(range(50, 101, 10)), tuple(range(3, 11))),
}


@dataclass(frozen=True)
class BestParameters:
    """The best parameters and their figure; `tried`: every candidate in the order of the search, with its figure."""

    best: CRFParameters
    figure: float
    tried: list[tuple[CRFParameters, float]]


def coarse(grid: str = "deeplab-v2") -> list[CRFParameters]:
    """The candidates of one of GRIDS; all other parameters are those of the parameter set of the same name."""
    base = PARAMETER_SETS[grid]
    return [replace(base, bi_w=w, bi_xy_std=xy, bi_rgb_std=rgb) for w, xy, rgb in itertools.product(*GRIDS[grid])]


def search(
    measure: Callable[[Sequence[CRFParameters]], Sequence[float]], candidates: Sequence[CRFParameters], rounds: int = 2
) -> BestParameters:
    """Search for the parameters with the largest figure, which `measure` returns for each of its arguments.

    First come the `candidates`; then `rounds` times the neighbours of the best in all three axes, at half the step of the
    round before (coarse to fine). The papers do not publish their finer steps. Ties go to the earlier candidate.
    """
    axes = ("bi_w", "bi_xy_std", "bi_rgb_std")
    values = [sorted({float(getattr(candidate, axis)) for candidate in candidates}) for axis in axes]
    steps = [min((b - a for a, b in itertools.pairwise(axis)), default=0.0) for axis in values]
    figures: dict[CRFParameters, float] = {}
    untried = list(dict.fromkeys(candidates))
    for finer in range(rounds + 1):
        figures |= zip(untried, measure(untried), strict=True) if untried else []
        best = max(figures, key=lambda candidate: figures[candidate])
        if finer == rounds:
            break
        steps = [step / 2 for step in steps]
        around = [[float(getattr(best, axis)) + k * step for k in (-1, 0, 1)] for axis, step in zip(axes, steps, strict=True)]
        near = [replace(best, bi_w=w, bi_xy_std=xy, bi_rgb_std=rgb) for w, xy, rgb in itertools.product(*around) if xy > 0 < rgb]
        untried = [candidate for candidate in dict.fromkeys(near) if candidate not in figures and candidate.bi_w >= 0]
    return BestParameters(best, figures[best], list(figures.items()))

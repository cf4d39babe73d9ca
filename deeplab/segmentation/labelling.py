"""Scores to labels: interpolation to the image's size, and the dense CRF."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from deeplab.crf import DenseCRF, Refinement
from deeplab.placement import Placement
from deeplab.scoring.multiscale import winning_classes


def labelled(
    scores: np.ndarray,
    placement: Placement,
    size: tuple[int, int],
    pixels: np.ndarray | None,
    refinement: Refinement | None,
    engine: Callable[[Refinement], DenseCRF],
) -> tuple[np.ndarray, str | None]:
    """Upsample C x h x w scores, apply the dense CRF (only it needs the pixels) and take the winning class.

    placement: where the scores lie on the image of `size` (height, width). engine: the CRF of a refinement.
    Returns labels, height x width, and the CRF that computed them, in one line: None without one.
    """
    if refinement is None:
        return winning_classes(scores, *size, placement), None
    assert pixels is not None
    crf = engine(refinement)
    try:
        return crf.labels(pixels, scores, placement=placement), crf.short()
    except torch.OutOfMemoryError:  # a large image on a small GPU
        native = engine(replace(refinement, mode=crf.mode, backend="native"))
        return native.labels(pixels, scores, placement=placement), native.short()

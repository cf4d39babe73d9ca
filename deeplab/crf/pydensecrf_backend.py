"""pydensecrf as a backend of DenseCRF, for comparison."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from deeplab.crf.parameters import CRFParameters
from deeplab.errors import UserError


def pydensecrf_module() -> ModuleType:
    """pydensecrf.densecrf. ImportError that says how to install it if it is missing."""
    try:
        import pydensecrf.densecrf as module
    except ImportError as error:
        raise ImportError(
            "backend 'pydensecrf' needs the package pydensecrf2 (import name pydensecrf), which builds with cython<3 only: "
            "pip install --build-constraint build-constraints.txt 'deeplab-pipelines[pydensecrf]'"
        ) from error
    loaded: ModuleType = module
    return loaded


def require_pydensecrf() -> None:
    """UserError if the package is missing."""
    try:
        pydensecrf_module()
    except ImportError as error:
        raise UserError(str(error)) from error


def pydensecrf_marginals(image: np.ndarray, logits: np.ndarray, parameters: CRFParameters) -> np.ndarray:
    """Raw H x W x 3 uint8 image and logits C x H x W float32 -> marginals C x H x W float32.

    The unary energy is -log softmax(logits) as C-contiguous float32, because pydensecrf reads other layouts wrongly.
    """
    densecrf = pydensecrf_module()
    classes, height, width = logits.shape
    shifted = logits - logits.max(0)
    energy = np.log(np.exp(shifted).sum(0)) - shifted
    kinds = {
        "symmetric": densecrf.NORMALIZE_SYMMETRIC,
        "after": densecrf.NORMALIZE_AFTER,
        "before": densecrf.NORMALIZE_BEFORE,
        "none": densecrf.NO_NORMALIZATION,
    }
    normalization = kinds[parameters.normalization]
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(energy.reshape(classes, -1), dtype=np.float32))
    if parameters.pos_w:
        crf.addPairwiseGaussian(sxy=parameters.pos_xy, compat=parameters.pos_w, normalization=normalization)
    if parameters.bi_w:
        crf.addPairwiseBilateral(
            sxy=parameters.bi_xy,
            srgb=parameters.bi_rgb,
            rgbim=np.array(image, order="C"),  # a copy: pydensecrf accepts writable arrays only
            compat=parameters.bi_w,
            normalization=normalization,
        )
    return np.array(crf.inference(parameters.iterations), dtype=np.float32).reshape(classes, height, width)

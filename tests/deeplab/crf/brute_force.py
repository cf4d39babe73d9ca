"""The dense CRF by its definition: full N x N kernels in float64, no lattice (Krahenbuhl & Koltun 2011, equations 1-4)."""

from __future__ import annotations

import numpy as np

from deeplab.crf import CRFParameters


def softmax(values: np.ndarray) -> np.ndarray:
    e = np.exp(values - values.max(0))
    return e / e.sum(0)


def gaussian_kernel(features: np.ndarray) -> np.ndarray:
    """N x d features of unit deviation -> N x N, exp(-|f_i - f_j|^2 / 2)."""
    return np.exp(-((features[:, None] - features[None]) ** 2).sum(-1) / 2)


def normalised(kernel: np.ndarray, normalization: str) -> np.ndarray:
    ones = kernel.sum(1)
    if normalization == "symmetric":
        return kernel / np.sqrt(ones[:, None] * ones[None])
    if normalization == "after":
        return kernel / ones[:, None]
    return kernel / ones[None] if normalization == "before" else kernel


def mean_field(image: np.ndarray, scores: np.ndarray, parameters: CRFParameters) -> np.ndarray:
    """Marginals C x H x W float64."""
    classes, height, width = scores.shape
    y, x = np.mgrid[:height, :width]
    position = np.stack([x.ravel(), y.ravel()], 1).astype(float)
    colour = image.reshape(-1, 3).astype(float)
    smoothness = gaussian_kernel(position / np.array(parameters.pos_xy))
    appearance = gaussian_kernel(np.concatenate([position / np.array(parameters.bi_xy), colour / np.array(parameters.bi_rgb)], 1))
    kernel = parameters.pos_w * normalised(smoothness, parameters.normalization)
    kernel += parameters.bi_w * normalised(appearance, parameters.normalization)
    unary = scores.reshape(classes, -1).astype(float)
    marginals = softmax(unary)
    for _ in range(parameters.iterations):
        marginals = softmax(unary + marginals @ kernel.T)
    return marginals.reshape(scores.shape)

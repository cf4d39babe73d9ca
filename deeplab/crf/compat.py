"""pydensecrf's interface on our engine: change `import pydensecrf.densecrf as dcrf` to `from deeplab.crf import compat as dcrf`.

Offered: DenseCRF2D and DenseCRF (any features of 1 to 6 dimensions) with setUnaryEnergy, addPairwiseGaussian,
addPairwiseBilateral, addPairwiseEnergy, inference, startInference, stepInference and klDivergence; scalar, per-class
and matrix compatibilities; the kernel and normalisation constants; unary_from_softmax and unary_from_labels.
Results are numpy arrays, C x N float32.

Not offered: learning (gradients of the energy, LogisticUnary, setUnary with unary objects). Kernel types differ only in
what training learns, so CONST_KERNEL, DIAG_KERNEL and FULL_KERNEL filter alike here, as in pydensecrf before training.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike

from deeplab.crf.native import engine_module


class KernelType(IntEnum):
    """What pydensecrf's training learns about a kernel; the filter is the same for all."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(IntEnum):
    """Where values are divided by the kernel's response to ones: nowhere, before, after or around the filter."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = KernelType
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = NormalizationType


def unary_from_softmax(sm: np.ndarray, scale: float | None = None, clip: float | None = 1e-5) -> np.ndarray:
    """Probabilities C x ... -> unary energies C x N float32, -log p.

    scale (0 to 1): mix p with the uniform distribution: scale * p + (1 - scale) / C. clip: least p.
    """
    classes = sm.shape[0]
    if scale is not None:
        if not 0 < scale <= 1:
            raise ValueError(f"scale {scale!r}: a number above 0 and at most 1 is accepted")
        sm = scale * sm + (1 - scale) / classes
    if clip is not None:
        sm = np.clip(sm, clip, 1.0)
    return np.ascontiguousarray(-np.log(sm).reshape(classes, -1), dtype=np.float32)


def unary_from_labels(labels: np.ndarray, n_labels: int, gt_prob: float, zero_unsure: bool = True) -> np.ndarray:
    """Hard labels -> unary energies n_labels x N float32.

    gt_prob: probability of the given label; the other labels share the rest. zero_unsure: label 0 means "unknown" and
    labels 1 .. n_labels are the classes 0 .. n_labels - 1.
    """
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob {gt_prob!r}: a probability between 0 and 1 is accepted")
    flat = np.asarray(labels).reshape(-1).astype(np.int64)
    known = flat > 0 if zero_unsure else np.ones(len(flat), bool)
    target = flat - 1 if zero_unsure else flat
    if (target[known] < 0).any() or (target[known] >= n_labels).any():
        raise ValueError(f"labels outside the {n_labels} classes")
    energy = np.full((n_labels, len(flat)), -np.log((1.0 - gt_prob) / max(n_labels - 1, 1)), np.float32)
    energy[target[known], np.flatnonzero(known)] = -np.log(gt_prob)
    if zero_unsure:
        energy[:, ~known] = -np.log(1.0 / n_labels)
    return energy


class _Pairwise:
    """A kernel with its normalisation and label compatibility."""

    def __init__(self, features: np.ndarray, compat: ArrayLike, normalization: int, classes: int) -> None:
        self.filter = engine_module().Filter(np.ascontiguousarray(features.T, dtype=np.float32))
        self.compat = _compatibility(compat, classes)
        count = features.shape[1]
        ones = self._filtered(np.ones((1, count), np.float32))[0]
        self.before = self.after = np.ones(count, np.float32)
        kind = NormalizationType(normalization)
        if kind == NORMALIZE_SYMMETRIC:
            self.before = self.after = 1 / np.sqrt(ones + 1e-20)
        elif kind == NORMALIZE_BEFORE:
            self.before = 1 / (ones + 1e-20)
        elif kind == NORMALIZE_AFTER:
            self.after = 1 / (ones + 1e-20)

    def _filtered(self, values: np.ndarray) -> np.ndarray:
        out = np.empty_like(values)
        self.filter.apply(np.ascontiguousarray(values), out)
        return out

    def energy(self, marginals: np.ndarray) -> np.ndarray:
        """Expected pairwise energy of each class at each pixel, C x N."""
        response = self._filtered(marginals * self.before) * self.after
        if self.compat.ndim == 0:
            return -self.compat * response
        if self.compat.ndim == 1:
            return self.compat[:, None] * response
        return self.compat @ response


def _compatibility(compat: ArrayLike, classes: int) -> np.ndarray:
    """A number w: Potts, -w for equal labels. C numbers: the matrix's diagonal. C x C: made symmetric."""
    values = np.asarray(compat, dtype=np.float32)
    if not np.isfinite(values).all() or values.shape not in ((), (classes,), (classes, classes)):
        raise ValueError(f"compat of shape {values.shape}: a number, {classes} numbers or {classes} x {classes} are accepted")
    return (values + values.T) / 2 if values.ndim == 2 else values


class DenseCRF:
    """A dense CRF over N points with any features; pydensecrf's DenseCRF(nvar, nlabels)."""

    def __init__(self, nvar: int, nlabels: int) -> None:
        if nvar < 1 or nlabels < 1:
            raise ValueError(f"{nvar} variables, {nlabels} labels: at least one of each is accepted")
        self._count, self._classes = int(nvar), int(nlabels)
        self._unary: np.ndarray | None = None
        self._pairwise: list[_Pairwise] = []

    def setUnaryEnergy(self, u: np.ndarray) -> None:
        """Energies (negative log-probabilities), nlabels x N float32."""
        if not isinstance(u, np.ndarray) or u.shape != (self._classes, self._count):
            raise ValueError(f"unary energy of shape {getattr(u, 'shape', None)}: {self._classes} x {self._count} is accepted")
        if not np.issubdtype(u.dtype, np.floating) or not (np.abs(u) <= 1e30).all():
            raise ValueError("unary energy must be finite floats of magnitude at most 1e30")
        self._unary = np.ascontiguousarray(u, dtype=np.float32)

    def addPairwiseEnergy(
        self, features: np.ndarray, compat: ArrayLike = 3, kernel: int = DIAG_KERNEL, normalization: int = NORMALIZE_SYMMETRIC
    ) -> None:
        """Add a kernel over features d x N, divided by their deviations. compat: a weight (Potts), C or C x C numbers."""
        KernelType(kernel)
        if not isinstance(features, np.ndarray) or features.ndim != 2 or features.shape[1] != self._count:
            raise ValueError(f"features of shape {getattr(features, 'shape', None)}: d x {self._count} is accepted")
        if not 1 <= len(features) <= 6 or not np.isfinite(features).all():
            raise ValueError("features: 1 to 6 finite dimensions are accepted")
        self._pairwise.append(_Pairwise(features, compat, normalization, self._classes))

    def inference(self, niter: int) -> np.ndarray:
        """Marginals after `niter` mean-field iterations, nlabels x N float32."""
        q, tmp1, tmp2 = self.startInference()
        for _ in range(niter):
            self.stepInference(q, tmp1, tmp2)
        return q

    def startInference(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Marginals of the unaries alone, and two work arrays for stepInference."""
        q = _softmax(-self._energies())
        return q, np.empty_like(q), np.empty_like(q)

    def stepInference(self, Q: np.ndarray, tmp1: np.ndarray, tmp2: np.ndarray) -> None:
        """One mean-field iteration; Q is changed in place."""
        np.negative(self._energies(), out=tmp1)
        for pairwise in self._pairwise:
            tmp1 -= pairwise.energy(Q)
        Q[...] = _softmax(tmp1)

    def klDivergence(self, Q: np.ndarray) -> float:
        """KL(Q || P) up to the constant log Z, as pydensecrf sums it: every ordered pair of points once."""
        entropy = float((Q * np.log(np.maximum(Q, 1e-20))).sum(dtype=np.float64))
        expected = float((Q * self._energies()).sum(dtype=np.float64))
        return entropy + expected + sum(float((Q * p.energy(Q)).sum(dtype=np.float64)) for p in self._pairwise)

    def _energies(self) -> np.ndarray:
        if self._unary is None:
            raise ValueError("call setUnaryEnergy before inference")
        return self._unary


class DenseCRF2D(DenseCRF):
    """A dense CRF over the pixels of an image; pydensecrf's DenseCRF2D(width, height, nlabels)."""

    def __init__(self, w: int, h: int, nlabels: int) -> None:
        super().__init__(w * h, nlabels)
        self._width, self._height = int(w), int(h)

    def addPairwiseGaussian(
        self, sxy: ArrayLike, compat: ArrayLike = 3, kernel: int = DIAG_KERNEL, normalization: int = NORMALIZE_SYMMETRIC
    ) -> None:
        """Add the smoothness kernel over positions. sxy: deviation in pixels, one number or (x, y)."""
        self.addPairwiseEnergy(self._positions(sxy), compat, kernel, normalization)

    def addPairwiseBilateral(
        self,
        sxy: ArrayLike,
        srgb: ArrayLike,
        rgbim: np.ndarray,
        compat: ArrayLike = 3,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add the appearance kernel over positions and colours of rgbim, height x width x 3 uint8. srgb: one or three numbers."""
        if not isinstance(rgbim, np.ndarray) or rgbim.shape != (self._height, self._width, 3) or rgbim.dtype != np.uint8:
            shape, dtype = getattr(rgbim, "shape", None), getattr(rgbim, "dtype", None)
            raise ValueError(f"rgbim of shape {shape}, {dtype}: {self._height} x {self._width} x 3 uint8 is accepted")
        colours = rgbim.reshape(-1, 3).T.astype(np.float32) / _deviations(srgb, 3, "srgb")[:, None]
        self.addPairwiseEnergy(np.concatenate([self._positions(sxy), colours]), compat, kernel, normalization)

    def _positions(self, sxy: ArrayLike) -> np.ndarray:
        y, x = np.mgrid[: self._height, : self._width].astype(np.float32)
        positions: np.ndarray = np.stack([x.ravel(), y.ravel()]) / _deviations(sxy, 2, "sxy")[:, None]
        return positions


def _deviations(value: ArrayLike, axes: int, name: str) -> np.ndarray:
    values = np.asarray(value, dtype=np.float32)
    if values.shape not in ((), (axes,)) or not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"{name} {value!r}: a positive number or {axes} of them are accepted")
    return np.broadcast_to(values, (axes,))


def _softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(0))
    marginals: np.ndarray = exponentials / exponentials.sum(0)
    return marginals

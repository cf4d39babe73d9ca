"""What the engine refuses, and that refusing leaks nothing."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from deeplab.crf import PARAMETER_SETS, CRFParameters, DenseCRF, compat

IMAGE = np.zeros((8, 10, 3), np.uint8)
SCORES = np.zeros((3, 8, 10), np.float32)
BAD_SCORES = [
    (np.zeros((3, 8, 9), np.float32), "stride"),
    (np.zeros((8, 10), np.float32), "C x h x w"),
    (np.zeros((0, 8, 10), np.float32), "at least one class"),
    (np.zeros((3, 8, 10), np.int32), "float16, float32"),
    (np.zeros((3, 8, 10), complex), "float16, float32"),
    (np.full((3, 8, 10), np.nan, np.float32), "finite"),
    (np.full((3, 8, 10), np.inf, np.float16), "finite"),
    (np.full((3, 8, 10), 1e200), "finite"),
    ([[[0.0]]], "numpy array"),
]
BACKENDS = ["native", "torch"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("scores", "message"), BAD_SCORES)
def test_bad_scores_are_refused(scores, message, backend):
    with pytest.raises(ValueError, match=message):
        DenseCRF(backend=backend).labels(IMAGE, scores)


@pytest.mark.parametrize("mode", ["fast", "exact", "half"])
@pytest.mark.parametrize("stride", [None, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_score_anywhere_is_found(value, stride, mode):
    scores = np.zeros((3, 8, 10) if stride is None else (3, 4, 5), np.float32)
    for place in [(0, 0, 0), (2, -1, -1), (1, 3, 2)]:
        damaged = scores.copy()
        damaged[place] = value
        with pytest.raises(ValueError, match="finite"):
            DenseCRF(mode).labels(IMAGE, damaged, stride=stride)


@pytest.mark.parametrize("backend", BACKENDS)
def test_probabilities_must_be_probabilities(backend):
    crf = DenseCRF(backend=backend)
    with pytest.raises(ValueError, match="sum to one"):
        crf.labels(IMAGE, probabilities=np.full((3, 8, 10), 0.2, np.float32))
    with pytest.raises(ValueError, match="negative"):
        crf.labels(IMAGE, probabilities=np.stack([np.full((8, 10), v, np.float32) for v in (1.5, -0.5, 0)]))
    with pytest.raises(ValueError, match="not both"):
        crf.labels(IMAGE, SCORES, probabilities=SCORES)
    with pytest.raises(ValueError, match="either"):
        crf.labels(IMAGE)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (IMAGE.astype(np.float32), "uint8"),
        (IMAGE.astype(np.int8), "uint8"),
        (IMAGE[..., 0], "H x W x 3"),
        (np.zeros((8, 10, 4), np.uint8), "H x W x 3"),
        (np.zeros((0, 10, 3), np.uint8), "H x W x 3"),
        (np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (1, 70000, 3)), "65535"),
        ("photo.jpg", "numpy array"),
    ],
)
def test_bad_images_are_refused_and_never_cast(image, message):
    with pytest.raises(ValueError, match=message):
        DenseCRF().labels(image, SCORES)


@pytest.mark.parametrize(
    "parameters",
    [
        {"pos_xy_std": 0}, {"bi_xy_std": -1}, {"bi_rgb_std": float("nan")}, {"bi_rgb_std": (1, 2)}, {"pos_w": -1},
        {"bi_w": float("inf")}, {"iterations": -1}, {"iterations": 2.5}, {"iterations": True}, {"normalization": "both"},
        {"mode": "quick"}, {"backend": "cuda"}, {"threads": 0}, {"threads": 1000}, {"prune": 1}, {"prune": -0.1},
        {"freeze": -1}, {"block_lanes": 7}, {"pos_w": "3"},
    ],
)  # fmt: skip
def test_bad_parameters_are_refused(parameters):
    with pytest.raises(ValueError, match=r"accepted|channels"):
        DenseCRF(**parameters)


@pytest.mark.parametrize("backend", BACKENDS)
def test_deviations_too_small_for_the_key_range_are_refused(backend):
    image = np.random.default_rng(0).integers(0, 256, IMAGE.shape, dtype=np.uint8)
    with pytest.raises(ValueError, match="raise the deviations"):
        DenseCRF(bi_rgb_std=0.001, bi_xy_std=0.001, backend=backend).labels(image, SCORES)


@pytest.mark.parametrize("stride", [0, -8, 0.5, "8", 4096, True])
def test_bad_strides_are_refused(stride):
    with pytest.raises(ValueError, match="stride"):
        DenseCRF().labels(IMAGE, SCORES, stride=stride)
    with pytest.raises(ValueError, match="at stride 8"):
        DenseCRF().labels(IMAGE, np.zeros((3, 40, 2), np.float32), stride=8)


def test_the_compatible_face_refuses_bad_input():
    with pytest.raises(ValueError, match="at least one"):
        compat.DenseCRF2D(0, 5, 3)
    crf = compat.DenseCRF2D(10, 8, 3)
    with pytest.raises(ValueError, match="setUnaryEnergy"):
        crf.inference(1)
    with pytest.raises(ValueError, match="3 x 80"):
        crf.setUnaryEnergy(np.zeros((3, 79), np.float32))
    with pytest.raises(ValueError, match="finite"):
        crf.setUnaryEnergy(np.full((3, 80), np.nan, np.float32))
    with pytest.raises(ValueError, match="uint8"):
        crf.addPairwiseBilateral(sxy=3, srgb=3, rgbim=IMAGE.astype(np.float32))
    with pytest.raises(ValueError, match="positive"):
        crf.addPairwiseGaussian(sxy=0)
    with pytest.raises(ValueError, match="compat"):
        crf.addPairwiseGaussian(sxy=1, compat=np.zeros(4))
    with pytest.raises(ValueError, match="1 to 6"):
        crf.addPairwiseEnergy(np.zeros((7, 80), np.float32))


def test_named_sets_are_known_and_frozen():
    for name, parameters in PARAMETER_SETS.items():
        assert DenseCRF.named(name).parameters == parameters
    assert DenseCRF.named("kazuto", iterations=5).short() == "fast i5 pos3/1 bi4/67/3 sym"
    with pytest.raises(ValueError, match="kazuto"):
        DenseCRF.named("nobody")
    with pytest.raises(AttributeError):
        PARAMETER_SETS["kazuto"].pos_w = 1  # type: ignore[misc]
    assert CRFParameters(bi_rgb_std=(1, 2, 3)).short() == "i10 pos3/1 bi4/67/1x2x3 sym"


def test_repeated_errors_do_not_leak():
    bad = np.full((21, 200, 200), np.nan, np.float32)
    image = np.zeros((200, 200, 3), np.uint8)
    crf = DenseCRF()

    def fail(times):
        for _ in range(times):
            with pytest.raises(ValueError, match="finite"):
                crf.labels(image, bad)
            with pytest.raises(ValueError, match="raise the deviations"):
                DenseCRF(bi_rgb_std=0.001, bi_xy_std=0.001).labels(image, np.zeros_like(bad))

    fail(5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fail(60)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB; one leaked call would hold 3 MiB

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deeplab.training import learning_rate
from deeplab.training.losses import segmentation_loss


def brute_force(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over labelled pixels of log(sum exp s) - s[label], pixel by pixel in float64; scores at the labels' size."""
    terms = []
    for b, i, j in np.ndindex(labels.shape):
        if labels[b, i, j] != 255:
            values = scores[b, :, i, j].astype(np.float64)
            terms.append(math.log(sum(math.exp(v) for v in values)) - values[labels[b, i, j]])
    return sum(terms) / max(1, len(terms))


def ramp_up(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with aligned corners in float64 numpy, one axis after the other."""
    for axis, outputs in ((2, size[0]), (3, size[1])):
        inputs = scores.shape[axis]
        position = np.linspace(0, inputs - 1, outputs)
        scores = np.apply_along_axis(lambda line, p=position, n=inputs: np.interp(p, np.arange(n), line), axis, scores)
    return scores


@pytest.fixture
def batch(rng):
    scores = rng.normal(size=(2, 4, 5, 7))
    labels = rng.integers(0, 4, (2, 33, 49)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = 255
    return scores, labels


def test_the_loss_at_full_resolution_is_the_mean_over_labelled_pixels(batch):
    scores, labels = batch
    ours = segmentation_loss(torch.from_numpy(scores), torch.from_numpy(labels))
    assert float(ours) == pytest.approx(brute_force(ramp_up(scores, (33, 49)), labels), rel=1e-5)


def test_the_loss_at_the_stride_sees_every_eighth_label(batch):
    scores, labels = batch
    ours = segmentation_loss(torch.from_numpy(scores), torch.from_numpy(labels), resolution="stride")
    assert float(ours) == pytest.approx(brute_force(scores, labels[:, ::8, ::8]), rel=1e-5)


def test_labels_on_no_lattice_are_refused_at_the_stride():
    for size in ((40, 33), (33, 40), (3, 3), (32, 32)):
        with pytest.raises(ValueError, match="do not lie on"):
            segmentation_loss(torch.zeros(1, 2, 5, 5), torch.zeros(1, *size, dtype=torch.long), resolution="stride")


def test_a_single_score_is_compared_with_a_single_label():
    scores = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    loss = segmentation_loss(scores, torch.ones(1, 1, 1, dtype=torch.long), resolution="stride")
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)


def test_ignored_pixels_have_no_gradient(rng):
    scores = torch.from_numpy(rng.normal(size=(2, 3, 6, 6))).requires_grad_()
    labels = torch.from_numpy(rng.integers(0, 3, (2, 6, 6)))
    ignored = torch.from_numpy(rng.random((2, 6, 6)) < 0.5)
    labels[ignored] = 255
    segmentation_loss(scores, labels).backward()
    size = scores.grad.abs().sum(1)
    assert not size[ignored].any()
    assert (size[~ignored] > 0).all()


def test_pixels_count_alike_whichever_image_they_are_in(rng):
    """The mean is over the batch's labelled pixels, not a mean of per-image means."""
    scores = torch.from_numpy(rng.normal(size=(2, 3, 4, 4)))
    labels = torch.from_numpy(rng.integers(0, 3, (2, 4, 4)))
    labels[0, 1:] = 255
    ours = float(segmentation_loss(scores, labels))
    apart = [float(segmentation_loss(scores[i : i + 1], labels[i : i + 1])) for i in range(2)]
    assert ours == pytest.approx((4 * apart[0] + 16 * apart[1]) / 20, rel=1e-6)
    assert ours != pytest.approx(sum(apart) / 2, rel=1e-3)


def test_a_batch_without_labels_gives_nothing_to_learn():
    scores = torch.randn(1, 3, 5, 5, requires_grad=True)
    loss = segmentation_loss(scores, torch.full((1, 33, 33), 255))
    loss.backward()
    assert loss.item() == 0
    assert not scores.grad.any()


def test_poly_is_the_papers_curve():
    assert learning_rate.poly(0, 1000) == 1
    assert learning_rate.poly(1000, 1000) == learning_rate.poly(1001, 1000) == 0
    assert learning_rate.poly(500, 1000) == pytest.approx(0.5358867312681466)  # 0.5 ** 0.9
    assert learning_rate.poly(750, 1000, power=2) == pytest.approx(0.0625)


def test_staircase_drops_by_ten_every_two_thousand_steps():
    factors = [learning_rate.staircase(step, 2000) for step in (0, 1999, 2000, 3999, 4000)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_warmup_rises_in_equal_steps_and_ends():
    assert [learning_rate.warmup(step, 4) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    assert learning_rate.warmup(0, 0) == 1


def test_class_weights_multiply_the_loss_of_a_classes_pixels_and_not_the_divisor(batch):
    scores, labels = batch
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    parts = [np.where(labels == k, labels, 255) for k in range(4)]
    tensors = torch.from_numpy(scores), torch.from_numpy(labels)
    expected = (
        sum(
            float(weights[k]) * float(segmentation_loss(tensors[0], torch.from_numpy(part), normalize=False))
            for k, part in enumerate(parts)
        )
        / (labels != 255).sum()
    )
    assert float(segmentation_loss(*tensors, class_weights=weights)) == pytest.approx(float(expected), rel=1e-5)

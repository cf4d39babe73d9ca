from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from deeplab.networks.resampling import resample
from deeplab.placement import Placement
from deeplab.scoring.multiscale import multiscale_scores, upsample, winning_classes
from tests.examples import examples


@pytest.mark.parametrize(("inputs", "outputs"), [((5, 7), (33, 49)), ((41, 31), (321, 241)), ((33, 49), (5, 7))])
def test_resampling_between_lattices_is_interpolation_with_aligned_corners(inputs, outputs):
    maps = torch.randn(2, 3, *inputs)
    step = (inputs[0] - 1) / (outputs[0] - 1)
    expected = F.interpolate(maps, outputs, mode="bilinear", align_corners=True)
    torch.testing.assert_close(resample(maps, outputs, step), expected, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():  # another way towards fewer pixels
        torch.testing.assert_close(resample(maps, outputs, step), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_resampling_of_areas_is_interpolation_without_aligned_corners(factor):
    maps = torch.randn(2, 3, 5, 6)
    expected = F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resample(maps, (5 * factor, 6 * factor), 1 / factor, False), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=examples(60))
@given(height=st.integers(1, 60), width=st.integers(1, 60), scale=st.sampled_from([0.5, 0.75, 1.25, 1.5, 2.0]))
def test_a_ramp_stays_the_ramp_at_any_size(height, width, scale):
    """Output (i, j) reads (i / scale, j / scale), whatever the sides are: the value there is known in closed form."""
    ramp = torch.arange(height).view(-1, 1) * 3.0 + torch.arange(width) * 5.0 + 1.0
    size = int((height - 1) * scale) + 1, int((width - 1) * scale) + 1
    i, j = np.arange(size[0]) / scale, np.arange(size[1]) / scale
    expected = i[:, None] * 3 + j * 5 + 1
    for without_gradients in (False, True):
        with torch.inference_mode(without_gradients):
            np.testing.assert_allclose(resample(ramp[None, None], size, 1 / scale)[0, 0], expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=examples(40))
@given(height=st.integers(1, 50), width=st.integers(1, 50))
def test_pixel_8i_has_exactly_score_i(height, width):
    grid = -(-(height - 1) // 8) + 1, -(-(width - 1) // 8) + 1
    scores = np.random.default_rng(height * 64 + width).normal(size=(2, *grid)).astype(np.float16)
    full = upsample(scores, height, width, Placement.stepping(scores.shape[1:], 1 / 8))
    assert (full.shape, full.dtype) == ((2, height, width), np.float32)
    np.testing.assert_array_equal(full[:, ::8, ::8], scores[:, : (height - 1) // 8 + 1, : (width - 1) // 8 + 1])


def test_reading_beyond_the_last_score_repeats_it():
    np.testing.assert_allclose(upsample(np.array([[[1.0, 3.0]]]), 1, 12, Placement.stepping((1, 2), 1 / 8))[0, 0, 8:], 3.0)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("size", "stride"), [((530, 1030), 8), ((1, 700), 8), ((512, 513), 8), ((300, 40), 4)])
def test_the_winning_class_of_a_large_map_is_that_of_the_whole_upsampled_map(size, stride, align_corners):
    grid = tuple(-(-(side - 1) // stride) + 1 for side in size)
    scores = np.random.default_rng(0).normal(size=(4, *grid)).astype(np.float16)
    full = scores.astype(np.float64)
    for axis, side in ((1, size[0]), (2, size[1])):
        places = np.arange(side) / stride if align_corners else (np.arange(side) + 0.5) / stride - 0.5
        low = np.clip(np.floor(places), 0, full.shape[axis] - 1).astype(int)
        share = np.clip(places - low, 0, 1).reshape([-1 if a == axis else 1 for a in range(3)])
        upper = np.minimum(low + 1, full.shape[axis] - 1)
        full = np.take(full, low, axis) * (1 - share) + np.take(full, upper, axis) * share
    first, second = np.sort(full, 0)[:-3:-1]
    decided = first - second > 1e-4
    assert decided.mean() > 0.99
    labels = winning_classes(scores, *size, Placement.stepping(grid, 1 / stride, align_corners))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels[decided], full.argmax(0)[decided])


def test_the_winning_class_of_a_large_map_takes_little_memory():
    """40 classes at 1200 x 1200 would be 230 MB of upsampled scores."""
    script = (
        "import resource, torch, numpy as np; from deeplab.placement import Placement\n"
        "from deeplab.scoring.multiscale import winning_classes\n"
        "torch.set_num_threads(1)\n"
        "scores = np.ones((40, 151, 151), np.float16)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "winning_classes(scores, 1200, 1200, Placement.stepping((151, 151), 1 / 8))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200


@pytest.fixture
def lattice_images() -> torch.Tensor:
    torch.manual_seed(3)
    return F.interpolate(torch.randn(2, 3, 5, 6), (65, 81), mode="bicubic")


@torch.no_grad()
def scaled_pass(network, images, scale):
    """One scale by hand: the image, then the scores, through F.interpolate with aligned corners."""
    height, width = images.shape[-2:]
    inner = [int((side - 1) * scale) + 1 for side in (height, width)]
    assert all((side - 1) % 8 == 0 for side in inner)  # where both geometries coincide
    scores = network(F.interpolate(images, inner, mode="bilinear", align_corners=True))
    return F.interpolate(scores, ((height - 1) // 8 + 1, (width - 1) // 8 + 1), mode="bilinear", align_corners=True)


@torch.no_grad()
@pytest.mark.parametrize(("fusion", "combine"), [("max", lambda maps: maps.max(0)[0]), ("mean", lambda maps: maps.mean(0))])
def test_scales_are_fused_as_by_hand(small_network, lattice_images, fusion, combine):
    network, scales = small_network(), (0.5, 1.5, 1.0)
    by_hand = combine(torch.stack([scaled_pass(network, lattice_images, scale) for scale in scales]))
    torch.testing.assert_close(multiscale_scores(network, lattice_images, scales, False, fusion), by_hand, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_flipped_pass_is_averaged_before_the_scales_are_fused(small_network, lattice_images):
    network = small_network()
    passes = [
        (scaled_pass(network, lattice_images, scale) + scaled_pass(network, lattice_images.flip(-1), scale).flip(-1)) / 2
        for scale in (1.0, 0.5)
    ]
    ours = multiscale_scores(network, lattice_images, (1.0, 0.5), True, "max")
    torch.testing.assert_close(ours, torch.maximum(*passes), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_with_flip_the_mirror_image_has_the_mirrored_scores(small_network, lattice_images):
    network, images = small_network(), lattice_images[..., :65]  # 65 and 49 wide: no scale needs padding on one side
    straight, mirrored = (multiscale_scores(network, x, (1.0, 0.75), True, "max") for x in (images, images.flip(-1)))
    torch.testing.assert_close(mirrored.flip(-1), straight, rtol=1e-4, atol=1e-5)
    assert (multiscale_scores(network, images, (1.0, 0.75), False, "max") - straight).abs().max() > 0.1


@torch.no_grad()
def test_half_precision_of_the_network_does_not_coarsen_the_fusion(small_network, lattice_images):
    """Interpolation keeps float32 under autocast: else a lattice position is off by up to 1/256 of the picture."""
    network, ramp = small_network(), torch.arange(161.0).view(1, 1, 1, 161)
    with torch.autocast("cpu", torch.bfloat16):
        assert multiscale_scores(network, lattice_images, (0.5, 0.75), False, "max").dtype == torch.float32
        torch.testing.assert_close(resample(ramp, (1, 321), 0.5)[0, 0, 0], torch.arange(321) / 2)

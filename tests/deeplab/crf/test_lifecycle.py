"""Reuse, threads, pickling, builds and backends of one object."""

from __future__ import annotations

import copy
import importlib
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from deeplab.crf import CRFParameters, DenseCRF
from deeplab.crf.native import engine_module
from deeplab.crf.torch_lattice import mean_field
from tests.deeplab.crf.conftest import painted, smooth_scores

MODES = pytest.mark.parametrize("mode", ["fast", "exact", "half"])


@MODES
def test_an_object_gives_the_same_for_images_of_changing_sizes(mode):
    crf = DenseCRF(mode)
    for height, width, classes in [(40, 60, 5), (60, 40, 21), (40, 60, 30), (8, 8, 2), (41, 60, 5), (90, 90, 3), (40, 60, 5)]:
        image, scores = painted(height, width), smooth_scores(classes, height, width)
        np.testing.assert_array_equal(crf.marginals(image, scores), DenseCRF(mode).marginals(image, scores))
    crf.release()
    np.testing.assert_array_equal(crf.marginals(image, scores), DenseCRF(mode).marginals(image, scores))


@MODES
@pytest.mark.parametrize("classes", [3, 21, 60])
def test_the_number_of_threads_changes_nothing(mode, classes):
    image, scores = painted(90, 120), smooth_scores(classes, 90, 120)
    expected = DenseCRF(mode).marginals(image, scores)
    for threads in (2, 3):
        np.testing.assert_array_equal(DenseCRF(mode, threads=threads).marginals(image, scores), expected)


def test_calls_from_several_threads_take_turns():
    crf = DenseCRF()
    jobs = [(painted(50 + k, 70), smooth_scores(6, 50 + k, 70, k)) for k in range(8)]
    expected = [DenseCRF().labels(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(lambda job: crf.labels(*job), jobs), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_pickles_and_copies_as_its_parameters():
    crf = DenseCRF.named("deeplab-v1", "exact", threads=2)
    image, scores = painted(40, 50), smooth_scores(4, 40, 50)
    expected = crf.labels(image, scores)
    for other in (pickle.loads(pickle.dumps(crf)), copy.deepcopy(crf)):
        assert other.short() == crf.short() == "exact i10 pos3/3 bi5/50/10 after"
        assert other.parameters == crf.parameters
        np.testing.assert_array_equal(other.labels(image, scores), expected)


def test_stats_tell_what_was_done():
    crf = DenseCRF("fast")
    crf.labels(painted(60, 80), smooth_scores(21, 60, 80))
    stats = crf.stats
    assert stats["bilateral_vertices"] > 0
    assert stats["gaussian_vertices"] > 0
    assert 1 <= stats["classes_kept"] <= 21
    assert 0 < stats["active_fraction"] <= 1
    assert all(stats[f"{stage}_ms"] >= 0 for stage in ("unary", "lattice", "filter", "update", "output"))


@MODES
@pytest.mark.parametrize("classes", [2, 7, 13, 17, 21, 40])
def test_the_builds_for_the_instruction_sets_of_this_machine_agree(mode, classes):
    image, scores = painted(60, 80), smooth_scores(classes, 60, 80)
    portable = DenseCRF(mode, build="baseline").marginals(image, scores)
    for build in engine_module().builds:
        difference = np.abs(portable - DenseCRF(mode, build=build).marginals(image, scores))
        assert difference.mean() < (1e-6 if mode == "exact" else 1e-4)


def test_a_build_that_is_not_there_is_refused():
    assert engine_module().builds[-1] == "baseline"
    absent = {"avx512", "avx2", "sse9"} - set(engine_module().builds)
    for build in absent:
        with pytest.raises(ValueError, match="accepted"):
            engine_module().Engine(build)


def test_torch_backend_agrees_and_batches():
    images = np.stack([painted(40, 50, seed) for seed in range(3)])
    scores = np.stack([smooth_scores(7, 40, 50, seed) for seed in range(3)])
    expected = np.stack([DenseCRF("exact").marginals(i, s) for i, s in zip(images, scores, strict=True)])
    for deterministic in (False, True):
        found, vertices = mean_field(torch.from_numpy(images), torch.from_numpy(scores), CRFParameters(), deterministic)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)
        assert vertices["bilateral_vertices"] > vertices["gaussian_vertices"] // 100
    crf = DenseCRF(backend="torch")
    np.testing.assert_array_equal(crf.labels(images[0], scores[0]), expected[0].argmax(0))


def test_torch_backend_refuses_wrong_shapes():
    image, scores = torch.zeros(1, 4, 5, 3, dtype=torch.uint8), torch.zeros(1, 2, 4, 5)
    for bad in ((image.float(), scores), (image[0], scores), (image, scores[:, :, :3]), (image, scores[0])):
        with pytest.raises(ValueError, match="accepted"):
            mean_field(*bad, CRFParameters())


def test_a_missing_extension_is_explained_on_first_use(monkeypatch):
    real = importlib.import_module

    def missing(name, *rest):
        if name == "deeplab.crf._engine":
            raise ImportError("no such file")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    crf = DenseCRF()
    with pytest.raises(ImportError, match=r"pip install \."):
        crf.labels(painted(4, 5), smooth_scores(2, 4, 5))
    assert DenseCRF(backend="torch").labels(painted(4, 5), smooth_scores(2, 4, 5)).shape == (4, 5)


def test_a_missing_pydensecrf_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(ImportError, match="pydensecrf2"):
        DenseCRF(backend="pydensecrf").labels(painted(4, 5), smooth_scores(2, 4, 5))


def test_the_native_engine_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from deeplab.crf import DenseCRF\n"
        "print(DenseCRF().labels(np.zeros((9, 9, 3), np.uint8), np.ones((2, 9, 9), np.float32)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "(9, 9)", done.stderr


@pytest.mark.parametrize("classes", [2, 5, 13, 60])
def test_going_on_with_the_few_pixels_that_change_keeps_the_labels(classes):
    """Confident scores: soon less than an eighth of the pixels is active, and the lattices are cut down to theirs."""
    image, scores = painted(120, 160), smooth_scores(classes, 120, 160, amplitude=60.0)
    crf = DenseCRF("fast", prune=0)
    labels = crf.labels(image, scores)
    assert crf.stats["active_fraction"] < 0.18  # at an eighth from iteration 1 to 7 it would be 0.1875
    assert (labels == DenseCRF("exact").labels(image, scores)).mean() >= 0.999
    np.testing.assert_array_equal(DenseCRF("fast", prune=0, threads=2).labels(image, scores), labels)

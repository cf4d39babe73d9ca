"""Where a run with GPUs refines: what is measured, what follows from it, and what a GPU that is too small does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deeplab import checkpoint
from deeplab.classes import PETS
from deeplab.crf import DenseCRF, torch_lattice
from pipelines import refining
from pipelines.stages import Task, labelled
from tests.pipelines.conftest import make_model

SECONDS = {"decode": 0.002, "score": 0.01, "refine": 0.1, "encode": 0.001}  # of an image; the GPU scores 100 a second
CRF = {"mode": "fast", "backend": "native"}


@pytest.mark.parametrize(
    ("refine_device", "cores", "gpus", "there"),
    [
        (0.01, 4, 1, True),  # 48 images/s on the GPU, 39 on the cores
        (0.02, 4, 1, False),  # 32
        (0.01, 16, 1, False),  # the cores keep up with 100
        (0.01, 16, 4, True),  # 190 on four GPUs, 155 on the cores
        (10.0, 0.1, 1, False),
    ],
)
def test_gpus_refine_where_images_become_rows_faster(refine_device: float, cores: float, gpus: float, there: bool) -> None:
    assert refining.on_gpus(SECONDS, refine_device, cores, gpus) is there


def test_what_is_measured_is_of_this_model_and_both_engines(tmp_path: Path) -> None:
    source = checkpoint.read(str(make_model(tmp_path / "model")))
    predictor = {"scales": (1.0,), "flip": False, "precision": "float32", "tile": 1025}
    seconds, device = refining.measure(source, predictor, CRF, count=2, size=(48, 64))
    assert set(seconds) == {"decode", "score", "refine", "encode"} and min(seconds.values()) > 0
    assert device > 0


def test_a_gpu_without_the_memory_for_an_image_leaves_it_to_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (33, 41, 3), np.uint8)
    scores = random.normal(size=(3, 5, 6)).astype(np.float16)
    given: dict[str, Any] = {"classes": PETS, "stride": 8, "align_corners": True, "predictor": {}, "crf": CRF, "max_pixels": 1}
    task = Task(**given, run="run", threads=1, crf_on_scorer=True)
    there = labelled(task, (33, 41), pixels, scores)

    def full(*arguments: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch_lattice, "mean_field", full)
    exact = DenseCRF("exact").labels(pixels, scores, stride=8)
    assert np.array_equal(labelled(task, (33, 41), pixels, scores), exact)
    assert (there == exact).mean() > 0.999

"""What computes the CRF: the person says it, the row records it, and no measurement chooses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deeplab.classes import PETS
from deeplab.crf import DenseCRF, Refinement, torch_lattice
from deeplab.errors import UserError
from deeplab.placement import Geometry
from deeplab.scoring.settings import Scoring
from pipelines.options import SegmentOptions
from pipelines.segment.run import begin
from pipelines.segment.stages import Task, labelled


def task(**crf: Any) -> Task:
    settings: dict[str, Any] = {"stride": 8, "geometry": Geometry(), "scoring": Scoring(), "quality": "standard"}
    return Task(PETS, None, **settings, refinement=Refinement(**crf), max_pixels=1, run="run", threads=1)


@pytest.fixture
def image() -> tuple[np.ndarray, np.ndarray]:
    """Pixels and their scores at stride 8."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (33, 41, 3), np.uint8), random.normal(size=(3, 5, 6)).astype(np.float16)


def test_the_cores_refine_unless_a_person_says_otherwise() -> None:
    assert SegmentOptions(archive="a", results="r").crf_backend == "native"
    with pytest.raises(ValueError, match="'native', 'torch' or 'pydensecrf'"):
        SegmentOptions(archive="a", results="r", crf_backend="auto")  # type: ignore[arg-type]


def test_a_backend_that_is_not_installed_is_said_before_the_archive_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(UserError, match="needs the package pydensecrf2"):
        begin(SegmentOptions(archive="a", results="r", crf_backend="pydensecrf"))
    begin(SegmentOptions(archive="a", results="r", crf_backend="pydensecrf", crf=False))


@pytest.mark.parametrize(
    ("crf", "refined"),
    [
        ({}, "fast i10 pos3/1 bi4/67/3 sym"),
        ({"mode": "exact"}, "exact i10 pos3/1 bi4/67/3 sym"),
        ({"mode": "half"}, "half i10 pos3/1 bi4/67/3 sym"),
        ({"backend": "torch", "device": "auto", "deterministic": True}, "exact i10 pos3/1 bi4/67/3 sym torch"),
        ({"mode": "half", "backend": "torch"}, "half i10 pos3/1 bi4/67/3 sym torch"),
    ],
)
def test_a_row_records_what_refined_it(image: tuple[np.ndarray, np.ndarray], crf: dict[str, Any], refined: str) -> None:
    """Torch is exact in fast mode, too, and the row says that."""
    labels, by = labelled(task(**crf), (33, 41), *image)
    assert by == refined
    assert (labels == DenseCRF(refined.split()[0]).labels(*image, stride=8)).mean() > 0.999


def test_a_gpu_without_the_memory_for_an_image_leaves_it_to_the_cores_and_the_row_says_so(
    image: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch_lattice, "mean_field", full)
    for asked, mode in (("fast", "exact"), ("half", "half")):
        labels, by = labelled(task(backend="torch", mode=asked), (33, 41), *image)
        native = DenseCRF(mode)
        assert np.array_equal(labels, native.labels(*image, stride=8)) and by == native.short()

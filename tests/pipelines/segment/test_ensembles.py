"""EDeconvNet as a person uses it: made by a command, evaluated, and through the stages of an archive."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from deeplab import masks
from deeplab.crf import DenseCRF, Refinement
from deeplab.evaluation.predictions import predict
from deeplab.models import checkpoint
from deeplab.region_proposals import ProposalsUnavailable
from deeplab.scoring.model_predictor import predictor_of
from deeplab.scoring.settings import Scoring
from flows.cli import app
from pipelines.options import SegmentOptions, TuneOptions
from pipelines.segment import plan, stages
from pipelines.segment.run import begin, task_of
from pipelines.storage.model_registry import Registry
from pipelines.train.crf_search import tune
from tests.edeconvnet import composed
from tests.material import make_dataset, make_narrow, photo

CLASSES = ("ground", "square")
SCORING = Scoring(precision="float32", tile=193, overlap=64)
runner = CliRunner()


@pytest.fixture(scope="module")
def edeconvnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    deconvnet = make_narrow(folder / "deconvnet", "deconvnet", classes=CLASSES, proposals={"count": 3})
    fcn = make_narrow(folder / "fcn8s", "fcn8s", seed=1, classes=CLASSES)
    done = runner.invoke(app, ["ensemble", str(deconvnet), str(fcn), "-o", str(folder / "edeconvnet")])
    assert done.exit_code == 0, done.output
    assert "edeconvnet: mean of deconvnet@" in done.stdout and "2 classes" in done.stdout
    return folder / "edeconvnet"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, without the grain whose edges take long."""
    folder = make_dataset(tmp_path_factory.mktemp("data") / "squares", 2, 150, CLASSES)
    for path in (folder / "images").iterdir():
        Image.open(path).filter(ImageFilter.GaussianBlur(3)).save(path)
    return folder


def pixels_of(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


def test_evaluate_counts_what_the_parts_put_together_predict(edeconvnet: Path, data: Path) -> None:
    command = ["evaluate", str(edeconvnet), str(data), "--precision", "float32", "--device", "cpu", "--json"]
    figures = [json.loads(runner.invoke(app, command, catch_exceptions=False).stdout) for _ in range(2)]
    assert figures[0] == figures[1]
    confusion, unsure = np.zeros((2, 2), int), 0
    for path in sorted((data / "images").iterdir()):
        scores = composed(edeconvnet, pixels_of(path))
        labels = np.array(Image.open(data / "labels" / path.name))
        for true in range(2):
            confusion[true] += np.bincount(scores.argmax(0)[labels == true], minlength=2)
        unsure += int((abs(scores[0] - scores[1]) < 1e-5 * abs(scores).max()).sum())
    assert confusion.min() > 0 and unsure < 10
    assert abs(confusion - figures[0]["confusion"]).sum() <= 2 * unsure


def test_an_archive_has_the_same_masks_and_no_scores_leave_the_process(
    edeconvnet: Path, data: Path, tmp_path: Path, running_ray: None
) -> None:
    """On cores, and in the two stages of a run with GPUs; the last photo is larger than a tile."""
    import ray

    from pipelines.segment.poison import Register

    (tmp_path / "small.jpg").write_bytes(photo(1))
    Image.fromarray(np.tile(pixels_of(data / "images" / "picture_1.png"), (1, 2, 1))[:130]).save(tmp_path / "wide.png")
    paths = [data / "images" / "picture_0.png", tmp_path / "small.jpg", tmp_path / "wide.png"]
    block = pa.table(
        {"uri": [path.as_uri() for path in paths], "version": ["1"] * 3, "bytes": [path.stat().st_size for path in paths]}
    )
    model = checkpoint.load(edeconvnet)
    source, register = ray.put(checkpoint.read(edeconvnet)), ray.remote(num_cpus=0)(Register).remote()
    options = SegmentOptions(archive="a", results="r", model=str(edeconvnet), precision="float32", tile=193, overlap=64, crf=False)
    task = task_of(begin(options))
    rows = stages.whole(plan.packed(block), source, task, register).to_pylist()
    labels = [masks.decode_png(row["mask"]) for row in rows]
    for path, found in zip(paths[:2], labels, strict=False):
        scores = composed(edeconvnet, pixels_of(path))
        sure = abs(scores[0] - scores[1]) > 1e-5 * abs(scores).max()
        assert sure.mean() > 0.99 and np.array_equal(found[sure], scores.argmax(0)[sure])
    predictor = predictor_of(model, SCORING)
    assert np.array_equal(labels[2], predict(predictor, pixels_of(paths[2]))[0])
    assert all(0.5 <= row["confidence"] <= 1 and row["refined"] is None for row in rows)

    refining = replace(task, refinement=Refinement())
    scored = stages.Score(source, refining, register)(plan.packed(block))
    assert scored["scores"].null_count == scored["encoded"].null_count == 3 and scored["finished"].null_count == 0
    assert all("refine_gpu" in dict(seconds) or "large" in dict(seconds) for seconds in scored["seconds"].to_pylist())
    refined = stages.refine(scored, refining, register).to_pylist()
    crf = DenseCRF()
    for path, row in zip(paths, refined, strict=True):
        expected, _ = predict(predictor, pixels_of(path), crf)
        assert np.array_equal(masks.decode_png(row["mask"]), expected) and row["refined"] == crf.short()
    assert any(one["mask"] != other["mask"] for one, other in zip(rows, refined, strict=True))


def test_a_registry_takes_an_ensemble_whole(edeconvnet: Path, tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    published = checkpoint.parse(*registry.read(registry.publish(str(edeconvnet))))
    assert published.label == checkpoint.load(edeconvnet).label and len(published.members) == 2


def test_the_crf_search_keeps_the_scores_in_its_process(edeconvnet: Path, data: Path) -> None:
    with pytest.raises(checkpoint.ModelError, match=r"edeconvnet@.*stay in one process: leave out --workers and --address"):
        tune(TuneOptions(model=str(edeconvnet), dataset=str(data), workers=2))


def test_missing_opencv_is_said_before_the_archive_is_listed(edeconvnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ProposalsUnavailable, match=r"deeplab-pipelines\[proposals\]"):
        begin(SegmentOptions(archive="a", results="r", model=str(edeconvnet)))


def test_a_wrong_rule_or_one_model_is_wrong_usage(edeconvnet: Path, tmp_path: Path) -> None:
    refused = runner.invoke(app, ["ensemble", str(edeconvnet), "pets", "-o", str(tmp_path / "x"), "--rule", "sum"])
    assert refused.exit_code == 2 and "sum: mean or product is accepted" in refused.stderr
    assert runner.invoke(app, ["ensemble", "pets", "-o", str(tmp_path / "x")]).exit_code == 2

"""A model whose card says that images are scored at their own size: `segment`, large images and `evaluate` follow it."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deeplab.classes import PETS
from deeplab.images.decoding import header
from deeplab.masks import decode_png
from deeplab.models import checkpoint
from deeplab.placement import Placement
from deeplab.scoring.multiscale import winning_classes
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring
from deeplab.segmentation.large_images import opened
from deeplab.weights.foreign_networks import OWN_SIZE
from deeplab.zoo import build
from pipelines.options import EvaluateOptions, SegmentOptions
from pipelines.segment.large_images import segment_large
from pipelines.segment.run import begin, task_of
from pipelines.segment.stages import labelled
from pipelines.train.evaluation import evaluate
from tests.deeplab.scoring.test_geometry import assert_labels, kazuto_msc, on_image

SIZE = 150, 203
MSC = (0.5, 0.75, 1.0)
ROUNDING = 4e-3  # of scores to half precision


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VGG with few channels and random weights, whose card has kazuto's geometry."""
    folder = tmp_path_factory.mktemp("models") / "own-size"
    torch.manual_seed(4)
    network = build("vgg16-v2-largefov", 3, width=0.1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 4:
                torch.nn.init.kaiming_normal_(parameter)
        network.backbone.features[0].weight.div_(60)
    classes = [{"name": n, "colour": list(c)} for n, c in zip(PETS.names, PETS.colours, strict=True)]
    architecture = {"name": "vgg16-v2-largefov", "options": {"width": 0.1}}
    checkpoint.save(
        folder, network, {"name": "own", "architecture": architecture, "classes": classes, "geometry": asdict(OWN_SIZE)}
    )
    return folder


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    small = np.random.default_rng(2).integers(0, 256, (12, 16, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def theirs(model: Path, photo: np.ndarray) -> np.ndarray:
    """The scores of every pixel by kazuto's formula: C x H x W."""
    scores = on_image(kazuto_msc(checkpoint.load(model).network, photo), photo, OWN_SIZE)
    assert len(np.unique(scores.argmax(0))) > 1
    return scores


def test_segment_gives_the_labels_of_the_authors_code(model: Path, photo: np.ndarray, theirs: np.ndarray, tmp_path: Path) -> None:
    options = SegmentOptions(archive=".", results=str(tmp_path), model=str(model), scales=MSC, crf=False, precision="float32")
    run = begin(options)
    task = task_of(run)
    assert task.geometry == OWN_SIZE
    scores = Predictor(run.model.network, task.scoring, device="cpu").scores([photo])[0]
    assert_labels(labelled(task, SIZE, photo, scores)[0], theirs, ROUNDING)


def test_a_large_image_has_the_labels_of_the_whole(model: Path, photo: np.ndarray) -> None:
    network = checkpoint.load(model).network
    predictor = Predictor(network, Scoring(precision="float32", tile=129, overlap=64), device="cpu")
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG")

    def label(pixels: np.ndarray, scores: np.ndarray, placement: Placement) -> np.ndarray:
        assert (placement.rows.count, placement.columns.count) == scores.shape[1:]
        return winning_classes(scores, *pixels.shape[:2], placement)

    information = header(file.getvalue())
    assert information is not None
    with opened(file.getvalue(), information, predictor, 8) as rows:
        columns = segment_large(rows, predictor, label, 8, PETS)
    mask = decode_png(columns["mask"])
    np.testing.assert_array_equal(mask, predictor.labels([photo])[0])  # the same tiles, in windows


def test_evaluate_counts_the_labels_of_the_authors_code(model: Path, photo: np.ndarray, theirs: np.ndarray, tmp_path: Path) -> None:
    """A data set whose labels are theirs, 255 where half precision decides: the model is never wrong on it."""
    first, second = np.sort(theirs, 0)[:-3:-1]
    truth = np.where(first - second > ROUNDING, theirs.argmax(0), 255).astype(np.uint8)
    assert (truth != 255).mean() > 0.98
    for part, pixels in (("images", photo), ("labels", truth)):
        (tmp_path / part).mkdir()
        Image.fromarray(pixels).save(tmp_path / part / "one.png")
    (tmp_path / "classes.txt").write_text("\n".join(PETS.names) + "\n")
    (tmp_path / "val.txt").write_text("one\n")
    given = {"dataset": str(tmp_path), "device": "cpu", "precision": "float32"}
    assert evaluate(EvaluateOptions(model=str(model), scales=MSC, **given))["pixel_accuracy"] == 1
    assert evaluate(EvaluateOptions(model=str(model), scales=(1.0,), **given))["pixel_accuracy"] < 1

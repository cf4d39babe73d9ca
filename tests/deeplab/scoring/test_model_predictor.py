"""EDeconvNet from a model folder against its parts, put together here by their formulas."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from deeplab.crf import DenseCRF
from deeplab.evaluation.predictions import predict
from deeplab.models import checkpoint, ensemble
from deeplab.placement import Geometry, Placement
from deeplab.region_proposals import Proposals, chosen_boxes
from deeplab.scoring import speed
from deeplab.scoring.model_predictor import combined, predictor_of
from deeplab.scoring.multiscale import upsample
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring
from deeplab.weights.foreign_networks import OWN_SIZE
from tests.edeconvnet import composed
from tests.material import make_model, make_narrow

EXACT = Scoring(precision="float32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """EDeconvNet with either rule and paste: "mean" and "product"."""
    folder, made = tmp_path_factory.mktemp("models"), {}
    fcn = checkpoint.read(make_narrow(folder / "fcn8s", "fcn8s", seed=1))
    for rule, paste in (("mean", "max"), ("product", "mean")):
        deconvnet = checkpoint.read(make_narrow(folder / "deconvnet", "deconvnet", proposals={"count": 3, "paste": paste}))
        made[rule] = folder / rule
        ensemble.save(made[rule], "edeconvnet", [deconvnet, fcn], rule)
    return made


@pytest.fixture
def scene(photo) -> np.ndarray:
    image = photo(150, 190).copy()
    image[20:140, 40:170] = 255 - image[20:140, 40:170]
    return image


@pytest.mark.parametrize(("rule", "paste"), [("mean", "max"), ("product", "mean")])
def test_an_edeconvnet_is_its_parts_put_together(folders, rule, paste, scene, photo):
    folder = folders[rule]
    assert len(chosen_boxes(scene, Proposals(count=3))) > 1
    predictor = predictor_of(checkpoint.load(folder), EXACT, device="cpu")
    for image in (scene, photo(40, 60)):  # the second is smaller than any box
        expected = composed(folder, image, rule, paste)
        assert len({*np.unique(expected.argmax(0))}) > 1
        scores = predictor.scores([image])[0]
        np.testing.assert_allclose(scores, expected, atol=1e-5 * abs(expected).max())
        assert np.array_equal(scores, predictor_of(checkpoint.load(folder), EXACT, device="cpu").scores([image])[0])
        labels = predictor.labels([image])[0]
        top = np.sort(expected, axis=0)
        sure = top[-1] - top[-2] > 1e-4 * abs(expected).max()
        assert sure.mean() > 0.5 and np.array_equal(labels[sure], expected.argmax(0)[sure])


def test_a_member_at_another_stride_is_upsampled_to_the_image(tmp_path, scene):
    one, other = make_model(tmp_path / "one"), make_model(tmp_path / "other", seed=1)
    ensemble.save(tmp_path / "both", "both", [checkpoint.read(one), checkpoint.read(other)], "mean")
    predictor = predictor_of(checkpoint.load(tmp_path / "both"), EXACT, device="cpu")
    maps = []
    for folder in (one, other):
        scores = Predictor(checkpoint.load(folder).network, EXACT, device="cpu", score_dtype=torch.float32).scores([scene])[0]
        rows, columns = (np.zeros((n, scores.shape[axis])) for axis, n in ((1, 150), (2, 190)))
        for matrix in (rows, columns):
            for pixel in range(len(matrix)):
                low = pixel // 8
                matrix[pixel, low] += 1 - pixel % 8 / 8
                matrix[pixel, min(low + 1, matrix.shape[1] - 1)] += pixel % 8 / 8
        maps.append(rows @ scores @ columns.T)
    np.testing.assert_allclose(predictor.scores([scene])[0], sum(maps) / 2, atol=1e-4)


def test_a_member_is_upsampled_from_where_its_own_geometry_places_its_scores(tmp_path, scene):
    """In an ensemble's folder a member keeps its card's geometry, also at another stride and through a second ensemble."""
    one, other = make_model(tmp_path / "one"), make_model(tmp_path / "other", seed=1)
    checkpoint.note(other, geometry=asdict(OWN_SIZE))
    ensemble.save(tmp_path / "both", "both", [checkpoint.read(one), checkpoint.read(other)], "mean")
    ensemble.save(tmp_path / "three", "three", [checkpoint.read(tmp_path / "both"), checkpoint.read(one)], "mean")
    both = checkpoint.load(tmp_path / "both")
    own = both.at_stride(16).members[1]
    assert own.network.geometry == checkpoint.load(tmp_path / "three").members[0].members[1].network.geometry == OWN_SIZE
    assert both.geometry == both.members[0].network.geometry == Geometry()
    scores = [Predictor(m.network, EXACT, device="cpu", score_dtype=torch.float32).scores([scene])[0] for m in both.members]
    ours = upsample(scores[0], 150, 190, Placement.stepping(scores[0].shape[1:], 1 / 8))
    theirs = F.interpolate(torch.from_numpy(scores[1])[None], (150, 190), mode="bilinear", align_corners=False)[0].numpy()
    np.testing.assert_allclose(predictor_of(both, EXACT, device="cpu").scores([scene])[0], (ours + theirs) / 2, atol=1e-4)


def test_a_large_image_is_labelled_in_windows_with_a_margin(folders, photo):
    """Of 193 pixels a side at most, each scored as an image of its own, with half of the tiles' overlap on each side."""
    image, scoring = photo(120, 320), Scoring(precision="float32", tile=193, overlap=64)
    model = checkpoint.load(folders["mean"])
    predictor = predictor_of(model, scoring, device="cpu")
    assert predictor.in_windows(120, 320) and not predictor.in_windows(193, 193)
    bands = []
    for left, right in ((0, 106), (106, 213), (213, 320)):  # 193 less two margins of 32 leaves 129, so three windows
        before = max(0, left - 32)
        bands.append(predictor.labels([image[:, before : right + 32]])[0][:, left - before : right - before])
    expected = np.concatenate(bands, axis=1)
    plain, unrefined = predict(predictor, image)
    assert unrefined is None and np.array_equal(plain, expected)
    parts: list[np.ndarray] = []
    labels = np.concatenate(list(predictor.label_bands(image, lambda pixels, scores, placement: scores.argmax(0), 0, parts.append)))
    assert np.array_equal(labels, expected)
    assert sum(part[0].size for part in parts) == 120 * 320
    refined, before = predict(predictor, image, DenseCRF.named("deconvnet"))
    assert before is not None and before.shape == refined.shape == (120, 320) and not np.array_equal(refined, before)


def test_an_fcn_alone_is_labelled_in_windows_too(tmp_path, photo):
    model = checkpoint.load(make_narrow(tmp_path / "fcn8s", "fcn8s"))
    predictor = predictor_of(model, Scoring(tile=193, overlap=128), device="cpu")
    image = photo(150, 400)
    labels = np.concatenate(
        list(predictor.label_bands(image, lambda pixels, scores, placement: predictor.labels_of(scores, *pixels.shape[:2]), 0))
    )
    whole = predictor_of(model, device="cpu").labels([image])[0]
    assert labels.shape == whole.shape and (labels == whole).mean() > 0.95


def test_every_stage_of_an_ensemble_is_measured_in_windows_too(folders, monkeypatch):
    monkeypatch.setattr(speed, "peak_of", lambda device, dtype: 1e12)  # seconds of a matrix product
    model = checkpoint.load(folders["mean"])
    photos = speed.pictures(1, 120, 140) + speed.pictures(1, 100, 400)
    crf = DenseCRF.named("deconvnet")
    found = speed.measure(model, photos, device="cpu", rounds=1, crf=crf, scoring=Scoring(tile=193))
    assert all(value > 0 for value in found.seconds.values())
    deconvnet, fcn = (member.network for member in model.members)
    whole = [speed.flops_of(fcn, *size, (1.0,), False) for size in ((120, 140), (100, 400))]
    assert found.flops == pytest.approx(3 * speed.flops_of(deconvnet, 224, 224, (1.0,), False) + sum(whole) / 2)


def test_rules_are_the_papers_mean_and_the_demos_product():
    one, other, third = np.array([[[2.0, -1.0]]]), np.array([[[-4.0, 3.0]]]), np.array([[[5.0, 1.0]]])
    np.testing.assert_array_equal(combined([one, other], "mean"), [[[-1, 1]]])
    np.testing.assert_array_equal(combined([one, other, third], "mean"), [[[1, 1]]])
    np.testing.assert_array_equal(combined([one, other], "product"), [[[0, -3]]])
    np.testing.assert_array_equal(combined([other, one, third], "product"), [[[-40, 0]]])
    with pytest.raises(ValueError, match="one shape"):
        combined([one, other[..., :1]], "mean")

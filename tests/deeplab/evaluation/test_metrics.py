from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deeplab.evaluation.metrics import Confusion, trimap_band
from tests.examples import examples


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> Confusion:
    result = Confusion.empty(classes)
    result.add(labels, predicted)
    return result


def by_loops(labels: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, object]:
    """The definitions, one pixel and one class at a time."""
    pixels = [(int(t), int(p)) for t, p in zip(labels.ravel(), predicted.ravel(), strict=True) if t != 255]
    iou, recall, weighted = {}, [], 0.0
    for c in range(classes):
        both = sum(t == c and p == c for t, p in pixels)
        either = sum(t == c or p == c for t, p in pixels)
        true = sum(t == c for t, _ in pixels)
        iou[c] = both / either if either else math.nan
        if true:
            recall.append(both / true)
            weighted += true / len(pixels) * iou[c]
    present = [value for value in iou.values() if not math.isnan(value)]
    return {
        "iou": iou,
        "mean_iou": sum(present) / len(present) if present else math.nan,
        "pixel_accuracy": sum(t == p for t, p in pixels) / len(pixels) if pixels else math.nan,
        "mean_accuracy": sum(recall) / len(recall) if recall else math.nan,
        "frequency_weighted_iou": weighted if pixels else math.nan,
    }


def assert_equal(ours: Confusion, expected: dict[str, object]) -> None:
    for name in ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"):
        assert getattr(ours, name)() == pytest.approx(expected[name], nan_ok=True), name
    assert list(ours.iou()) == pytest.approx(list(expected["iou"].values()), nan_ok=True)  # type: ignore[attr-defined]


LABELS = arrays(np.uint8, (5, 6), elements=st.sampled_from([0, 1, 2, 3, 255]))


@settings(max_examples=examples(80))
@given(labels=LABELS, predicted=arrays(np.uint8, (5, 6), elements=st.sampled_from([0, 1, 2, 3, 4, 200, 255])))
def test_all_figures_are_those_of_the_definitions(labels, predicted):
    """Predictions of 4, 200 and 255 are no class of four: such a pixel is wrong and in no class's prediction."""
    assert_equal(confusion(labels, predicted, 4), by_loops(labels, predicted, 4))


@settings(max_examples=examples(30))
@given(pairs=st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=4))
def test_merged_matrices_are_the_matrix_of_all_pixels(pairs):
    total, one = Confusion.empty(4), Confusion.empty(4)
    for labels, predicted in pairs:
        total = total + confusion(labels, predicted, 4)
        one.add(labels, predicted)
    np.testing.assert_array_equal(total.counts, one.counts)
    np.testing.assert_array_equal(total.missed, one.missed)
    everything = [np.concatenate(arrays_) for arrays_ in zip(*pairs, strict=True)]
    assert_equal(total, by_loops(*everything, 4))


def test_the_data_set_score_is_not_the_mean_of_image_scores():
    large = (np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8))
    small = (np.zeros((1, 2), np.uint8), np.ones((1, 2), np.uint8))
    both = confusion(*large, 2) + confusion(*small, 2)
    assert both.iou()[0] == pytest.approx(100 / 102)
    assert both.mean_iou() == pytest.approx((100 / 102 + 0) / 2)


def test_negative_and_outside_predictions_are_wrong_and_in_no_column():
    labels = np.array([[0, 1, 1, 2]])
    ours = confusion(labels, np.array([[-1, 1, 7, -3]]), 3)
    np.testing.assert_array_equal(ours.counts, [[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(ours.missed, [1, 1, 1])
    assert ours.pixel_accuracy() == 0.25
    assert ours.iou()[1] == 0.5


@pytest.mark.parametrize("value", [3, 254, -1])
def test_a_label_that_is_no_class_is_refused(value):
    with pytest.raises(ValueError, match=str(value)):
        confusion(np.array([[0, value]]), np.array([[0, 0]]), 3)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        confusion(np.zeros((2, 3)), np.zeros((3, 2)), 2)


def test_no_labelled_pixel_gives_no_score_and_plain_json():
    empty = confusion(np.full((3, 3), 255), np.zeros((3, 3), int), 2)
    assert math.isnan(empty.mean_iou())
    assert math.isnan(empty.pixel_accuracy())
    assert empty.summary(["a", "b"])["pixels"] == 0
    assert empty.summary(["a", "b"])["iou"] == {"a": None, "b": None}


def test_a_summary_is_json_with_the_classes_by_name():
    labels = np.array([[0, 0, 1, 255]])
    summary = confusion(labels, np.array([[0, 1, 1, 0]]), 3).summary(["ground", "cat", "dog"])
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["iou"] == {"ground": 0.5, "cat": 0.5, "dog": None}
    assert summary["mean_iou"] == 0.5
    assert summary["pixels"] == 3


@settings(max_examples=examples(40))
@given(void=arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 11))), width=st.integers(1, 12))
def test_a_trimap_band_is_what_lies_within_chebyshev_distance_of_void(void, width):
    labels = np.where(void, 255, 1).astype(np.uint8)
    expected = np.zeros(void.shape, bool)
    places = np.argwhere(void)
    for i, j in np.ndindex(void.shape):
        if not void[i, j] and len(places):
            expected[i, j] = np.abs(places - (i, j)).max(1).min() <= width
    np.testing.assert_array_equal(trimap_band(labels, width), expected)


def test_a_band_of_no_width_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        trimap_band(np.zeros((3, 3)), 0)


def test_only_the_pixels_asked_for_are_counted():
    labels = np.array([[0, 255, 1, 1, 1]], np.uint8)
    result = Confusion.empty(2)
    result.add(labels, np.array([[1, 0, 1, 0, 0]]), trimap_band(labels, 1))
    np.testing.assert_array_equal(result.counts, [[0, 1], [0, 1]])

"""Pictures of an evaluation: where the lines and the cells are."""

from __future__ import annotations

import numpy as np
import pytest

from deeplab.evaluation import plots


def pixels_of(picture, colour):
    return np.argwhere((np.asarray(picture) == colour).all(-1))


def test_the_trimap_curve_draws_a_line_per_name_that_rises_with_its_figures():
    curves = {"before": {1: 0.5, 10: 0.6, 40: None}, "after": {1: 0.7, 10: 0.9}}
    picture = plots.trimap_curve(curves, "pets on val")
    for colour in plots.LINES[:2]:
        dots = pixels_of(picture, colour)
        line = dots[dots[:, 1] < plots.WIDTH - 220]  # the rest may be the legend
        left, right = line[line[:, 1].argmin()], line[line[:, 1].argmax()]
        assert left[0] > right[0]  # rows count downwards
    lower, upper = (pixels_of(picture, colour)[:, 0].min() for colour in plots.LINES[:2])
    assert upper < lower
    with pytest.raises(ValueError, match="no trimap"):
        plots.trimap_curve({"": {1: None}}, "nothing near")


@pytest.mark.parametrize("classes", [2, 21, 171])
def test_the_confusion_matrix_shades_the_diagonal_and_the_confusions(classes):
    counts = np.eye(classes, dtype=np.int64) * 100
    counts[0, 1] = 300  # three quarters of class 0 go to class 1
    counts[1, 1] = 0  # a class that never occurs
    picture = plots.confusion_matrix(counts, [f"class {index}" for index in range(classes)], "x on val")
    full = pixels_of(picture, plots.LINES[0])
    assert len(full) if classes > 2 else True  # every other class is whole: the full colour
    wrong = tuple(round(255 + (value - 255) * 0.75**0.5) for value in plots.LINES[1])
    assert len(pixels_of(picture, wrong))
    assert picture.width >= classes * 4


def test_the_course_of_a_training_draws_higher_values_higher():
    picture = plots.training_curves([{"step": s, "loss": 1.0, "mean_iou": s / 100} for s in (10, 20, 30)])
    dots = pixels_of(picture, plots.LINES[0])
    left, right = dots[dots[:, 1].argmin()], dots[dots[:, 1].argmax()]
    assert right[0] < left[0]  # rows count downwards

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from deeplab.crf import DenseCRF
from deeplab.data.datasets import LabelledFolder
from deeplab.evaluation.metrics import Confusion
from deeplab.evaluation.predictions import evaluate
from deeplab.scoring.predictor import Predictor


def test_an_outside_network_scores_what_was_measured_outside(shared):
    """shared/reference: VOC ids 0, 8, 12 are ours, any other id is an error; 0.9298 on the stored test split."""
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="no TensorFlow Lite: pip install ai-edge-litert")
    net = litert.Interpreter(model_path=str(shared / "reference" / "deeplabv3_mnv2_pascal_quant.tflite"), num_threads=2)
    net.allocate_tensors()
    source, target = net.get_input_details()[0]["index"], net.get_output_details()[0]["index"]
    ours = np.full(256, 254, np.uint8)  # in no column of three classes
    ours[[0, 8, 12]] = 0, 1, 2
    total = Confusion.empty(3)
    for image, labels in LabelledFolder(shared / "data" / "pets", "test"):
        picture = Image.fromarray(image)
        net.set_tensor(source, np.asarray(picture.resize((513, 513), Image.Resampling.BILINEAR))[None])
        net.invoke()
        ids = Image.fromarray(net.get_tensor(target)[0].astype(np.uint8)).resize(picture.size, Image.Resampling.NEAREST)
        total.add(labels, ours[np.asarray(ids)])
    assert round(total.mean_iou(), 4) == 0.9298
    assert [round(value, 4) for value in total.iou()] == [0.9446, 0.9299, 0.9150]
    assert round(total.pixel_accuracy(), 4) == 0.9602


@pytest.fixture
def data(labelled_folder):
    return LabelledFolder(labelled_folder(3), "train")


def test_an_evaluation_counts_every_labelled_pixel_of_every_picture(small_network, data):
    predictor = Predictor(small_network(classes=2), device="cpu")
    told: list[tuple[int, int]] = []
    result = evaluate(predictor, data, report=lambda done, total: told.append((done, total)))
    expected = np.zeros((2, 2), int)
    for image, labels in data:
        for truth, guess in zip(labels.ravel(), predictor.labels([image])[0].ravel(), strict=True):
            if truth != 255:
                expected[truth, guess] += 1
    np.testing.assert_array_equal(result.total.counts, expected)
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert result.bands == {}


def test_trimap_bands_count_the_pixels_near_void_only(small_network, data):
    result = evaluate(Predictor(small_network(classes=2), device="cpu"), data, trimap=(1, 50))
    near = sum(int((np.abs(np.diff((labels == 255).astype(int), axis=0)) > 0).sum()) for _, labels in data)
    assert near <= result.bands[1].counts.sum() < result.total.counts.sum()
    np.testing.assert_array_equal(result.bands[50].counts, result.total.counts)  # 50 pixels reach everywhere in 41


def test_parts_of_an_evaluation_add_up(small_network, labelled_folder):
    root = labelled_folder(4)
    stems = (root / "train.txt").read_text().split()
    for name, some in (("first", stems[:1]), ("rest", stems[1:])):
        (root / f"{name}.txt").write_text("\n".join(some))
    predictor = Predictor(small_network(classes=2), device="cpu")
    whole, first, rest = (evaluate(predictor, LabelledFolder(root, split), trimap=(3,)) for split in ("train", "first", "rest"))
    np.testing.assert_array_equal((first + rest).total.counts, whole.total.counts)
    np.testing.assert_array_equal((first + rest).bands[3].counts, whole.bands[3].counts)


def test_a_refiner_is_given_the_photo_and_its_scores(small_network, data):
    """A CRF whose pairwise terms weigh nothing leaves the scores' labels; one with weights does not."""
    predictor = Predictor(small_network(classes=2), device="cpu")
    plain = evaluate(predictor, data).total.counts
    weightless = evaluate(predictor, data, crf=DenseCRF(pos_w=0.0, bi_w=0.0)).total.counts
    assert np.abs(weightless - plain).sum() <= 0.002 * plain.sum()
    refined = evaluate(predictor, data, crf=DenseCRF()).total.counts
    assert np.abs(refined - plain).sum() > 0.002 * plain.sum()

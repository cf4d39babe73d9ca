"""The bundled model `voc` against the network that it was made of.

    pip install ai-edge-litert
    python benchmarks/tflite.py deeplabv3_mnv2_pascal_quant.tflite DATASET [--photos 50]

DATASET is the pets data set (docs/models.md), split `test`. First the labels of both at 513 x 513, into which each photo is
squeezed, as the file wants it: ours in float32, theirs in 8 bits by TFLite's interpreter. Then the mIoU of `voc` alone, at each
photo's own size, over all photos: cat and dog are classes 8 and 12 there, and any class but these and the background is an error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from measure import machine
from PIL import Image

from deeplab.crf import DenseCRF
from deeplab.models import checkpoint
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring

SIDE = 513
PETS = {0: 0, 8: 1, 12: 2}  # VOC's class -> the data set's
VOID = 255


def photos(dataset: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    names = (dataset / "test.txt").read_text().split()
    images = (next((dataset / "images").glob(f"{name}.*")) for name in names)
    labels = (dataset / "labels" / f"{name}.png" for name in names)
    return [(np.array(Image.open(i).convert("RGB")), np.array(Image.open(j))) for i, j in zip(images, labels, strict=True)]


def agreement(file: Path, predictor: Predictor, images: list[np.ndarray]) -> list[float]:
    """Share of the pixels that have the same label, by photo."""
    from ai_edge_litert.interpreter import Interpreter

    net = Interpreter(model_path=str(file), num_threads=1)
    net.allocate_tensors()
    source, target = net.get_input_details()[0]["index"], net.get_output_details()[0]["index"]
    shares = []
    for image in images:
        squeezed = np.array(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        net.set_tensor(source, squeezed[None])
        net.invoke()
        shares.append(float((predictor.labels([squeezed])[0] == net.get_tensor(target)[0]).mean()))
    return shares


def mean_iou(confusion: np.ndarray) -> float:
    hits = confusion.diagonal()
    return float((hits / (confusion.sum(1) + confusion[:, :3].sum(0) - hits)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--photos", type=int, default=50, help="photos, evenly from the split, that the interpreter labels, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = checkpoint.load("voc").network
    predictor, crf = Predictor(network, Scoring(precision="float32")), DenseCRF.named("kazuto")
    pairs = photos(arguments.dataset)
    step = len(pairs) // arguments.photos or 1
    shares = agreement(arguments.file, predictor, [image for image, _ in pairs[::step]][: arguments.photos])
    print(f"{machine()}: labels equal to TFLite's, {len(shares)} photos: mean {np.mean(shares):.4f}, least {min(shares):.4f}")
    classes = np.full(256, 3)
    classes[list(PETS)] = list(PETS.values())
    confusion = {"one scale": np.zeros((3, 4), np.int64), "CRF": np.zeros((3, 4), np.int64)}
    for image, truth in pairs:
        scores = predictor.scores([image])[0]
        size, counted = image.shape[:2], truth != VOID
        refined = crf.labels(image, scores, placement=predictor.placement(scores, *size))
        for name, labels in (("one scale", predictor.labels_of(scores, *size)), ("CRF", refined)):
            cells = truth[counted].astype(np.int64) * 4 + classes[labels[counted]]
            confusion[name] += np.bincount(cells, minlength=12).reshape(3, 4)
    for name, counts in confusion.items():
        print(f"pets test, {len(pairs)} photos, {name}: mIoU {mean_iou(counts):.4f}")


if __name__ == "__main__":
    main()

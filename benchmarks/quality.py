"""What a core second buys: seconds an image against mIoU, for each quality and for the settings between.

    python benchmarks/quality.py [--dataset FOLDER] [--split test] [--every 4] [--picture docs/quality.svg]

Each bundled model on the same photos, one core, all stages from decoding to PNG. Settings take turns on every photo, and the
thread's CPU time counts. For `voc`, cat and dog are two of 21 classes: whatever is neither of them nor background is an error.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from measure import machine

from deeplab import masks
from deeplab.data.datasets import LabelledFolder
from deeplab.images.decoding import decode
from deeplab.models import checkpoint
from deeplab.scoring.predictor import Predictor
from pipelines.options import BenchmarkOptions

BESIDE = Path(__file__).resolve().parents[2] / "shared"
# Of `deeplab benchmark`, and so of `segment` and `evaluate`.
SETTINGS: dict[str, dict[str, object]] = {
    "draft": {"quality": "draft"},
    "draft, int8": {"quality": "draft", "precision": "int8"},
    "int8": {"precision": "int8"},
    "stride 16, no CRF": {"output_stride": 16, "crf": False},
    "stride 16": {"output_stride": 16},
    "stride 8, no CRF": {"output_stride": 8, "crf": False},
    "stride 8": {"output_stride": 8},
    "flip": {"flip": True},
    "exact CRF": {"crf_mode": "exact"},
    "scales 0.75, 1, 1.25": {"scales": (0.75, 1.0, 1.25), "fusion": "mean"},
    "best": {"quality": "best"},
}
VOID, OTHER = 255, 3
VOC = {0: 0, 8: 1, 12: 2}  # VOC's class -> the data set's


class Setting:
    """One model with one setting: its stages, the seconds that they took, and the confusion of its labels."""

    def __init__(self, model: str, options: dict[str, object]) -> None:
        chosen = BenchmarkOptions(model=model, **options)  # type: ignore[arg-type]
        loaded = chosen.prepared(checkpoint.load(model))
        self.classes = loaded.classes
        self.predictor = Predictor(loaded.network, chosen.scoring(loaded), device="cpu")
        refinement = chosen.refinement(loaded)
        self.crf = refinement.engine() if refinement else None
        self.to_dataset = np.arange(256)
        if model == "voc":
            self.to_dataset = np.full(256, OTHER)
            self.to_dataset[list(VOC)] = list(VOC.values())
        self.seconds = 0.0
        self.confusion = np.zeros((OTHER, OTHER + 1), np.int64)

    def run(self, encoded: bytes, truth: np.ndarray) -> None:
        start = time.thread_time()
        image = decode(encoded)
        scores = self.predictor.scores([image])[0]
        labels = self.predictor.labels_of(scores, *image.shape[:2])
        if self.crf is not None:
            labels = self.crf.labels(image, scores, placement=self.predictor.placement(scores, *image.shape[:2]))
        masks.encode_png(labels, self.classes)
        self.seconds += time.thread_time() - start
        counted = truth != VOID
        cells = truth[counted].astype(np.int64) * (OTHER + 1) + self.to_dataset[labels[counted]]
        self.confusion += np.bincount(cells, minlength=self.confusion.size).reshape(self.confusion.shape)

    @property
    def mean_iou(self) -> float:
        hits = self.confusion.diagonal()
        return float((hits / (self.confusion.sum(1) + self.confusion[:, :OTHER].sum(0) - hits)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=BESIDE / "data" / "pets")
    parser.add_argument("--split", default="test")
    parser.add_argument("--every", type=int, default=4, help="every n-th photo of the split")
    parser.add_argument("--models", nargs="+", default=checkpoint.bundled())
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--picture", type=Path, help="also draw seconds against mIoU into this SVG file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = LabelledFolder(arguments.dataset, arguments.split)
    photos = range(0, len(folder), arguments.every)
    table = {(model, name): Setting(model, SETTINGS[name]) for model in arguments.models for name in arguments.settings}
    for index in photos:
        encoded, truth = folder.files.read(folder.images[index]), folder[index][1]
        for setting in table.values():
            setting.run(encoded, truth)
    print(f"{machine()}; {len(photos)} photos of {arguments.split}")
    points: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for (model, name), setting in sorted(table.items(), key=lambda entry: (entry[0][0], entry[1].seconds)):
        seconds = setting.seconds / len(photos)
        points[model].append((name, seconds, 100 * setting.mean_iou))
        print(f"| `{model}` | {name} | {seconds:.3f} | {100 * setting.mean_iou:.2f} |")
    if arguments.picture:
        arguments.picture.write_text(drawing(points))


def drawing(points: dict[str, list[tuple[str, float, float]]]) -> str:
    """Seconds an image (across) against mIoU in percent (up) as SVG; one colour for each model."""
    width, height, left, right, top, bottom = 760, 460, 60, 40, 30, 50
    everything = [point for of_model in points.values() for point in of_model]
    most = max(seconds for _, seconds, _ in everything) * 1.15
    low, high = np.floor(min(figure for *_, figure in everything) - 0.5), np.ceil(max(figure for *_, figure in everything) + 0.2)

    def x(seconds: float) -> float:
        return left + (width - left - right) * seconds / most

    def y(figure: float) -> float:
        return height - bottom - (height - top - bottom) * (figure - low) / (high - low)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{width / 2}" y="{height - 12}" text-anchor="middle">seconds an image, one core</text>',
        f'<text x="{left}" y="18">mIoU on pets, %</text>',
    ]
    for figure in np.arange(low, high + 0.1, 1.0):
        lines.append(f'<line x1="{left}" x2="{width - right}" y1="{y(figure):.1f}" y2="{y(figure):.1f}" stroke="#ddd"/>')
        lines.append(f'<text x="{left - 8}" y="{y(figure) + 4:.1f}" text-anchor="end">{figure:g}</text>')
    step = 0.1 if most > 0.25 else 0.05
    for seconds in np.arange(0, most, step):
        lines.append(f'<text x="{x(seconds):.1f}" y="{height - bottom + 18}" text-anchor="middle">{seconds:.2g}</text>')
    for colour, (model, of_model) in zip(("#2e6eb4", "#c44e52", "#52965a"), points.items(), strict=False):
        for name, seconds, figure in of_model:
            label = f"{model} {name}"
            lines.append(f'<circle cx="{x(seconds):.1f}" cy="{y(figure):.1f}" r="4" fill="{colour}"/>')
            lines.append(f'<text x="{x(seconds) + 7:.1f}" y="{y(figure) + 4:.1f}" fill="{colour}">{label}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()

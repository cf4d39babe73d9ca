"""The cost of fast mode on labelled photos: mIoU without CRF, exact and fast, and the share of labels equal in fast and exact.

python benchmarks/crf_quality.py [--dataset FOLDER] [--split test] [--every 4] [--model pets]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch

from deeplab.crf import DenseCRF
from deeplab.data.datasets import LabelledFolder
from deeplab.evaluation.metrics import Confusion
from deeplab.models.checkpoint import load
from deeplab.scoring.multiscale import winning_classes
from deeplab.scoring.predictor import Predictor

BESIDE = Path(__file__).resolve().parents[2] / "shared"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=BESIDE / "data" / "pets")
    parser.add_argument("--split", default="test")
    parser.add_argument("--every", type=int, default=4, help="every n-th photo of the split")
    parser.add_argument("--model", default="pets")
    parser.add_argument("--freeze", type=float, default=DenseCRF().freeze, help="fast mode's bound on changes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load(arguments.model)
    predictor = Predictor(loaded.network, device="cpu")
    stride = predictor.network.stride
    folder = LabelledFolder(arguments.dataset, arguments.split)
    engines = {"exact": DenseCRF("exact"), "fast": DenseCRF("fast", freeze=arguments.freeze)}
    totals = {name: Confusion.empty(len(folder.classes)) for name in ("no CRF", *engines)}
    shared: list[tuple[float, str]] = []
    for index in range(0, len(folder), arguments.every):
        image, truth = folder[index]
        scores = predictor.scores([image])[0]
        height, width = truth.shape
        results: dict[str, np.ndarray] = {"no CRF": winning_classes(scores, height, width, stride)}
        for name, crf in engines.items():
            results[name] = crf.labels(image, scores, stride=stride)
        for name, labels in results.items():
            totals[name].add(truth, labels)
        shared.append((100 * float((results["fast"] == results["exact"]).mean()), folder.stems[index]))
    print(f"{len(shared)} photos: " + ", ".join(f"mIoU {name} {100 * total.mean_iou():.3f}" for name, total in totals.items()))
    print(f"labels that fast and exact share: median {statistics.median(s for s, _ in shared):.4f} %, least:")
    for share, stem in sorted(shared)[:5]:
        print(f"  {share:.4f} % {stem}")


if __name__ == "__main__":
    main()

"""The cost of fast and half mode on labelled photos: mIoU without CRF and of each mode, the share of their labels that are
exact mode's, and CPU seconds an image.

python benchmarks/crf_quality.py [--dataset FOLDER] [--split test] [--every 4] [--model pets]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from deeplab.crf import DenseCRF
from deeplab.data.datasets import LabelledFolder
from deeplab.evaluation.metrics import Confusion
from deeplab.models.checkpoint import load
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
    folder = LabelledFolder(arguments.dataset, arguments.split)
    engines = {"exact": DenseCRF("exact"), "fast": DenseCRF("fast", freeze=arguments.freeze), "half": DenseCRF("half")}
    totals = {name: Confusion.empty(len(folder.classes)) for name in ("no CRF", *engines)}
    shared: dict[str, list[tuple[float, str]]] = {"fast": [], "half": []}
    seconds: dict[str, float] = dict.fromkeys(engines, 0)
    for index in range(0, len(folder), arguments.every):
        image, truth = folder[index]
        scores = predictor.scores([image])[0]
        height, width = truth.shape
        results: dict[str, np.ndarray] = {"no CRF": predictor.labels_of(scores, height, width)}
        for name, crf in engines.items():
            start = time.thread_time()
            results[name] = crf.labels(image, scores, placement=predictor.placement(scores, height, width))
            seconds[name] += time.thread_time() - start
        for name, labels in results.items():
            totals[name].add(truth, labels)
        for name, shares in shared.items():
            shares.append((100 * float((results[name] == results["exact"]).mean()), folder.stems[index]))
    count = len(shared["fast"])
    print(f"{count} photos: " + ", ".join(f"mIoU {name} {100 * total.mean_iou():.3f}" for name, total in totals.items()))
    print("CPU seconds an image: " + ", ".join(f"{name} {total / count:.4f}" for name, total in seconds.items()))
    for name, shares in shared.items():
        values = [share for share, _ in shares]
        print(f"labels that {name} and exact share: mean {statistics.mean(values):.4f} %, median {statistics.median(values):.4f} %")
        print("  least: " + ", ".join(f"{share:.4f} % {stem}" for share, stem in sorted(shares)[:5]))


if __name__ == "__main__":
    main()

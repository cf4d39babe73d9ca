"""How often neighbouring scores disagree, and mIoU: a model trained at stride 16, scored at 8, at 16, and at 8 with mixed grids.

    python benchmarks/checkerboard.py pets ../shared/data/pets --split val

A position of the stride-8 grid is single if its label differs from that of both neighbours in its row, or in its column, and these
agree. The table of docs/models.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

from deeplab import zoo
from deeplab.data.datasets import LabelledFolder
from deeplab.evaluation.predictions import evaluate
from deeplab.models import checkpoint
from deeplab.networks.network import SegmentationNetwork
from deeplab.scoring.predictor import Predictor, Scoring


def at(model: checkpoint.Model, output_stride: int, trained_stride: int) -> SegmentationNetwork:
    """The model's weights at another stride; grids are mixed if the strides differ."""
    options = {**model.card["architecture"].get("options", {}), "output_stride": output_stride, "trained_stride": trained_stride}
    network = zoo.build(model.card["architecture"]["name"], len(model.classes), **options)
    network.load_state_dict(model.network.state_dict())
    return network


def single(labels: torch.Tensor) -> float:
    """The share of the inner positions of h x w labels that are single."""
    centre = labels[1:-1, 1:-1]
    pairs = ((labels[1:-1, :-2], labels[1:-1, 2:]), (labels[:-2, 1:-1], labels[2:, 1:-1]))
    rows, columns = ((one == other) & (centre != one) for one, other in pairs)
    return float((rows | columns).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="val")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, data = checkpoint.load(arguments.model), LabelledFolder(arguments.dataset, arguments.split)
    rows = {"stride 8": (8, 8), "stride 16, interpolated to 8": (16, 16), "stride 8, grids mixed": (8, 16)}
    for name, (stride, trained) in rows.items():
        predictor = Predictor(at(model, stride, trained), Scoring(precision="bfloat16"), device="cpu")
        shares = []
        for image, _ in data:
            scores = torch.from_numpy(predictor.scores([image])[0]).float()[None]
            if stride == 16:
                size = [2 * side - 1 for side in scores.shape[-2:]]
                scores = F.interpolate(scores, size, mode="bilinear", align_corners=True)
            shares.append(100 * single(scores[0].argmax(0)))
        figure = evaluate(predictor, data).total.mean_iou()
        print(f"{name}: single {sum(shares) / len(shares):.3f} %, at most {max(shares):.2f} %, mIoU {figure:.4f}", flush=True)


if __name__ == "__main__":
    main()

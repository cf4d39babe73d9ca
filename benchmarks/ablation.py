"""The papers' choices of head, scales and learning policy on fixed features, on a CPU: the table of docs/results.md.

    python benchmarks/ablation.py ../shared/data/facade --every 3

The backbone of the bundled `voc` (MobileNetV2, trained on PASCAL VOC) stays as it is; its features of a number of crops are
computed once, and only the head is trained on them, a convolution or a sum of convolutions straight to the class scores as in
arXiv 1606.00915, section 3.2. So a training takes seconds and runs until its loss stands, for several seeds. Rows of Table 2
(policy, iterations), Table 3 (LargeFOV, ASPP-S, ASPP-L) and Table 4 (one scale or MSC), before and after the CRF.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deeplab.crf import DenseCRF
from deeplab.data.augmentation import Augmentation
from deeplab.data.datasets import LabelledFolder
from deeplab.evaluation.metrics import Confusion
from deeplab.models import checkpoint
from deeplab.networks.deeplab_heads import ASPP, LargeFOV, Plain
from deeplab.networks.network import SegmentationNetwork
from deeplab.networks.resampling import resample
from deeplab.training import learning_rate
from deeplab.training.losses import segmentation_loss
from deeplab.training.objective import on_grid, sum_over_scales

STRIDE, CROP, BATCH = 16, 321, 10
MSC = (1.0, 0.75, 0.5)
Features = list[torch.Tensor]  # of one image at each of MSC: 1 x D x h x w, bfloat16


@dataclass(frozen=True)
class Row:
    """A head and how it is trained. `paper`: the published mIoU, before and after the CRF, in percent."""

    name: str
    head: Callable[[int, int], nn.Module]
    steps: int
    schedule: str = "poly"
    msc: bool = False
    paper: str = ""


def aspp(*rates: int) -> Callable[[int, int], nn.Module]:
    """ASPP with the paper's rates, which are for stride 8."""
    return lambda inputs, classes: ASPP(inputs, classes, [rate * 8 // STRIDE for rate in rates])


def largefov(inputs: int, classes: int) -> nn.Module:
    return LargeFOV(inputs, classes, 12 * 8 // STRIDE)


def rows(steps: int) -> list[Row]:
    return [  # the most wanted first, should time run out
        Row("LargeFOV, poly", largefov, steps, paper="65.76 / 69.84"),
        Row("ASPP-S, poly", aspp(2, 4, 8, 12), steps, paper="66.98 / 69.73"),
        Row("ASPP-L, poly", aspp(6, 12, 18, 24), steps, paper="68.96 / 71.57"),
        Row("LargeFOV, poly, half the iterations", largefov, steps // 2, paper="63.42"),
        Row("LargeFOV, step, half the iterations", largefov, steps // 2, "step", paper="62.25"),
        Row("1x1, poly", Plain, steps, paper="68.72 (ResNet-101)"),
        Row("1x1, poly, MSC", Plain, steps, msc=True, paper="71.27 (ResNet-101)"),
    ]


def features_of(network: SegmentationNetwork, image: np.ndarray) -> Features:
    """The backbone's features of an H x W x 3 image at each of MSC; padded to the lattice at the bottom and the right."""
    height, width = (network.lattice_size(side) for side in image.shape[:2])
    padded = np.broadcast_to(np.round(network.normalization.mean_rgb).astype(np.uint8), (height, width, 3)).copy()
    padded[: image.shape[0], : image.shape[1]] = image
    x = network.normalization.apply(torch.from_numpy(padded).permute(2, 0, 1)[None])
    maps = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for scale in MSC:
            size = int((height - 1) * scale) + 1, int((width - 1) * scale) + 1
            scaled = x if scale == 1.0 else resample(x, size, 1 / scale)
            maps.append(network.backbone(scaled.contiguous(memory_format=torch.channels_last)).to(torch.bfloat16))
    return maps


def scores_of(head: nn.Module, features: Features, msc: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The fused scores on the grid of scale 1, and each scale's own."""
    scores = [head(maps.float()) for maps in (features if msc else features[:1])]
    grid = scores[0].shape[-2], scores[0].shape[-1]
    fused = torch.stack([on_grid(maps, scale, grid) for maps, scale in zip(scores, MSC, strict=False)]).amax(0)
    return fused, scores


def trained(row: Row, crops: list[tuple[Features, torch.Tensor]], classes: int, seed: int, rate: float) -> tuple[nn.Module, float]:
    """The head after the last step, and the mean loss of the last tenth of the steps."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    head = row.head(int(crops[0][0][0].shape[1]), classes)
    optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    losses = []
    for step in range(row.steps):
        factor = learning_rate.poly(step, row.steps) if row.schedule == "poly" else learning_rate.staircase(step, row.steps // 3)
        optimizer.param_groups[0]["lr"] = rate * factor
        chosen = [crops[index] for index in rng.choice(len(crops), BATCH, replace=False)]
        features = [torch.cat(maps) for maps in zip(*(features for features, _ in chosen), strict=True)]
        labels = torch.stack([labels for _, labels in chosen])
        fused, scores = scores_of(head, features, row.msc)
        loss = (
            sum_over_scales(fused, scores, MSC, labels, "official") if row.msc else segmentation_loss(fused, labels, True, "stride")
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return head, statistics.mean(losses[-row.steps // 10 :])


def score(
    head: nn.Module, row: Row, images: list[tuple[Features, np.ndarray, np.ndarray]], classes: int, crf: DenseCRF
) -> tuple[float, float]:
    """mIoU before and after the CRF."""
    before, after = Confusion.empty(classes), Confusion.empty(classes)
    for features, image, labels in images:
        with torch.no_grad():
            scores = scores_of(head, features, row.msc)[0]
        before.add(labels, resample(scores, (labels.shape[0], labels.shape[1]), 1 / STRIDE)[0].argmax(0).numpy())
        after.add(labels, crf.labels(image, scores=scores[0].numpy(), stride=STRIDE, align_corners=True))
    return before.mean_iou(), after.mean_iou()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--steps", type=int, default=600, help="iterations of 10 crops; rows of Table 2 also have half of them")
    parser.add_argument("--crops", type=int, default=4, help="crops of each training image whose features are kept")
    parser.add_argument("--rate", type=float, default=2.5e-3, help="learning rate: the papers' of a ResNet's head")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="test", help="split to score")
    parser.add_argument("--every", type=int, default=1, help="score every n-th image")
    parser.add_argument("--out", type=Path, default=Path("build/ablation.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = checkpoint.load("voc").network.eval()
    training, scored = LabelledFolder(arguments.dataset, "train"), LabelledFolder(arguments.dataset, arguments.split)
    augment = Augmentation(CROP, (0.5, 0.75, 1.0, 1.25, 1.5), network.normalization.mean_rgb)
    crops = []
    for index in range(len(training) * arguments.crops):
        image, labels = augment(*training[index % len(training)], np.random.default_rng([0, index]))
        crops.append((features_of(network, image), torch.from_numpy(labels)))
    images = [(features_of(network, scored[i][0]), *scored[i]) for i in range(0, len(scored), arguments.every)]
    print(f"{len(crops)} crops to train on, {len(images)} images of {scored.split} to score", flush=True)
    crf, classes = DenseCRF.named("deeplab-v2"), len(training.classes)
    print("| | iterations | loss | mIoU | with CRF | the paper's |\n|---|---|---|---|---|---|", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for row in rows(arguments.steps):
        losses, befores, afters = [], [], []
        for seed in range(arguments.seeds):
            head, loss = trained(row, crops, classes, seed, arguments.rate)
            before, after = score(head, row, images, classes, crf)
            losses.append(loss)
            befores.append(100 * before)
            afters.append(100 * after)
        with arguments.out.open("a") as stream:
            stream.write(json.dumps({"name": row.name, "loss": losses, "before": befores, "after": afters}) + "\n")
        ours = " | ".join(f"{statistics.mean(v):.2f} ± {(max(v) - min(v)) / 2:.2f}" for v in (befores, afters))
        print(f"| {row.name} | {row.steps} | {statistics.mean(losses):.3f} | {ours} | {row.paper} |", flush=True)


if __name__ == "__main__":
    main()

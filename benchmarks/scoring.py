"""The Predictor against the loop of most ports: float32, one image at a time, one pass per scale, separate batch norm.

    python benchmarks/scoring.py [--model pets | --architecture resnet101-aspp] [--images 6] [--rounds 3] [--threads 1]
        [--photos FOLDER]
    python benchmarks/scoring.py --native [--scales 1] [--size 375x500] ...
    python benchmarks/scoring.py --peers [--dataset FOLDER] [--size 375x500] [--images 6] [--mixed 60] [--rounds 7]

Both score the same photos (without --photos the examples, 320 x 240 and the like) with the same weights; seconds are CPU
seconds of this process with one thread, else wall seconds. They take turns, and the ratio is the median of the rounds. Labels
are compared at full size; with random weights (`--architecture`), the scores of classes are close and labels say little.

--native: this package's kernels, and int8 through oneDNN, against the same network in torch, in bfloat16 (where the processor has
it) and float32; seconds are CPU seconds of this thread, medians of rounds in which all take turns. A network without ranges for
int8 gets them from the photos. --size: only photos of this size.

--peers: at one scale against ONNX Runtime (float32) and OpenVINO (float32, bfloat16, int8 with NNCF's ranges from 36 photos of the
data set's train split), which are installed into build/peers once. They take turns with float32, bfloat16 and int8 of this package
on photos of the test split: of one size, for which the peers are compiled, then of their own sizes, which peers score with a
network for all sizes and with one compiled for each.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from measure import machine
from torch import nn
from torch.nn import functional as F

from deeplab import zoo
from deeplab.classes import ClassTable
from deeplab.convolutions.conv_norm import ConvBatchNorm
from deeplab.images.decoding import decode
from deeplab.models import checkpoint
from deeplab.networks.network import SegmentationNetwork
from deeplab.scoring.int8.calibration import calibrated
from deeplab.scoring.int8.networks import steps_of
from deeplab.scoring.native.engine import NativeNetwork, builds
from deeplab.scoring.predictor import DTYPES, Predictor
from deeplab.scoring.settings import Scoring

EXAMPLES = Path(__file__).parents[1] / "examples" / "pets" / "images"
BESIDE = Path(__file__).resolve().parents[2] / "shared"


class Apart(nn.Module):
    """A batch norm that is not folded into a convolution, as in a port's forward pass."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = self.norm(self.conv(x))
        return normalised


def as_a_port(network: SegmentationNetwork) -> SegmentationNetwork:
    """The network with convolution and batch norm as two layers, in PyTorch's own memory order."""
    plain = copy.deepcopy(network).eval()
    for module in list(plain.modules()):
        for (first, conv), (second, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, Apart(conv, norm))
                setattr(module, second, nn.Identity())
    assert not [m for m in plain.modules() if isinstance(m, ConvBatchNorm) and isinstance(m[1], nn.BatchNorm2d)]
    return plain


def loop(network: SegmentationNetwork, image: np.ndarray, scales: tuple[float, ...]) -> np.ndarray:
    """Scores as ports compute them: resize the image, one pass, resize the scores to those of scale 1, maximum."""
    with torch.inference_mode():
        x = network.normalization.apply(torch.from_numpy(image).permute(2, 0, 1)[None])
        height, width = (network.lattice_size(side) for side in image.shape[:2])
        x = F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))
        fused: torch.Tensor | None = None
        for scale in sorted(scales, reverse=True):
            size = [network.lattice_size(round(side * scale)) for side in (height, width)]
            scores = network(F.interpolate(x, size, mode="bilinear", align_corners=True) if scale != 1 else x)
            if fused is not None:
                scores = F.interpolate(scores, fused.shape[-2:], mode="bilinear", align_corners=True)
            fused = scores if fused is None else torch.maximum(fused, scores)
        assert fused is not None
        return fused[0].numpy()


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    """Options that select network and photos, for this benchmark and whole.py."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pets")
    parser.add_argument("--architecture", help="random weights of this architecture, 21 classes, instead of a model")
    parser.add_argument("--scales", type=lambda text: tuple(map(float, text.split(","))), default=(0.5, 0.75, 1.0))
    parser.add_argument("--photos", type=Path, default=EXAMPLES, help="a folder of JPEGs instead of the examples of 320 pixels")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    return parser


def network_of(arguments: argparse.Namespace) -> tuple[SegmentationNetwork, ClassTable]:
    if arguments.architecture:
        names = [f"class {index}" for index in range(21)]
        return zoo.build(arguments.architecture, 21, seed=0).eval(), ClassTable.from_names(names)
    model = checkpoint.load(arguments.model)
    return model.network.eval(), model.classes


class InTorch(Predictor):
    """A Predictor without this package's kernels."""

    def __init__(self, network: SegmentationNetwork, scoring: Scoring) -> None:
        super().__init__(network, replace(scoring, precision="float32"), device="cpu")
        self.precision = scoring.precision
        self.dtype = DTYPES[self.precision]
        self.network = self._in_torch(network)


def native(network: SegmentationNetwork, images: list[np.ndarray], scales: tuple[float, ...], rounds: int) -> None:
    """Print the seconds an image of each way to score, and its labels against float32's."""
    ways: dict[str, Predictor] = {"float32, torch": InTorch(network, Scoring(scales=scales, precision="float32"))}
    if builds("bfloat16"):
        scoring = Scoring(scales=scales, precision="bfloat16")
        own = Predictor(network, scoring, device="cpu")
        ways |= {"bfloat16, torch": InTorch(network, scoring), **({"bfloat16": own} if own.takes_pixels else {})}
    if network.quantization is None and steps_of(network):
        network.quantization = calibrated(network, images)
    if network.quantization is not None:
        ways["int8"] = Predictor(network, Scoring(scales=scales, precision="int8"), device="cpu")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, predictor in ways.items():
            start = time.thread_time()
            predictor.scores(images)
            if number:  # the first round allocates
                seconds[name].append((time.thread_time() - start) / len(images))
    exact = ways["float32, torch"].labels(images)
    for name, predictor in ways.items():
        build = f" ({predictor.network.build})" if isinstance(predictor.network, NativeNetwork) else ""
        same = [float((a == b).mean()) for a, b in zip(predictor.labels(images), exact, strict=True)]
        ratios = [
            f"{statistics.median(a / b for a, b in zip(seconds[peer], seconds[name], strict=True)):.2f}x {peer}"
            for peer in ("float32, torch", "bfloat16, torch")
            if peer in ways and peer != name
        ]
        print(
            f"{name + build:28} {statistics.median(seconds[name]):.4f} s an image, best {min(seconds[name]):.4f}; "
            f"{'; '.join([*ratios, ''])}labels as in float32 {np.mean(same):.2%}, worst photo {min(same):.2%}"
        )


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--native", action="store_true")
    parser.add_argument("--peers", action="store_true", help="against ONNX Runtime and OpenVINO")
    parser.add_argument("--dataset", type=Path, default=BESIDE / "data" / "pets", help="with --peers: labelled photos")
    parser.add_argument("--mixed", type=int, default=60, help="with --peers: photos of their own sizes")
    parser.add_argument("--size", help="HEIGHTxWIDTH of the photos to take; with --peers 375x500 by default")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock: Callable[[], float] = time.process_time if arguments.threads == 1 else time.perf_counter
    if arguments.peers:
        from peers import scores

        if arguments.architecture:
            parser.error("--peers: a --model is accepted, no --architecture")
        counts = arguments.images, arguments.mixed, arguments.rounds
        scores.compare(arguments.model, arguments.dataset, arguments.size or "375x500", *counts)
        return
    network, _ = network_of(arguments)
    scales = arguments.scales
    decoded = (decode(path.read_bytes()) for path in sorted(arguments.photos.glob("*.jpg")))
    fitting = (image for image in decoded if arguments.size in (None, f"{image.shape[0]}x{image.shape[1]}"))
    images = list(islice(fitting, arguments.images))
    if arguments.native:
        print(f"{arguments.architecture or arguments.model}, scales {scales}, {len(images)} photos, one thread of {machine()}")
        native(network, images, scales, arguments.rounds)
        return
    port = as_a_port(network)
    predictor = Predictor(network, Scoring(scales=scales, precision=arguments.precision), device="cpu")
    exact = Predictor(network, Scoring(scales=scales, precision="float32"), device="cpu")
    loop(port, images[0], scales)
    predictor.scores(images[:1])
    pairs = []
    for _ in range(arguments.rounds):
        start = clock()
        for image in images:
            loop(port, image, scales)
        middle = clock()
        predictor.scores(images)
        pairs.append((middle - start, clock() - middle))
    ours, theirs = predictor.labels(images), exact.labels(images)
    same = sum(int((a == b).sum()) for a, b in zip(ours, theirs, strict=True)) / sum(a.size for a in theirs)
    padded = sum(predictor.network.padded_size(h) * predictor.network.padded_size(w) for h, w in (i.shape[:2] for i in images))
    waste = padded / sum(i.shape[0] * i.shape[1] for i in images) - 1
    slow, fast = (statistics.median(column) / len(images) for column in zip(*pairs, strict=True))
    where = f"{len(images)} photos, {arguments.threads} threads, {platform.processor() or platform.machine()}"
    print(f"{arguments.architecture or arguments.model}, scales {scales}, {where}")
    print(f"loop {slow:.3f} s an image, Predictor ({predictor.precision}) {fast:.3f} s")
    print(f"labels as in float32: {same:.2%} of pixels; padding {waste:.1%}")
    print(f"{statistics.median(a / b for a, b in pairs):.2f}x")


if __name__ == "__main__":
    main()

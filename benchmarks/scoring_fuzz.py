"""Random networks and images for the scoring engine: every build of int8 gives the same scores, bfloat16 those of torch.

    python benchmarks/scoring_fuzz.py --minutes 30 [--seed 0]

Networks are MobileNetV2 of random stride, padding, head, classes and rates; images have sides of 1 to 150 pixels. A crash ends the
process; the seed of the last line printed repeats it. docs/crf.md says how to run it under the sanitizers.
"""

from __future__ import annotations

import argparse
import copy
import time

import numpy as np
import torch
from torch import nn

from deeplab.networks.deeplab_heads import ASPP
from deeplab.networks.image_pooling_head import ImagePoolingHead, ShortMobileNetV2
from deeplab.networks.mobilenet import InvertedResidual, MobileNetV2
from deeplab.networks.network import MOBILE, TENSORFLOW, TORCHVISION, SegmentationNetwork
from deeplab.scoring.int8.calibration import calibrated
from deeplab.scoring.native.engine import builds, native_network


def random_network(rng: np.random.Generator) -> SegmentationNetwork:
    """A network whose blocks add little to their shortcuts, so that errors do not grow from block to block."""
    torch.manual_seed(int(rng.integers(1 << 31)))
    stride, padding = int(rng.choice([8, 16, 32])), str(rng.choice(["same", "symmetric"]))
    classes = int(rng.integers(1, 45))
    head: nn.Module
    if rng.random() < 0.6:
        backbone = MobileNetV2(stride, padding)  # type: ignore[arg-type]
        head = ASPP(backbone.channels, classes, [int(rng.integers(1, 30)) for _ in range(int(rng.integers(1, 6)))])
    else:
        backbone = ShortMobileNetV2(stride, padding)  # type: ignore[arg-type]
        head = ImagePoolingHead(backbone.channels, classes)
    for module in [*backbone.modules(), *head.modules()]:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, (2 / module.weight[0].numel()) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, InvertedResidual) and module.shortcut:
            module.project[0].weight.data *= 0.3  # type: ignore[index,union-attr,operator]
    normalization = (TENSORFLOW, MOBILE, TORCHVISION)[int(rng.integers(3))]
    return SegmentationNetwork(backbone, head, classes, normalization).eval()


def random_call(rng: np.random.Generator) -> float:
    """One network on one image; returns the relative error of bfloat16. AssertionError for scores that differ."""
    network = random_network(rng)
    height, width = (int(rng.integers(1, 8 if rng.random() < 0.2 else 150)) for _ in range(2))
    pixels = torch.from_numpy(rng.integers(0, 256, (int(rng.integers(1, 3)), height, width, 3), dtype=np.uint8))
    x = pixels.permute(0, 3, 1, 2)
    network.quantization = calibrated(network, [rng.integers(0, 256, (49, 41, 3), dtype=np.uint8)])
    torch.set_num_threads(int(rng.integers(1, 4)))
    results = [native_network(network, "int8", build=build)(x) for build in builds("int8")]  # type: ignore[misc]
    assert all(torch.equal(result, results[0]) for result in results), "int8 differs between builds"
    if not builds("bfloat16"):
        return 0.0
    coarse = native_network(network, "bfloat16", build=builds("bfloat16")[0])
    assert coarse is not None
    with torch.inference_mode():
        exact = network(network.normalization.apply(x))
        theirs = copy.deepcopy(network).to(torch.bfloat16)(network.normalization.apply(x).to(torch.bfloat16)).float()
    error, in_torch = (float((scores - exact).norm() / exact.norm()) for scores in (coarse(x), theirs))
    assert error < 1.5 * in_torch + 0.02, f"bfloat16 is {error:.3f} from float32, in torch {in_torch:.3f}"
    return error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    end, seed, worst = time.monotonic() + 60 * arguments.minutes, arguments.seed, 0.0
    while time.monotonic() < end:
        try:
            worst = max(worst, random_call(np.random.default_rng(seed)))
        except BaseException:
            print(f"failed at seed {seed}", flush=True)
            raise
        seed += 1
        if seed % 20 == 0:
            print(f"{seed - arguments.seed} networks, largest error of bfloat16 {worst:.3f}", flush=True)
    print(f"{seed - arguments.seed} networks without a failure, largest error of bfloat16 {worst:.3f}")


if __name__ == "__main__":
    main()

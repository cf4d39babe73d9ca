"""From an image file to a PNG mask: Predictor and our CRF against the loop of most ports, with pydensecrf.

    python benchmarks/whole.py [--model pets | --architecture resnet101-aspp] [--photos FOLDER] [--images 6] [--rounds 3]
    python benchmarks/whole.py --peers [--before REVISION] [--dataset FOLDER] [--size 375x500] [--images 6] [--ray-images 64] ...

One core, CPU seconds of this process: read, decode, score at every scale, dense CRF, PNG. The loop is that of scoring.py;
its scores go to pydensecrf through our own interface, which interpolates them to full size. The two take turns, and
the ratio, printed last, is the median of the rounds. With random weights (`--architecture`) all 21 classes are contested,
the case in which our fast CRF gains least.

--peers: this package at one scale (its default, int8, and `draft` with int8) against OpenVINO with pydensecrf, and against the
way of the Ray documentation: `read_images`, torchvision's deeplabv3_mobilenet_v3_large in `map_batches`, pydensecrf. All take
turns on the same photos of the data set's test split and print the CPU seconds of each stage. What they need is installed into
build/peers once. --before: also this package as it was at a commit, which is built there once.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch
from scoring import BESIDE, arguments_of, as_a_port, loop, network_of

from deeplab import masks
from deeplab.crf import DenseCRF
from deeplab.images.decoding import decode
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring


def main() -> None:
    parser = arguments_of(__doc__)
    parser.add_argument("--crf-params", default="deeplab-v2")
    parser.add_argument("--peers", action="store_true", help="against OpenVINO with pydensecrf, and Ray Data with torchvision")
    parser.add_argument("--before", metavar="REVISION", help="with --peers: also this package at that commit")
    parser.add_argument("--dataset", type=Path, default=BESIDE / "data" / "pets", help="with --peers: labelled photos")
    parser.add_argument("--size", default="375x500", help="with --peers: HEIGHTxWIDTH of the photos to take")
    parser.add_argument("--ray-images", type=int, default=64, help="with --peers: photos of a Ray Data pipeline; 0 leaves it out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peers:
        from peers import masks as peers_masks

        if arguments.architecture:
            parser.error("--peers: a --model is accepted, no --architecture")
        counts = arguments.images, arguments.rounds, arguments.ray_images
        peers_masks.compare(arguments.model, arguments.dataset, arguments.size, arguments.before, *counts)
        return
    network, classes = network_of(arguments)
    scales = arguments.scales
    paths = sorted(arguments.photos.glob("*.jpg"))[: arguments.images]
    port, predictor = as_a_port(network), Predictor(network, Scoring(scales=scales), device="cpu")
    theirs = DenseCRF.named(arguments.crf_params, backend="pydensecrf")
    ours = DenseCRF.named(arguments.crf_params, mode="fast")
    pairs, stages = [], []
    for _ in range(arguments.rounds + 1):
        start = time.process_time()
        crf = 0.0
        for path in paths:
            image = decode(path.read_bytes())
            scores = loop(port, image, scales)
            begun = time.process_time()
            labels = theirs.labels(image, scores, placement=predictor.placement(scores, *image.shape[:2]))
            crf += time.process_time() - begun
            masks.encode_png(labels, classes)
        middle = time.process_time()
        images = [decode(path.read_bytes()) for path in paths]
        all_scores = predictor.scores(images)
        scored = time.process_time()
        for image, scores in zip(images, all_scores, strict=True):
            labels = ours.labels(image, scores, placement=predictor.placement(scores, *image.shape[:2]))
            masks.encode_png(labels, classes)
        end = time.process_time()
        pairs.append((middle - start, end - middle))
        stages.append((middle - start - crf, crf, scored - middle, end - scored))
    pairs, stages = pairs[1:], stages[1:]  # the first round makes kernels and buffers
    network_loop, crf_loop, network_ours, crf_ours = (statistics.median(s) / len(paths) for s in zip(*stages, strict=True))
    print(f"{arguments.architecture or arguments.model}, scales {scales}, {len(paths)} photos, one core")
    print(f"loop: {network_loop:.3f} s an image to scores, {crf_loop:.3f} s of pydensecrf")
    print(f"ours ({predictor.precision}): {network_ours:.3f} s to scores, {crf_ours:.3f} s from there")
    print(f"{statistics.median(a / b for a, b in pairs):.1f}x")


if __name__ == "__main__":
    main()

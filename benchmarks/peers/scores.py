"""Pixels to scores against ONNX Runtime and OpenVINO: `scoring.py --peers`."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from measure import machine

from deeplab.data.datasets import LabelledFolder
from deeplab.images.decoding import decode
from deeplab.models.checkpoint import Model
from deeplab.scoring.native.engine import builds
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring
from peers.environment import engines, located, save_photos
from peers.turns import Child

PEERS = ("ONNX Runtime float32", "OpenVINO float32", "OpenVINO bfloat16", "OpenVINO int8")
AT_ONCE = 12  # photos whose networks a peer holds compiled: some 40 MB a size and peer
CALIBRATION = 36


@dataclass
class Way:
    """One way to score photos: CPU seconds of each round, the first apart, over all photos so far.

    run: scores the photos at hand: CPU seconds; with a folder, it writes the scores there as 0.npy, 1.npy, ... too.
    prepare: what has to be done once for new sizes: CPU seconds.
    """

    name: str
    run: Callable[[Path | None], float]
    prepare: Callable[[], float] = lambda: 0.0
    first: float = 0.0
    rounds: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)

    @property
    def precision(self) -> str:
        return self.name.split()[-1]


class Photos:
    """Photos of one split of a data set, read when they are asked for."""

    def __init__(self, dataset: Path, split: str) -> None:
        self.folder = LabelledFolder(dataset, split)

    def files(self) -> Iterator[bytes]:
        """All, encoded."""
        return (self.folder.files.read(image) for image in self.folder.images)

    def evenly(self, count: int) -> list[np.ndarray]:
        """At most `count`, spread over the split."""
        return [decode(encoded) for encoded in spread(list(self.files()), count)]

    def files_of_size(self, size: str, count: int) -> list[bytes]:
        """At most `count` of HEIGHTxWIDTH pixels, encoded, spread over the split. SystemExit if there are none."""
        shape = tuple(map(int, size.split("x")))
        fitting = [encoded for encoded in self.files() if decode(encoded).shape[:2] == shape]
        if not fitting:
            raise SystemExit(f"--size {size}: no photo of this split has it")
        return spread(fitting, count)


def spread(files: list[bytes], count: int) -> list[bytes]:
    """At most `count`, evenly."""
    return files[:: max(1, len(files) // count)][:count]


class Comparison:
    """Ours and the peers' ways to score the same photos, in turns."""

    def __init__(self, model: Model, child: Child, modes: Sequence[tuple[str, bool]]) -> None:
        """modes: a peer's name for what it compiles, and whether that is a network for each size."""
        self.child, self.network = child, model.network
        self.images: list[np.ndarray] = []
        precisions = [name for name in ("float32", "bfloat16") if name == "float32" or builds(name)]
        precisions.append("int8")
        self.ours = {name: Predictor(model.network, Scoring(precision=name), device="cpu") for name in precisions}  # type: ignore[arg-type]
        self.ways = [Way(f"ours, {name}", self._of_ours(predictor)) for name, predictor in self.ours.items()]
        for peer in PEERS:
            for mode, fixed in modes:
                name, _, precision = peer.rpartition(" ")
                self.ways.append(Way(f"{name}, {mode}{precision}", self._of_peer(peer, fixed), self._compiling(peer, fixed)))
        self.new_sizes = 0

    def measure(self, images: list[np.ndarray], rounds: int) -> None:
        """Let all ways score these photos: one round that is kept apart, then `rounds`."""
        self.images = images
        self.new_sizes += len({self.network_size(image) for image in images})
        with tempfile.TemporaryDirectory(prefix="deeplab-photos-") as name:
            folder = Path(name)
            self.child.ask("photos", paths=save_photos(images, folder / "photos"))
            exact = self.ours["float32"].labels(images)
            for way in self.ways:
                scores = folder / way.name
                scores.mkdir()
                way.first += way.prepare() + way.run(scores)
                way.same += self._same(scores, exact)
        totals = [[way.run(None) for way in self.ways] for _ in range(rounds)]
        for way, seconds in zip(self.ways, zip(*totals, strict=True), strict=True):
            way.rounds = [a + b for a, b in zip(way.rounds or [0.0] * rounds, seconds, strict=True)]

    def network_size(self, image: np.ndarray) -> tuple[int, int]:
        """The sides with which an image is scored."""
        return self.network.padded_size(image.shape[0]), self.network.padded_size(image.shape[1])

    def _of_ours(self, predictor: Predictor) -> Callable[[Path | None], float]:
        def run(folder: Path | None) -> float:
            seconds = 0.0
            for number, image in enumerate(self.images):
                start = time.process_time()
                scores = predictor.scores([image])[0]
                seconds += time.process_time() - start
                if folder:
                    np.save(folder / f"{number}.npy", scores)
            return seconds

        return run

    def _of_peer(self, peer: str, fixed: bool) -> Callable[[Path | None], float]:
        return lambda folder: float(self.child.ask("score", peer=peer, fixed=fixed, scores=str(folder) if folder else None))

    def _compiling(self, peer: str, fixed: bool) -> Callable[[], float]:
        """The seconds of a network for all sizes, needed once in an archive, do not count."""
        return lambda: float(self.child.ask("compile", peer=peer, fixed=fixed)) * fixed

    def _same(self, folder: Path, exact: list[np.ndarray]) -> list[float]:
        """The share of each photo's labels that are float32's."""
        maps = (np.load(folder / f"{number}.npy") for number in range(len(exact)))
        predictor = self.ours["float32"]
        return [
            float((predictor.labels_of(scores, *labels.shape) == labels).mean()) for scores, labels in zip(maps, exact, strict=True)
        ]

    def table(self, photos: int, share_new: float) -> list[str]:
        """Lines of a table. photos: how many were measured; share_new: of an archive's photos, those of a size not seen before."""
        costs: dict[str, list[float]] = {}
        titles = ["way", "s an image", "ours takes, x", "with new sizes", "ours takes, x", "labels as float32's", "worst photo"]
        lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
        best: dict[str, tuple[float, str]] = {}
        rounds = {way.name: [seconds / photos for seconds in way.rounds] for way in self.ways}
        for way in self.ways:
            steady = statistics.median(rounds[way.name])
            new = max(0.0, way.first - photos * steady) / self.new_sizes * share_new
            cost = costs[way.name] = [seconds + new for seconds in rounds[way.name]]
            ours = f"ours, {way.precision}"
            ratios = ["", ""]
            if ours != way.name:
                ratios = [ratio(rounds[ours], rounds[way.name]), ratio(costs[ours], cost)]
                peer = f"{way.name.split(',')[0]} {way.precision}"
                text = f"ours takes {ratios[1]}x the time of {way.name}"
                best[peer] = min(best.get(peer, (np.inf, "")), (statistics.median(cost), text))
            columns = [way.name, f"{steady:.4f}", ratios[0], f"{statistics.median(cost):.4f}", ratios[1]]
            lines.append(f"| {' | '.join(columns)} | {np.mean(way.same):.2%} | {min(way.same):.2%} |")
        return [*lines, *(f"against {peer} at its best: {text}" for peer, (_, text) in best.items())]


def ratio(ours: list[float], theirs: list[float]) -> str:
    """The median over rounds."""
    return f"{statistics.median(a / b for a, b in zip(ours, theirs, strict=True)):.2f}"


def compare(name: str, dataset: Path, size: str, images: int, mixed: int, rounds: int) -> None:
    """Print the tables: `images` photos of `size` with networks compiled for it, then `mixed` of their own sizes."""
    name, model = located(name)
    test, train = Photos(dataset, "test"), Photos(dataset, "train")
    fixed, own = [decode(encoded) for encoded in test.files_of_size(size, images)], test.evenly(mixed)
    with engines(name, model, train.evenly(CALIBRATION)) as child:
        versions = ", ".join(f"{package} {version}" for package, version in child.ask("versions").items())
        print(f"{model.label}; {machine()}, load {os.getloadavg()[0]:.1f}; {versions}; {rounds} rounds, one thread, CPU seconds")
        print("From uint8 pixels to scores at the network's stride: padding and normalising count on all sides.")
        comparison = Comparison(model, child, [("", True)])
        comparison.measure(fixed, rounds)
        print(f"\n{len(fixed)} photos of {size}; peers compiled for this size, which does not count", flush=True)
        print("\n".join(comparison.table(len(fixed), 0.0)))
        comparison = Comparison(model, child, [("dynamic shape, ", False), ("network for each size, ", True)])
        for start in range(0, len(own), AT_ONCE):
            comparison.measure(own[start : start + AT_ONCE], rounds)
        sizes = [comparison.network_size(decode(encoded)) for encoded in chain(test.files(), train.files())]
        share_new = len(set(sizes)) / len(sizes)
        print(
            f"\n{len(own)} photos of their own sizes. 'with new sizes' adds what the first photo of a size costs more (compiling,"
        )
        print(f"kernels), in an archive of {len(sizes)} photos of which {share_new:.0%} have a padded size not seen before")
        print("\n".join(comparison.table(len(own), share_new)))

"""An image file to a PNG mask against other ways to do all of it: `whole.py --peers`."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from measure import machine

from deeplab import masks
from deeplab.crf import DenseCRF
from deeplab.images.decoding import decode
from deeplab.models.checkpoint import Model
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring
from peers.environment import engines, located, package_of, save_photos
from peers.scores import CALIBRATION, Photos
from peers.stages import STAGES
from peers.turns import Child

CRF = "kazuto"  # the default of segment
OURS = {"ours": {}, "ours, int8": {"precision": "int8"}, "ours, draft, int8": {"quality": "draft", "precision": "int8"}}
LEAST = 32  # photos of a Ray Data pipeline: a quarter of them is a batch
Run = Callable[[], list[float]]  # CPU seconds an image of each of STAGES


def of_tree(child: Child, way: str, options: dict[str, str], paths: list[str]) -> tuple[str, Run]:
    """This project's packages, of this tree or an earlier commit: the precision, and the way."""
    precision: str = child.ask("open", way=way, options=options)
    return precision, lambda: [seconds / len(paths) for seconds in child.ask("run", way=way, paths=paths)]


def of_engine(child: Child, peer: str, model: Model, paths: list[str], folder: Path) -> Run:
    """Our decoding and PNG, scores by a peer that is compiled for the photos' size, pydensecrf through our interface."""
    images = [decode(Path(path).read_bytes()) for path in paths]
    predictor = Predictor(model.network, Scoring(precision="float32"), device="cpu")  # for where scores lie
    crf = DenseCRF.named(CRF, backend="pydensecrf")
    scores = folder / peer
    scores.mkdir()
    child.ask("photos", paths=save_photos(images, folder / "pixels"))

    def run() -> list[float]:
        child.ask("compile", peer=peer, fixed=True)
        seconds = [0.0, child.ask("score", peer=peer, fixed=True, scores=str(scores)), 0.0, 0.0]
        for number, path in enumerate(paths):
            times = [time.process_time()]
            image = decode(Path(path).read_bytes())
            times.append(time.process_time())
            values = np.load(scores / f"{number}.npy")
            times.append(time.process_time())
            labels = crf.labels(image, values, placement=predictor.placement(values, *image.shape[:2]))
            times.append(time.process_time())
            masks.encode_png(labels, model.classes)
            times.append(time.process_time())
            for stage in (0, 2, 3):
                seconds[stage] += times[stage + 1] - times[stage]
        return [value / len(paths) for value in seconds]

    return run


def of_ray(child: Child, paths: list[str], walls: list[float]) -> Run:
    """The Ray pipeline. Its first stage is the rest of its CPU seconds: decoding, resizing, Ray. walls: gets wall seconds."""

    def run() -> list[float]:
        figures = child.ask("run", paths=paths)
        walls.append(figures["wall"])
        stages = [figures[stage] for stage in STAGES[1:]]
        return [figures["cpu"] - sum(stages), *stages]

    return run


def compare(name: str, dataset: Path, size: str, before: str | None, images: int, rounds: int, ray_images: int) -> None:
    """Print CPU seconds an image of each stage of each way on `images` photos of `size`, all in turns, and the ratios."""
    if 0 < ray_images < LEAST:
        raise SystemExit(f"--ray-images {ray_images}: 0, or {LEAST} and more, are accepted")
    name, model = located(name)
    test, train = Photos(dataset, "test"), Photos(dataset, "train")
    encoded = test.files_of_size(size, images)
    walls: list[float] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deeplab-whole-")))
        paths = [str(folder / f"{number}.jpg") for number in range(max(len(encoded), ray_images))]
        for number, path in enumerate(paths):
            Path(path).write_bytes(encoded[number % len(encoded)])
        photos = paths[: len(encoded)]
        engine = stack.enter_context(engines(name, model, train.evenly(CALIBRATION)))
        here = stack.enter_context(Child("peers.stages", name))
        ways: dict[str, Run] = {}
        for way, options in OURS.items():
            precision, run = of_tree(here, way, options, photos)
            ways[way if "precision" in options else f"{way}, {precision}"] = run
        if before:
            earlier = stack.enter_context(Child("peers.stages", name, str(package_of(before))))
            precision, run = of_tree(earlier, before, {}, photos)
            ways[f"commit {before}, {precision}"] = run
        for precision in ("bfloat16", "int8"):
            ways[f"OpenVINO {precision}, pydensecrf"] = of_engine(engine, f"OpenVINO {precision}", model, photos, folder)
        for run in ways.values():
            run()  # makes kernels and buffers
        if ray_images:
            ray = stack.enter_context(Child("peers.ray_pipeline", str(len(model.classes)), CRF, *size.split("x")))
            ways["Ray Data, torchvision, pydensecrf"] = of_ray(ray, paths[:ray_images], walls)
        seconds: dict[str, list[list[float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, run in ways.items():
                seconds[way].append(run())
    print(
        f"{model.label}; {machine()}, load {os.getloadavg()[0]:.1f}; {len(encoded)} photos of {size}, {rounds} rounds; CPU seconds"
    )
    print("\n".join(table(seconds)))
    if walls:
        print(f"Ray Data: {ray_images} photos, the start of its workers not counted; decode holds the resize and Ray's work.")
        print(f"Wall seconds on its one core: {statistics.median(walls):.3f} an image. Other work makes these longer,")
        print("and with them the CPU seconds of Ray's own processes.")


def table(seconds: dict[str, list[list[float]]]) -> list[str]:
    """Medians of each stage over the rounds; then how many times each of ours each way takes, the median of the rounds' ratios."""
    ours = [name for name in seconds if name.startswith("ours")]
    titles = [*STAGES, "together", *(f"x {name}" for name in ours)]
    lines = [f"| s an image | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    totals = {name: [sum(stages) for stages in rounds] for name, rounds in seconds.items()}
    for name, rounds in seconds.items():
        stages = [statistics.median(column) for column in zip(*rounds, strict=True)]
        columns = [f"{value:.4f}" for value in (*stages, statistics.median(totals[name]))]
        for other in ours:
            columns.append(f"{statistics.median(a / b for a, b in zip(totals[name], totals[other], strict=True)):.2f}")
        lines.append(f"| {name} | {' | '.join(columns)} |")
    return lines

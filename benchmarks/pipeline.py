"""The pipeline against a plain loop over the same Predictor and CRF, with the same number of processes.

    python benchmarks/pipeline.py [--images 200] [--processes 2] [--repeats 3]

Both read, decode, score, refine and encode the same photos (examples/, repeated). The loop is the best case:
each process has its share of the list and one thread, and keeps its results. The pipeline runs twice, over a quarter of
the photos and over all of them. Its rate is the difference of images over the difference of times, which excludes
start-up; start-up is printed beside the rate. Loop and pipeline take turns, and the ratio is the median of the pairs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from measure import machine

EXAMPLES = Path(__file__).parents[1] / "examples" / "pets" / "images"


def loop(paths: list[Path], model: str, ready: object, go: object) -> None:
    """One process of the plain loop."""
    import torch

    from deeplab import masks
    from deeplab.crf import DenseCRF
    from deeplab.images.decoding import decode
    from deeplab.models import checkpoint
    from deeplab.scoring.predictor import Predictor

    torch.set_num_threads(1)
    loaded = checkpoint.load(model)
    predictor = Predictor(loaded.network)
    crf = DenseCRF.named("kazuto")
    results = []
    ready.release()  # type: ignore[attr-defined]
    go.wait()  # type: ignore[attr-defined]
    for path in paths:
        image = decode(path.read_bytes())
        scores = predictor.scores([image])[0]
        labels = crf.labels(image, scores, placement=predictor.placement(scores, *image.shape[:2]))
        results.append(masks.encode_png(labels, loaded.classes))


def run_loop(paths: list[Path], model: str, processes: int) -> tuple[float, float]:
    """Images per second and start-up seconds of the loop."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    shares = [paths[index::processes] for index in range(processes)]
    start = time.perf_counter()
    workers = [context.Process(target=loop, args=(share, model, ready, go)) for share in shares]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    began = time.perf_counter()
    go.set()
    for worker in workers:
        worker.join()
    return len(paths) / (time.perf_counter() - began), began - start


def run_pipeline(archive: Path, limit: int, model: str, processes: int, root: Path) -> float:
    """Seconds of `segment` for the first `limit` photos, from the start of Ray to the commit."""
    from pipelines.cluster import connection
    from pipelines.options import SegmentOptions
    from pipelines.segment.run import segment

    results = root / "results"
    shutil.rmtree(results, ignore_errors=True)
    start = time.perf_counter()
    with connection.session(cpus=processes):
        segment(SegmentOptions(archive=str(archive), results=str(results), model=model, limit=limit))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="pets")
    arguments = parser.parse_args()
    print(f"{machine()}; {arguments.images} photos of 320 pixels")
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "photos"
        archive.mkdir()
        photos = sorted(EXAMPLES.glob("*.jpg"))
        for index in range(arguments.images):
            shutil.copy(photos[index % len(photos)], archive / f"photo_{index:05d}.jpg")
        paths = sorted(archive.iterdir())
        ratios = []
        for repeat in range(arguments.repeats):
            plain, plain_start = run_loop(paths, arguments.model, arguments.processes)
            few = len(paths) // 4
            short = run_pipeline(archive, few, arguments.model, arguments.processes, Path(folder))
            long = run_pipeline(archive, len(paths), arguments.model, arguments.processes, Path(folder))
            # Start-up is in both runs, so their difference excludes it.
            rate = (len(paths) - few) / (long - short)
            start = short - few / rate
            ratios.append(rate / plain)
            print(f"{repeat}: loop {plain:.2f} images/s after {plain_start:.1f} s, segment {rate:.2f} after {start:.1f} s")
        print(f"segment / loop, median of {arguments.repeats}: {statistics.median(ratios):.2f}x")


if __name__ == "__main__":
    main()

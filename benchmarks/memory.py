"""Memory of the scoring processes over a long run of images of mixed sizes: how much, and whether it grows.

    python benchmarks/memory.py [--images 5000] [--model pets] [--scales 1] [--largest 1000]

Makes JPEGs out of the example photos with sides of 96 to --largest pixels (each side is random, so hardly two have the same
size), segments them with the CRF, and reads every second the anonymous memory of Ray's workers (their own, without the shared
object store). Prints the largest worker of each tenth of the images, and the range over the second
half.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.options import SegmentOptions
from pipelines.segment.run import SegmentProgress, segment

EXAMPLES = Path(__file__).parents[1] / "examples" / "pets" / "images"


def make(folder: Path, images: int, largest: int) -> None:
    photos = [Image.open(path).convert("RGB") for path in sorted(EXAMPLES.glob("*.jpg"))]
    random = np.random.default_rng(0)
    for index in range(images):
        size = np.exp(random.uniform(np.log(96), np.log(largest), 2)).astype(int)
        photos[index % len(photos)].resize((int(size[0]), int(size[1]))).save(folder / f"{index:06}.jpg", quality=85)


def workers(session: int) -> list[int]:
    """Anonymous memory, in MB, of each Ray worker whose process has that session id."""
    megabytes = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError, ValueError, IndexError):  # it has just ended
                if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                    continue
                if b"ray::" not in (folder / "cmdline").read_bytes():
                    continue
                lines = (folder / "status").read_text().splitlines()
                megabytes.append(next(int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon:")))
    return megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--model", default="pets")
    parser.add_argument("--scales", default="1")
    parser.add_argument("--largest", type=int, default=1000)
    arguments = parser.parse_args()
    samples: list[tuple[int, int]] = []
    state = {"done": 0}
    over = threading.Event()

    def look() -> None:
        while not over.wait(1.0):
            samples.append((state["done"], max(workers(os.getsid(0)), default=0)))

    def watch(progress: SegmentProgress) -> None:
        state["done"] = progress.done

    with tempfile.TemporaryDirectory(prefix="deeplab-memory-") as folder:
        archive = Path(folder) / "archive"
        archive.mkdir()
        make(archive, arguments.images, arguments.largest)
        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        start = time.perf_counter()
        scales = tuple(float(part) for part in arguments.scales.split(","))
        options = SegmentOptions(archive=str(archive), results=f"{folder}/results", model=arguments.model, scales=scales)
        summary = segment(options, watch)
        seconds = time.perf_counter() - start
        over.set()
        watcher.join()
    print(f"{summary.images} images, {summary.errors} errors, {seconds:.0f} s; bound by {summary.bound}")
    tenth = max(1, arguments.images // 10)
    by_tenth: dict[int, int] = {}
    for done, memory in samples:
        by_tenth[min(9, done // tenth)] = max(memory, by_tenth.get(min(9, done // tenth), 0))
    print("largest worker, MB, by tenth of the images:", " ".join(f"{by_tenth.get(index, 0)}" for index in range(10)))
    half = [memory for index, memory in by_tenth.items() if index >= 5]
    print(f"at most {max(by_tenth.values())} MB; second half: {min(half)} to {max(half)} MB")


if __name__ == "__main__":
    main()

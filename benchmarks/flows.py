"""What Prefect costs: the start-up of a flow over the plain command, and the overhead of each chunk.

    python benchmarks/flows.py [--repeats 7] [--chunks 20]

Start-up: `deeplab segment`, `deeplab run segment` with its embedded server (its database exists already) and the same
with a real server on SQLite take turns on 4 photos that all have their row, so that no Ray is started and what differs
is Prefect; the medians' differences are printed.

Overhead: one run of the flow against the real server, in this process, with chunks of 2 photos. Of each chunk, what is
not `Segmentation.run_chunk`, plus what the watch adds at its commit: task run, states, event, progress, log line. Its
median is set against chunks of five minutes.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

EXAMPLES = Path(__file__).parents[1] / "examples" / "pets" / "images"
CHUNK_SECONDS = 300


def archive(folder: Path, images: int) -> Path:
    folder.mkdir()
    photos = sorted(EXAMPLES.glob("*.jpg"))
    for index in range(images):
        shutil.copy(photos[index % len(photos)], folder / f"photo_{index:05d}.jpg")
    return folder


def seconds(environment: dict[str, str], command: str, photos: Path, results: Path) -> float:
    """Of one command, from its start to its exit."""
    arguments = [*command.split(), str(photos), str(results), "--no-crf", "--scales", "1"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "flows.cli", *arguments], env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def server(home: Path) -> tuple[Any, str]:
    """A Prefect server of our own on a free port, and its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        if process.poll() is not None:
            sys.exit("the Prefect server did not start")
        try:
            with urlopen(f"{url}/health", timeout=5):
                return process, url
        except OSError:
            time.sleep(0.5)


def startup(repeats: int, plain: dict[str, str], served: dict[str, str], root: Path) -> None:
    photos = archive(root / "few", 4)
    kinds = {
        "deeplab segment": (plain, "segment"),
        "deeplab run segment, embedded server": (plain, "run segment"),
        "deeplab run segment, real server": (served, "run segment"),
    }
    seconds(plain, "run segment", photos, root / "results")  # does the work, and makes the embedded server's database
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(repeats):
        for name, (environment, command) in kinds.items():
            times[name].append(seconds(environment, command, photos, root / "results"))
    base = statistics.median(times["deeplab segment"])
    print(f"start-up: whole commands with nothing left to do, medians of {repeats}")
    for name, found in times.items():
        middle = statistics.median(found)
        more = f", {middle - base:+.1f} s" if middle != base else ""
        print(f"  {name:38} {middle:6.1f} s ({min(found):.1f} to {max(found):.1f}){more}")


def overhead(chunks: int, root: Path) -> None:
    """In this process, whose PREFECT_API_URL names the server."""
    from flows import segment as module
    from pipelines.options import SegmentOptions
    from pipelines.segment import Progress, Segmentation

    spent: dict[str, list[float]] = {"task": [], "work": [], "watch": []}
    task, work = module.run_chunk, Segmentation.run_chunk

    def timed_task(*arguments: Any) -> None:
        start = time.perf_counter()
        task(*arguments)
        spent["task"].append(time.perf_counter() - start)

    def timed_work(self: Segmentation, *arguments: Any) -> None:
        watch, start = self.watch, time.perf_counter()

        def timed_watch(progress: Progress) -> None:
            begun = time.perf_counter()
            watch(progress)
            if progress.phase == "commit":
                spent["watch"].append(time.perf_counter() - begun)

        self.watch = timed_watch
        try:
            work(self, *arguments)
        finally:
            self.watch = watch
        spent["work"].append(time.perf_counter() - start)

    module.run_chunk, Segmentation.run_chunk = timed_task, timed_work  # type: ignore[assignment, method-assign]
    photos = archive(root / "many", 2 * chunks)
    options = SegmentOptions(archive=str(photos), results=str(root / "chunks"), chunk_size=2, crf=False, scales=(1.0,))
    module.segment_archive(options)
    each = [t - w + x for t, w, x in zip(spent["task"], spent["work"], spent["watch"], strict=True)]
    middle = statistics.median(each)
    print(f"overhead: {len(each)} chunks, median {middle * 1000:.0f} ms each ({min(each) * 1000:.0f} to {max(each) * 1000:.0f})")
    share = middle / CHUNK_SECONDS
    print(f"  {share:.3%} of a chunk of {CHUNK_SECONDS // 60} minutes (limit 2 %: {'kept' if share < 0.02 else 'BROKEN'})")
    print(f"  a chunk's own fixed cost, Ray Data's: {statistics.median(spent['work']) * 1000:.0f} ms with 2 photos")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--chunks", type=int, default=20)
    arguments = parser.parse_args()
    from flows import environment

    environment.prepare()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        process, url = server(root / "server")
        try:
            plain = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
            plain["PREFECT_HOME"] = str(root / "embedded")
            startup(arguments.repeats, plain, {**plain, "PREFECT_API_URL": url}, root)
            os.environ |= {"PREFECT_API_URL": url, "PREFECT_HOME": str(root / "client"), "PREFECT_LOGGING_LEVEL": "ERROR"}
            overhead(arguments.chunks, root)
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()

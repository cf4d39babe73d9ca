"""The cost of Prefect: the start-up of a flow against that of the plain command, and the overhead within a run.

    python benchmarks/prefect_cost.py [--repeats 7] [--images 60]

Start-up: `deeplab segment`, `deeplab run segment` with its embedded server (its database exists already) and the same
with a real server on SQLite take turns on 4 photos that all have a row, so that Ray is not started and only Prefect
differs. Prints the differences of the medians.

Overhead: one run of the flow against the real server, in this process, with a commit every half second. The task `segment` is
timed with and without the function that it calls (task run, states), and the watcher at a commit (event, progress, log line)
and twice a second (progress). The watcher's share is related to a run with the default settings.
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

from measure import machine

EXAMPLES = Path(__file__).parents[1] / "examples" / "pets" / "images"
EVERY = 60  # seconds between commits, by default


def archive(folder: Path, images: int) -> Path:
    folder.mkdir()
    photos = sorted(EXAMPLES.glob("*.jpg"))
    for index in range(images):
        shutil.copy(photos[index % len(photos)], folder / f"photo_{index:05d}.jpg")
    return folder


def seconds(environment: dict[str, str], command: str, photos: Path, results: Path) -> float:
    """Seconds of one command, from its start to its exit."""
    arguments = [*command.split(), str(photos), str(results), "--no-crf"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "flows.cli", *arguments], env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def server(home: Path) -> tuple[Any, str]:
    """Start a Prefect server on a free port; yields its URL."""
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
    for name, durations in times.items():
        middle = statistics.median(durations)
        more = f", {middle - base:+.1f} s" if middle != base else ""
        print(f"  {name:38} {middle:6.1f} s ({min(durations):.1f} to {max(durations):.1f}){more}")


def overhead(images: int, root: Path) -> None:
    """In this process, whose PREFECT_API_URL names the server."""
    from flows import segment as module
    from pipelines.options import SegmentOptions
    from pipelines.segment import run as steps
    from pipelines.segment import stream
    from pipelines.segment.plan import Plan
    from pipelines.segment.run import Outcome, Run, SegmentProgress, Watch

    spent: dict[str, list[float]] = {"task": [], "execute": [], "segment": [], "commit": []}
    task, execute = module.segment, steps.execute

    def timed_task(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = task(*arguments)
        spent["task"].append(time.perf_counter() - start)
        return result

    def timed_execute(run: Run, todo: Plan, watch: Watch) -> Outcome:
        def timed_watch(progress: SegmentProgress) -> None:
            begun = time.perf_counter()
            watch(progress)
            spent.setdefault(progress.phase, []).append(time.perf_counter() - begun)

        start = time.perf_counter()
        outcome = execute(run, todo, timed_watch)
        spent["execute"].append(time.perf_counter() - start)
        return outcome

    vars(module)["segment"], vars(steps)["execute"] = timed_task, timed_execute
    photos = archive(root / "many", images)
    module.segment_archive(SegmentOptions(archive=str(photos), results=str(root / "many-results"), commit_every=0.5, crf=False))
    once = spent["task"][0] - spent["execute"][0]
    commit, tick = statistics.median(spent["commit"]), statistics.median(spent["segment"])
    print(f"overhead: the task `segment` {1000 * once:.0f} ms once a run")
    for name in ("commit", "segment"):
        middle = 1000 * statistics.median(spent[name])
        low, high = 1000 * min(spent[name]), 1000 * max(spent[name])
        print(f"  the watcher, phase {name:8} {len(spent[name]):4} x, median {middle:.1f} ms ({low:.1f} to {high:.1f})")
    share = (commit + tick * EVERY / stream.TICK_SECONDS) / EVERY
    print(f"  {share:.3%} of a run with a commit every {EVERY} s (limit 2 %: {'kept' if share < 0.02 else 'BROKEN'})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", type=int, default=60, help="photos of the run that overhead is measured on")
    arguments = parser.parse_args()
    from flows.console import environment

    environment.prepare()
    print(f"{machine()}, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        process, url = server(root / "server")
        try:
            plain = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
            plain["PREFECT_HOME"] = str(root / "embedded")
            startup(arguments.repeats, plain, {**plain, "PREFECT_API_URL": url}, root)
            os.environ |= {"PREFECT_API_URL": url, "PREFECT_HOME": str(root / "client"), "PREFECT_LOGGING_LEVEL": "ERROR"}
            overhead(arguments.images, root)
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()

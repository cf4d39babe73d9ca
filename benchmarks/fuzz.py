"""Thousands of broken images: through the decoder in a separate process, then through the whole pipeline.

    python benchmarks/fuzz.py [--files 10000] [--seed 0]

Passes if the decoder returned pixels or an error for each file and never died, if no file took more than MOST_MB, and if the
pipeline wrote exactly one row for each. Files that kill the decoder are kept under --keep and named.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import toy
from measure import apart

from tests.mutations import variants

# 60 million pixels in four channels, and once more as RGB: the need of the largest accepted file.
MOST_MB = 900

DECODE = """
import resource, sys, time
from pathlib import Path
from deeplab.errors import ImageError
from deeplab.images.decoding import decode

def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])

for path in (Path(line) for line in sys.stdin.read().splitlines()):
    data = path.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = status("VmRSS:"), time.process_time()
    print(path.name, end="\\t", flush=True)
    try:
        outcome = f"ok {decode(data).shape}"
    except ImageError as error:
        outcome = f"refused {error}"
    print(outcome, (status("VmHWM:") - before) // 1024, time.process_time() - start, sep="\\t", flush=True)
"""


def decode_all(paths: list[Path], keep: Path) -> None:
    """Every file in a child process, which is restarted after a file that ends it."""
    outcomes: Counter[str] = Counter()
    largest, slowest, fatal, left = (0, ""), (0.0, ""), [], paths
    while left:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", DECODE],
            input="\n".join(map(str, left)),
            capture_output=True,
            text=True,
            check=False,
        )
        lines = done.stdout.splitlines()
        whole = [fields for fields in (line.split("\t") for line in lines) if len(fields) == 4]
        for name, outcome, megabytes, seconds in whole:
            outcomes[outcome.split()[0]] += 1
            largest, slowest = max(largest, (int(megabytes), name)), max(slowest, (float(seconds), name))
        if len(whole) < len(left):
            fatal.append(left[len(whole)])
            keep.mkdir(parents=True, exist_ok=True)
            (keep / fatal[-1].name).write_bytes(fatal[-1].read_bytes())
            print(f"{fatal[-1].name}: ended the process with {done.returncode}: {done.stderr[-300:]}", flush=True)
        left = left[len(whole) + 1 :]
    print(f"decode: {dict(outcomes)}, {len(fatal)} ended the process (kept in {keep})" if fatal else f"decode: {dict(outcomes)}")
    print(f"most memory {largest[0]} MB ({largest[1]}), most CPU {slowest[0]:.2f} s ({slowest[1]})", flush=True)
    if fatal or largest[0] > MOST_MB:
        raise SystemExit(1)


def pipeline(archive: Path, model: Path, folder: Path) -> tuple[dict[str, int], int, int]:
    """Rows by status, all rows, and different images of a run of the whole pipeline over the files."""
    os.setsid()
    from pipelines.options import SegmentOptions
    from pipelines.segment import run as segment
    from pipelines.table.results_table import ResultsTable

    results = folder / "results"
    options = SegmentOptions(archive=str(archive), results=str(results), model=str(model), crf=False, max_error_rate=1.0)
    run = toy.begin(options)
    listed = segment.take_inventory(run, folder)
    todo = segment.make_plan(run, listed, folder)
    segment.check(run, listed, todo, segment.execute(run, todo))
    rows = ResultsTable.open(str(results)).query("SELECT uri, status FROM results").fetchall()
    return dict(Counter(status for _, status in rows)), len(rows), len({uri for uri, _ in rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder for files that end the decoder")
    parser.add_argument("--pipeline", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="deeplab-fuzz-") as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        for name, data in variants(arguments.files, arguments.seed):
            (folder / "photos" / name).write_bytes(data)
        decode_all(sorted((folder / "photos").iterdir()), arguments.keep)
        if arguments.pipeline:
            model = apart(toy.make_model, folder / "model").result
            cost = apart(pipeline, folder / "photos", model, folder)
            by_status, rows, images = cost.result
            print(f"pipeline: {rows} rows {by_status} of {images} images; driver {cost}")
            assert rows == images == arguments.files


if __name__ == "__main__":
    main()

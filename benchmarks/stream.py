"""Whether commits slow a run down, and how many blocks one Ray Data execution can handle.

    python benchmarks/stream.py [--images 10000] [--workers 12] [--seconds 0.1]
    python benchmarks/stream.py blocks [--blocks 20000]

Commits: a network that sleeps `--seconds` an image, in `--workers` processes, over tiny photos: first with one commit at the
end, then with one every 5 s, then with about 100. A run is measured from its first row's `segmented_at` to its last's, and
compared with images * seconds / workers. A row gets its time when its window of images is done, so one window is added. A short
run in the same Ray starts all processes beforehand.

Older versions cut a run into chunks with a commit each. Copied to such a checkout, with toy.py and measure.py, this file runs
with 1, 10 and 100 chunks.

Blocks: a plan whose blocks hold one image goes through `pipelines.segment.stream` with a stage that does nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import measure
import toy

GIB = 1 << 30


def start_ray(workers: int) -> None:
    """Start Ray as `connection.session` does, but for more tasks than this machine has cores and memory for: they mostly sleep."""
    import ray

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    os.environ |= {"RAY_num_workers_soft_limit": str(2 * workers + 2)}
    ray.init(
        address="local",
        num_cpus=workers,
        _memory=2 * (workers + 1) * GIB,
        object_store_memory=GIB,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def segment(options: Any) -> str:
    """Run `deeplab segment` in the Ray of this process; returns the model's label."""
    from pipelines.segment import run as steps

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "chunk_size" in type(options).model_fields:
            toy.register()
            chunked: Any = steps.Segmentation(options, folder)  # type: ignore[attr-defined]
            chunked.source = toy.carried(chunked.source)
            chunked.take_inventory()
            chunked.make_plan()
            with chunked.chunks() as chunks:
                for work in chunks:
                    chunked.run_chunk(work)
            return str(chunked.check().model)
        run = toy.begin(options)
        listed = steps.take_inventory(run, folder)
        todo = steps.make_plan(run, listed, folder)
        return steps.check(run, listed, todo, steps.execute(run, todo)).model


def settings(images: int, ideal: float) -> dict[str, dict[str, Any]]:
    """The options of each run, by its name."""
    from pipelines.options import SegmentOptions

    if "chunk_size" in SegmentOptions.model_fields:
        return {f"{count} chunk{'s' * (count > 1)}": {"chunk_size": -(-images // count)} for count in (1, 10, 100)}
    every = {"at the end": 86400.0, "every 5 s": 5.0, f"every {ideal / 100:.2g} s": ideal / 100}
    return {name: {"commit_every": seconds} for name, seconds in every.items()}


def commits(images: int, workers: int, seconds: float) -> None:
    from pipelines.options import SegmentOptions
    from pipelines.segment.read_ahead import WINDOW
    from pipelines.table.results_table import ResultsTable

    ideal = images * seconds / workers
    print(f"{measure.machine()}; {images:,} photos, {workers} processes, {seconds} s an image: ideal {ideal:.1f} s")
    start_ray(workers)
    with tempfile.TemporaryDirectory(prefix="deeplab-stream-") as name:
        root = Path(name)
        common: dict[str, Any] = {"archive": str(toy.make_photos(root / "photos", images)), "crf": False}
        common["model"] = str(toy.make_model(root / "model", seconds))
        warm = min(images, 60 * workers)
        segment(SegmentOptions(**common, results=str(root / "warm"), limit=warm))
        print(f"{'commits':>12} {'seconds':>8} {'of ideal':>8} {'commits':>8} {'files':>6} {'rows a file':>11}")
        for number, (title, options) in enumerate(settings(images, ideal).items()):
            label = segment(SegmentOptions(**common, **options, results=str(root / str(number))))
            table = ResultsTable.open(str(root / str(number)))
            rows = table.dataset(label).to_table(columns=["uri", "segmented_at"])
            assert len(set(rows["uri"].to_pylist())) == rows.num_rows == images
            times = rows["segmented_at"].to_pylist()
            spent = (max(times) - min(times)).total_seconds() + WINDOW * seconds
            count = sum("images" in entry for entry in table.delta.history())
            files = len(table.files(label))
            print(f"{title:>12} {spent:8.1f} {ideal / spent:8.3f} {count:8} {files:6} {images / files:11.0f}", flush=True)


def nothing(block: Any, model: Any, task: Any, register: Any) -> Any:
    """The stage of `blocks`: takes the input of `stages.whole` and returns no rows."""
    from pipelines.segment.stages import ROWS

    return ROWS.empty_table()


class Count:
    """Replaces the sink: counts blocks, and notes when the first arrived."""

    def __init__(self) -> None:
        self.blocks = 0
        self.first = 0.0

    def take(self, blocks: Iterable[Any]) -> None:
        for _ in blocks:
            self.first = self.first or time.perf_counter()
            self.blocks += 1

    def check(self) -> None:
        """Nothing can fail."""


def through(count: int, workers: int, folder: Path) -> Count:
    """Send `count` blocks of one image through `pipelines.segment.stream`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray

    from pipelines.segment import plan, stream
    from pipelines.segment.parallelism import Parallelism

    path = folder / f"{count}.parquet"
    uris = [f"s3://archive/photos/{index // 1000:06d}/image-{index:09d}.jpg" for index in range(count)]
    pq.write_table(pa.table({"uri": uris, "version": ["0" * 32] * count, "bytes": [1] * count}, schema=plan.SCHEMA), path)
    todo = plan.Plan(path, "m", 0, images=count, done=0, archive=count)
    parallelism = Parallelism(block_images=1, block_bytes=1, slots=workers, cores=workers, cpus=1.0, memory=0.0)
    sink = Count()
    with ExitStack() as after:
        stream.run(todo, ray.put(None), None, parallelism, sink, lambda: True, after)  # type: ignore[arg-type]  # Count replaces the sink
    assert sink.blocks == count
    return sink


def blocks(count: int, workers: int) -> None:
    import stream as this  # as a module by this name: its stage travels by value
    from ray import cloudpickle

    from pipelines.segment import stream

    cloudpickle.register_pickle_by_value(this)
    vars(stream)["whole"] = this.nothing
    stream.EXECUTION_BLOCKS = count
    print(f"{measure.machine()}; {count:,} blocks of one image, {workers} processes")
    start_ray(workers)
    with tempfile.TemporaryDirectory(prefix="deeplab-stream-") as name:
        through(100, workers, Path(name))  # imports, and the first start of everything
        memory, began, cpu = measure.peak_memory(), time.perf_counter(), time.process_time()
        sink = through(count, workers, Path(name))
        cpu, seconds, grown = time.process_time() - cpu, time.perf_counter() - began, measure.peak_memory() - memory
    print(f"{seconds:.1f} s to the last block, {sink.first - began:.1f} s to the first")
    print(f"driver: {1000 * cpu / count:.2f} ms of CPU a block; memory {memory:.0f} MB before, {grown:.0f} MB more at the peak, "
          f"{1024 * grown / count:.1f} KB a block")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["commits", "blocks"], default="commits")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=12, help="processes that work at once")
    parser.add_argument("--seconds", type=float, default=0.1, help="seconds that the network sleeps per image")
    parser.add_argument("--blocks", type=int, default=20_000)
    arguments = parser.parse_args()
    if arguments.what == "blocks":
        blocks(arguments.blocks, arguments.workers)
    else:
        commits(arguments.images, arguments.workers, arguments.seconds)


if __name__ == "__main__":
    main()

"""Planning at scale: an inventory of 1,000,000 rows against a table of 900,000, with real files and real code.

    python benchmarks/planning.py [--rows 1000000] [--done 900000]

Prints seconds and the driver's peak memory; the peer is the same anti-join in pandas (`merge`), in its own process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

MODEL = "m@000000000000"


def uris(start: int, stop: int) -> list[str]:
    return [f"s3://archive/photos/{index // 10000:06d}/image-{index:09d}.jpg" for index in range(start, stop)]


def make(root: Path, rows: int, done: int) -> tuple[Path, Path]:
    """An inventory and a results table (whose masks are 64 bytes) that holds its first `done` rows."""
    from pipelines.inventory import SCHEMA
    from pipelines.results import FILE_SCHEMA, ResultsTable
    from pipelines.sink import ROWS_PER_FILE, write_part

    inventory = root / "inventory.parquet"
    with pq.ParquetWriter(inventory, SCHEMA) as writer:
        for start in range(0, rows, 100_000):
            names = uris(start, min(rows, start + 100_000))
            versions = [f"{hash(name) & 0xFFFFFFFFFFFFFFFF:016x}-1700000000000000000" for name in names]
            writer.write_table(pa.table([names, [100_000] * len(names), versions], schema=SCHEMA))
    table = ResultsTable.ensure(str(root / "results"))
    now = datetime.now(UTC)
    parts = []
    with pq.ParquetFile(inventory) as source:
        taken = 0
        for batch in source.iter_batches(batch_size=ROWS_PER_FILE):
            batch = batch.slice(0, min(batch.num_rows, done - taken))
            if not batch.num_rows:
                break
            taken += batch.num_rows
            size = batch.num_rows
            columns = {
                "uri": batch["uri"],
                "version": batch["version"],
                "status": pa.array(["ok"] * size),
                "error": pa.nulls(size, pa.string()),
                "height": pa.array([375] * size, pa.int32()),
                "width": pa.array([500] * size, pa.int32()),
                "mask": pa.array([b"\0" * 64] * size, pa.binary()),
                "class_pixels": pa.array([[("background", 187500)]] * size, FILE_SCHEMA.field("class_pixels").type),
                "confidence": pa.array([0.9] * size, pa.float32()),
                "refined": pa.nulls(size, pa.string()),
                "run": pa.array(["run-0"] * size),
                "segmented_at": pa.array([now] * size, FILE_SCHEMA.field("segmented_at").type),
            }
            parts.append(write_part(table.uri, MODEL, pa.table(columns)).add_action(MODEL))
    for start in range(0, len(parts), 5):  # 20,000 rows a commit, as the default chunk
        table.commit(f"chunk-{start}", parts[start : start + 5])
    return inventory, root / "results"


def ours(inventory: Path, results: Path) -> int:
    from pipelines import plan
    from pipelines.results import ResultsTable

    with tempfile.TemporaryDirectory() as folder:
        todo = plan.make(inventory, ResultsTable.open(str(results)), MODEL, Path(folder) / "plan.parquet")
        return sum(chunk.images.num_rows for chunk in todo.chunks())


def pandas_merge(inventory: Path, results: Path) -> int:
    from deltalake import DeltaTable

    left = pq.read_table(inventory).to_pandas()
    right = DeltaTable(str(results)).to_pandas(columns=["uri", "version"])
    merged = left.merge(right, on=["uri", "version"], how="left", indicator=True)
    return int((merged["_merge"] == "left_only").sum())


def measured(work: Callable[[Path, Path], int], inventory: Path, results: Path, queue: multiprocessing.Queue) -> None:
    start = time.perf_counter()
    images = work(inventory, results)
    queue.put((images, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--done", type=int, default=900_000)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        inventory, results = make(Path(folder), arguments.rows, arguments.done)
        figures = {}
        for name, work in (("plan.make", ours), ("pandas merge", pandas_merge)):
            queue = context.Queue()
            process = context.Process(target=measured, args=(work, inventory, results, queue))
            process.start()
            figures[name] = images, seconds, memory = queue.get()
            process.join()
            print(f"{name:13} {images} images to do of {arguments.rows} rows in {seconds:.1f} s, peak memory {memory:.0f} MB")
        assert figures["plan.make"][0] == figures["pandas merge"][0] == arguments.rows - arguments.done
        print(f"ratio of time to pandas {figures['plan.make'][1] / figures['pandas merge'][1]:.2f}x, of memory "
              f"{figures['plan.make'][2] / figures['pandas merge'][2]:.2f}x")  # fmt: skip


if __name__ == "__main__":
    main()

"""Planning at scale: an inventory of 1,000,000 rows against a table of 900,000, with real files and real code.

    python benchmarks/planning.py [--rows 1000000] [--done 900000] [--no-peer]

Prints seconds and the driver's peak memory of reading the rows of a Parquet inventory, of planning, and of the check at a
run's end. Planning is compared with the same anti-join in pandas (`merge`). Each runs in a separate process.
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from measure import apart

MODEL = "m@000000000000"


def uris(start: int, stop: int) -> list[str]:
    return [f"s3://archive/photos/{index // 10000:06d}/image-{index:09d}.jpg" for index in range(start, stop)]


def make(root: Path, rows: int, done: int) -> tuple[Path, Path]:
    """An inventory and a results table (whose masks are 64 bytes) that holds its first `done` rows."""
    from pipelines.archive.inventory import SCHEMA
    from pipelines.table.commit import ROWS_PER_FILE, write_part
    from pipelines.table.results_table import ResultsTable
    from pipelines.table.schema import FILE_SCHEMA

    inventory = root / "listed.parquet"
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
                "read_version": pa.nulls(size, pa.string()),
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
    for start in range(0, len(parts), 5):  # 20,000 rows a commit
        table.commit(f"run-{start}", 1, parts[start : start + 5], model=MODEL)
    return inventory, root / "results"


def take(listed: Path, inventory: Path) -> int:
    """Number of rows that `inventory.take` reads from a foreign Parquet inventory."""
    from pipelines.archive.inventory import take

    return take(str(listed), inventory).images


def ours(inventory: Path, results: Path, todo: Path) -> int:
    from pipelines.segment import plan
    from pipelines.segment.parallelism import CORE_BLOCK
    from pipelines.table.results_table import ResultsTable

    planned = plan.make(inventory, ResultsTable.open(str(results)), MODEL, todo)
    return sum(block.num_rows for block in planned.blocks(16, *CORE_BLOCK))


def check(results: Path, todo: Path) -> tuple[int, int]:
    """The check at the end of `segment`: planned images without a row, and duplicate rows."""
    from pipelines.table.counts import lost_and_doubled
    from pipelines.table.results_table import ResultsTable

    return lost_and_doubled(ResultsTable.open(str(results)), MODEL, todo)


def pandas_merge(inventory: Path, results: Path) -> int:
    from deltalake import DeltaTable

    left = pq.read_table(inventory).to_pandas()
    right = DeltaTable(str(results)).to_pandas(columns=["uri", "version"])
    merged = left.merge(right, on=["uri", "version"], how="left", indicator=True)
    return int((merged["_merge"] == "left_only").sum())


def run(rows: int, done: int, peer: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listed, results = apart(make, folder, rows, done).result
        inventory, todo = folder / "taken.parquet", folder / "plan.parquet"
        cost = apart(take, listed, inventory)
        print(f"{'inventory':13} {cost.result} rows taken over in {cost}", flush=True)
        planned = apart(ours, inventory, results, todo)
        print(f"{'plan.make':13} {planned.result} images to do of {rows} rows in {planned}", flush=True)
        cost = apart(check, results, todo)
        print(f"{'check':13} of {planned.result} planned images {cost.result[0]} without a row, found in {cost}", flush=True)
        assert planned.result == cost.result[0] == rows - done and cost.result[1] == 0
        if peer:
            other = apart(pandas_merge, inventory, results)
            print(f"{'pandas merge':13} {other.result} images to do of {rows} rows in {other}")
            assert other.result == planned.result
            print(f"ratio of time to pandas {planned.seconds / other.seconds:.2f}x, of memory {planned.memory / other.memory:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--done", type=int, default=900_000)
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    run(arguments.rows, arguments.done, arguments.peer)


if __name__ == "__main__":
    main()

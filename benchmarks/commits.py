"""Commits a minute, and what a long log does to them (`python benchmarks/scale.py commits`)."""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

MODEL = "m@000000000000"
FILES = 5  # a chunk of 20,000 images makes so many


def part(table_uri: str, number: int) -> object:
    """One small part file, really written."""
    import pyarrow as pa

    from pipelines.results import FILE_SCHEMA
    from pipelines.sink import write_part

    row = {"version": "1", "status": "ok", "height": 2, "width": 3, "mask": b"png", "class_pixels": [("background", 6)]}
    row |= {"confidence": 0.5, "run": "run-0", "segmented_at": datetime.now(UTC)}
    rows = [{**row, "uri": f"s3://archive/photos/{number:06d}/image-{index:09d}.jpg"} for index in range(10)]
    return write_part(table_uri, MODEL, pa.Table.from_pylist(rows, schema=FILE_SCHEMA))


def grow(root: Path, count: int) -> tuple[float, float]:
    """A table on disk with `count` commits of a part each; CPU seconds of a commit in the first and in the last tenth."""
    from pipelines.results import ResultsTable

    table = ResultsTable.ensure(str(root))
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda number: part(table.uri, number), range(count)))
    spent = []
    for number, each in enumerate(parts):
        start = time.process_time()
        table.commit(f"chunk-{number}", [each.add_action(MODEL)])  # type: ignore[attr-defined]
        spent.append(time.process_time() - start)
    return statistics.fmean(spent[: len(spent) // 10]), statistics.fmean(spent[-len(spent) // 10 :])


def copy(root: Path, prefix: str) -> None:
    """A table on disk, object by object to S3; its log is the same there."""
    from pipelines import s3

    paths = [path for path in root.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda path: s3.put(f"{prefix}/{path.relative_to(root)}", path.read_bytes()), paths))


def timed(uri: str, tries: int) -> dict[str, float]:
    """Medians in seconds: opening the table as it is now and as it was when the run began, writing a chunk's parts, committing.

    A commit is the sink's: it looks what other runs brought, commits under the chunk's transaction and reads the log on.
    """
    from pipelines.results import ResultsTable
    from pipelines.sink import ResultsSink

    planned = ResultsTable.ensure(uri).version
    spent: dict[str, list[float]] = {"open": [], "open as planned": [], "write": [], "commit": []}

    def clock(name: str, start: float) -> None:
        spent[name].append(time.perf_counter() - start)

    for number in range(tries):
        start = time.perf_counter()
        ResultsTable.open(uri)
        clock("open", start)
        start = time.perf_counter()
        ResultsTable.open(uri, planned)
        clock("open as planned", start)
        start = time.perf_counter()
        parts = [part(uri, 1_000_000 + FILES * number + index) for index in range(FILES)]
        clock("write", start)
        sink = ResultsSink(uri, MODEL, "run-0", f"timed-{planned}-{number}", FILES * 10, planned)
        start = time.perf_counter()
        sink.on_write_complete(SimpleNamespace(write_returns=[parts]))
        clock("commit", start)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    return medians | {"slowest commit": max(spent["commit"])}


def show(name: str, figures: dict[str, float]) -> None:
    rate = 60 / figures["commit"]
    rest = ", ".join(f"{key} {1000 * value:.0f} ms" for key, value in figures.items())
    print(f"{name}: {rate:.0f} commits a minute; {rest}", flush=True)


def run(folder: Path, grown: int, tries: int, with_s3: bool) -> None:
    show("new table on disk", timed(str(folder / "new"), tries))
    first, last = grow(folder / "grown", grown)
    log = list((folder / "grown" / "_delta_log").iterdir())
    checkpoints = sum("checkpoint" in path.name for path in log)
    size = sum(path.stat().st_size for path in log) / 1e6
    print(f"grown to {grown} commits at {1000 * first:.0f} ms of CPU each in the first tenth, {1000 * last:.0f} in the last; "
          f"log {size:.0f} MB, {checkpoints} checkpoints", flush=True)  # fmt: skip
    if with_s3:
        from tests import s3_server

        (folder / "server").mkdir()
        server = s3_server.Server(folder / "server")
        os.environ.update(server.environment)
        server.start()
        try:
            show("new table on S3", timed(f"s3://{s3_server.BUCKET}/new", tries))
            copy(folder / "grown", f"s3://{s3_server.BUCKET}/grown")
            show(f"table on S3 after {grown} commits", timed(f"s3://{s3_server.BUCKET}/grown", tries))
        finally:
            server.kill()
    show(f"table on disk after {grown} commits", timed(str(folder / "grown"), tries))

"""Commits per minute, and the effect of a long log (`python benchmarks/scale.py commits`)."""

from __future__ import annotations

import json
import os
import statistics
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from pipelines.storage import s3
from pipelines.table.commit import Committer, PartFile, write_part
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import FILE_SCHEMA
from tests import s3_server

MODEL = "m@000000000000"
FILES = 5  # of a commit of 20,000 images


def part(table_uri: str, number: int) -> PartFile:
    """Write one small part file."""
    row = {"version": "1", "status": "ok", "height": 2, "width": 3, "mask": b"png", "class_pixels": [("background", 6)]}
    row |= {"confidence": 0.5, "run": "run-0", "segmented_at": datetime.now(UTC)}
    rows = [{**row, "uri": f"s3://archive/photos/{number:06d}/image-{index:09d}.jpg"} for index in range(10)]
    return write_part(table_uri, MODEL, pa.Table.from_pylist(rows, schema=FILE_SCHEMA))


def grow(root: Path, count: int) -> None:
    """A table on disk with `count` commits of FILES parts each.

    The first is real; its entry in the log is then repeated under other names, as 10,000 real ones would take an hour
    with nothing to learn from them. The checkpoint at the end is real again. The parts of the others are not there:
    commits never read parts of their own run.
    """
    table = ResultsTable.ensure(str(root))
    table.commit("run-0", 1, [part(table.uri, number).add_action(MODEL) for number in range(FILES)], model=MODEL)
    log = root / "_delta_log"
    entry = [json.loads(line) for line in (log / f"{table.version:020d}.json").read_text().splitlines()]
    for number in range(1, count):
        for action in entry:
            if "add" in action:
                action["add"]["path"] = f"{action['add']['path'].rpartition('-')[0]}-{uuid.uuid4().hex}.parquet"
            if "txn" in action and action["txn"]["appId"].startswith("run-"):
                action["txn"]["appId"] = f"run-{number}"
            elif "txn" in action:
                action["txn"]["version"] = table.version + number
        (log / f"{table.version + number:020d}.json").write_text("\n".join(map(json.dumps, entry)) + "\n")
    ResultsTable.open(str(root)).delta.create_checkpoint()


def copy(root: Path, prefix: str) -> None:
    """Copy a table from disk to S3, object by object, with the same log."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda path: s3.put(f"{prefix}/{path.relative_to(root)}", path.read_bytes()), paths))


def timed(uri: str, tries: int) -> dict[str, float]:
    """Medians in seconds: opening the table as it is now and as it was when the run began, writing the parts, committing.

    The commits are one run's: each looks what other runs brought, goes under the run's next transaction and reads the log on.
    """
    planned = ResultsTable.ensure(uri).version
    committer = Committer(uri, MODEL, "run-0", planned)
    spent: dict[str, list[float]] = {"open": [], "open as planned": [], "write": [], "commit": []}
    cpu = []

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
        committer.add(parts)
        start, before = time.perf_counter(), time.process_time()
        committer.commit()
        clock("commit", start)
        cpu.append(time.process_time() - before)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    return medians | {"slowest commit": max(spent["commit"]), "CPU of a commit": statistics.median(cpu)}


def show(name: str, figures: dict[str, float]) -> None:
    rate = 60 / figures["commit"]
    rest = ", ".join(f"{key} {1000 * value:.0f} ms" for key, value in figures.items())
    print(f"{name}: {rate:.0f} commits a minute; {rest}", flush=True)


def run(folder: Path, grown: int, tries: int, with_s3: bool) -> None:
    show("new table on disk", timed(str(folder / "new"), tries))
    grow(folder / "grown", grown)
    if with_s3:
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

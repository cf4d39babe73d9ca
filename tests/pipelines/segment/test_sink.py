"""Finished blocks on their way into the table: each row once, whatever is written where, and what cannot be written is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.segment import sink as sinks
from pipelines.segment.sink import Sink
from pipelines.segment.stages import ROWS
from pipelines.storage import filesystems
from pipelines.storage.storage_errors import Outage, StorageError
from pipelines.table.commit import Committed, Committer
from pipelines.table.results_table import ResultsTable

pytestmark = pytest.mark.usefixtures("running_ray")
MODEL = "m@000000000000"


@dataclass(frozen=True)
class Metadata:
    num_rows: int
    size_bytes: int


@dataclass(frozen=True)
class Finished:
    """A block as Ray Data hands it over."""

    ref: Any
    metadata: Metadata


def finished(first: int, count: int) -> Finished:
    import ray

    base = {"version": "1", "status": "error", "error": "decode: empty", "run": "run", "segmented_at": datetime.now(UTC)}
    base |= {"node": "here/1", "seconds": [("read", 0.5)]}
    rows = pa.Table.from_pylist([{**base, "uri": f"file:///{index:04d}"} for index in range(first, first + count)], schema=ROWS)
    return Finished(ray.put(rows), Metadata(count, rows.nbytes))


@pytest.fixture
def committer(tmp_path: Path) -> Committer:
    table = ResultsTable.ensure(str(tmp_path / "results"))
    return Committer(table.uri, MODEL, "run", table.version)


def stored(committer: Committer) -> list[str]:
    rows = ResultsTable.open(committer.table.uri).query("SELECT uri FROM results ORDER BY uri").fetchall()
    return [uri for (uri,) in rows]


@pytest.mark.parametrize("small", [0, 1 << 30])
def test_every_row_is_committed_once_whoever_writes_it(committer: Committer, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    """Blocks come while others are written, by tasks because there are enough of them or by the commits that fall due."""
    monkeypatch.setattr(sinks, "ROWS_PER_FILE", 12)
    monkeypatch.setattr(sinks, "SMALL_BYTES", small)
    monkeypatch.setattr(sinks, "TICK_SECONDS", 0.001)
    with Sink(committer, every=0.01) as sink:
        for index in range(60):
            sink.take([finished(4 * index, 4)])
    assert stored(committer) == [f"file:///{index:04d}" for index in range(240)]
    done = sink.committed
    assert (done.images, done.errors, done.nodes, sink.finished) == (240, 240, {"here/1": 240}, 240)
    assert done.seconds["read"] == pytest.approx(120)
    assert done.commits > 1


def failing(times: int, error: Exception, then: Callable[[], Committed]) -> Callable[[], Committed]:
    left = [times]

    def commit() -> Committed:
        if left[0] > 0:
            left[0] -= 1
            raise error
        return then()

    return commit


def test_a_store_that_is_away_for_a_while_is_waited_for(committer: Committer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(committer, "commit", failing(40, Outage("away"), committer.commit))
    with Sink(committer, every=0.01) as sink:
        sink.take([finished(0, 4)])
    assert len(stored(committer)) == 4


def until_trouble(committer: Committer) -> None:
    """One block, and the next when something went wrong with it."""
    with Sink(committer, every=0.01) as sink:
        sink.take([finished(0, 4)])
        while sink.trouble is None:
            pass
        sink.take([finished(4, 4)])


def test_a_refusal_stops_the_stream_and_what_is_finished_is_tried_once_more(
    committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "commit", failing(1, StorageError("read-only"), committer.commit))
    with pytest.raises(StorageError, match="read-only"):
        until_trouble(committer)
    assert len(stored(committer)) == 4 and committer.uncommitted == 0


def test_blocks_that_could_not_be_written_are_written_by_the_next_try(
    committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = sinks.write_blocks, []

    def full_once(*arguments: Any) -> Any:
        tries.append(arguments)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(sinks, "write_blocks", full_once)
    with pytest.raises(OSError, match="No space left"):
        until_trouble(committer)
    assert len(stored(committer)) == 4

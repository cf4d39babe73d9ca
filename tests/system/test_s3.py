"""The whole command against a real S3 server: archive and table in buckets, the store gone in mid-run, two runs at once."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.archive import inventory
from pipelines.segment import plan
from pipelines.storage import s3 as store
from pipelines.table.results_table import ResultsTable
from pipelines.upkeep import verification
from tests import s3_server
from tests.material import photo
from tests.pipelines.archive.test_listed_archives import report
from tests.processes import wait_for
from tests.s3_proxy import Faults, Proxy
from tests.system.conftest import PATIENCE
from tests.system.test_kills import finish

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]
Start = Callable[..., subprocess.Popen[str]]
QUICK = ("--scales", "1", "--no-crf")


def rows(results: str) -> list[tuple[str, str]]:
    """(uri, version) of every row."""
    return ResultsTable.open(results).query("SELECT uri, version FROM results ORDER BY 1, 2").fetchall()


def committed(results: str) -> int:
    try:
        return len(rows(results))
    except Exception:  # not there yet
        return 0


def test_an_archive_on_s3_becomes_a_table_on_s3(start: Start, s3: str, s3_archive: str, model: Path, tmp_path: Path) -> None:
    command = ("segment", s3_archive, f"{s3}/results", "--model", str(model), "--max-error-rate", "0.5", *QUICK)
    first = finish(start, *command)
    assert (first["images"], first["errors"]) == (13, 1)
    store.put(f"{s3_archive}/a/photo 00.jpg", photo(99))
    again = finish(start, *command)
    assert (again["images"], again["already"]) == (1, 12)  # a new ETag is a new version
    found = rows(f"{s3}/results")
    assert len(found) == len(set(found)) == 14
    table = ResultsTable.open(f"{s3}/results")
    todo = plan.make(inventory.take(s3_archive, tmp_path / "i.parquet").path, table, str(first["model"]), tmp_path / "p.parquet")
    assert todo.images == 0
    written = "".join(store.get(uri)[0].decode(errors="replace") for uri, _, _ in everything(f"{s3}/results"))
    assert s3_server.SECRET not in written


def test_a_report_older_than_an_object_is_done_once(start: Start, s3: str, s3_archive: str, model: Path, tmp_path: Path) -> None:
    archive, results, changed = report(f"{s3}/report", s3_archive, "Parquet"), f"{s3}/results", f"{s3_archive}/a/photo 00.jpg"
    listed = store.head(changed)
    store.put(changed, photo(99))
    now = store.head(changed)
    assert listed is not None and now is not None
    done = finish(start, "segment", archive, results, "--model", str(model), "--max-error-rate", "0.5", *QUICK)
    assert (done["images"], done["errors"]) == (13, 1)
    table = ResultsTable.open(results)
    versions = table.query("SELECT version, read_version FROM results WHERE read_version IS NOT NULL OR uri = ?", [changed])
    assert versions.fetchall() == [(listed[1], now[1])]
    for again in (archive, s3_archive):  # nothing is left to do by the report, nor by a listing of today
        verdict = verification.verify(table, again, str(done["model"]))
        assert (verdict.problems, verdict.pending) == ([], 0)


def everything(prefix: str) -> list[tuple[str, int, str]]:
    """All objects of a table, its log too (whose name does not begin with a dot)."""
    return list(store.list_objects(prefix))


def test_a_store_that_is_gone_in_mid_run_is_waited_for(start: Start, s3: str, s3_process: s3_server.Server, model: Path) -> None:
    for index in range(40):
        store.put(f"{s3}/photos/{index:02d}.jpg", photo(index))
    command = ("segment", f"{s3}/photos", f"{s3}/results", "--model", str(model), "--commit-every", "0.5", *QUICK)
    process = start(*command)
    wait_for(lambda: committed(f"{s3}/results") >= 4 or process.poll() is not None, "a first commit")
    assert process.poll() is None
    s3_process.kill()
    time.sleep(30)
    s3_process.start()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    found = rows(f"{s3}/results")
    assert len(found) == len(set(found)) == 40


@pytest.mark.nightly
def test_two_runs_on_one_table_at_once_leave_one_row_per_image(start: Start, s3: str, model: Path) -> None:
    for index in range(30):
        store.put(f"{s3}/photos/{'ab'[index % 2]}/{index:02d}.jpg", photo(index))
    common = (f"{s3}/results", "--model", str(model), "--max-error-rate", "0", *QUICK)
    whole = start("segment", f"{s3}/photos", *common, "--commit-every", "1")
    half = start("segment", f"{s3}/photos/a", *common, "--commit-every", "0.3")
    for process in (whole, half):
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
    found = rows(f"{s3}/results")
    assert len(found) == len(set(found)) == 30


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(refused=0.1), id="a tenth of the answers is 503", marks=pytest.mark.nightly),
        pytest.param(Faults(lost=0.1), id="a tenth of the answers is lost"),
        pytest.param(Faults(delay=0.15), id="slow", marks=pytest.mark.nightly),
    ],
)
def test_a_store_that_misbehaves_costs_nothing_but_time(
    start: Start, s3: str, s3_process: s3_server.Server, model: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost answer to a commit is the hard one: the second try finds its own commit there (412), and must not double it."""
    for index in range(40):
        store.put(f"{s3}/photos/{index:02d}.jpg", photo(index))
    proxy = Proxy(s3_process.environment["AWS_ENDPOINT_URL"], faults)
    proxy.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        command = ("segment", f"{s3}/photos", f"{s3}/results", "--model", str(model), "--commit-every", "1", *QUICK)
        assert finish(start, *command)["images"] == 40
        assert finish(start, *command)["images"] == 0
    finally:
        proxy.stop()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_process.environment["AWS_ENDPOINT_URL"])
    found = rows(f"{s3}/results")
    assert len(found) == len(set(found)) == 40
    assert sum(faults.counts.values()) > 100
    assert faults.delay or faults.counts.keys() > {"none"}

"""Runs through a real server and a served deployment: cancelled, killed, watched, refused. Each is a drill of operations.md."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.serving.settings import limit_name
from flows.watching.progress import slug
from pipelines.storage import filesystems
from tests.flows.conftest import SECRET, Prefect, Served, flow_processes, processes, serve
from tests.material import uris
from tests.processes import wait_for

pytestmark = [
    pytest.mark.drill,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc, by which processes are found: only on Linux"),
]


def events(served: Served, name: str) -> list[Any]:
    """Payloads of the events about this table, oldest first."""
    from prefect.events.filters import EventFilter, EventNameFilter, EventOrder, EventResourceFilter

    resource = f"deeplab.results.{slug(filesystems.canonical(str(served.results)))}"
    wanted = EventFilter(event=EventNameFilter(name=[name]), resource=EventResourceFilter(id=[resource]), order=EventOrder.ASC)
    with served.server.client() as client:
        return [event.payload for event in client.read_events(wanted, limit=50).events]


@pytest.fixture(scope="session")
def orphan(prefect_server: Prefect, prepared: object, tmp_path_factory: pytest.TempPathFactory) -> tuple[Served, Any]:
    """A run that was killed together with its runner. It takes a while to be found out, so this comes early."""
    served = serve(prefect_server, tmp_path_factory.mktemp("orphan"), "orphan")
    run = served.start()
    wait_for(lambda: served.committed() >= 1, "a first commit")
    served.process.kill()
    for pid in flow_processes(run):
        os.kill(pid, signal.SIGKILL)
    assert served.state(run).type.value == "RUNNING"  # nobody is left who could tell
    return served, run


def test_parameters_out_of_bounds_are_refused_by_the_server_with_a_message(served: Served) -> None:
    from prefect.exceptions import PrefectHTTPStatusError

    for bad, message in (({"commit_every": 0}, "minimum of 0"), ({"fusion": "sum"}, "fusion"), ({"tile": 5}, "193")):
        with pytest.raises(PrefectHTTPStatusError, match=message):
            served.start(**bad)


def test_setup_makes_what_is_missing_and_can_be_repeated(
    prefect_server: Prefect, prepared: Callable[[], str], orphan: object
) -> None:
    assert "automation for dead runs: there" in (again := prepared())
    assert "made" not in again
    with prefect_server.client() as client:
        assert client.read_work_pool("deeplab").type == "process"
        limits = client.read_global_concurrency_limits(limit=10, offset=0)
        assert [limit.limit for limit in limits if limit.name.startswith("deeplab-results")] == [1]
        (zombies,) = [found for found in client.read_automations() if found.name.startswith("deeplab")]
        assert zombies.enabled
        assert client.read_variable_by_name("deeplab_hourly_price").value == 0


def test_a_cancelled_run_leaves_its_commits_and_the_one_that_waited_goes_on(served: Served, tmp_path: Path) -> None:
    first = served.start()
    wait_for(lambda: served.state(first).type.value == "RUNNING", "the first run to begin")
    second = served.start(page=tmp_path / "page")
    served.reaches(second, "AwaitingConcurrencySlot")
    wait_for(lambda: served.committed() >= 1, "a first commit")

    def progress() -> Any:
        (found,) = served.artifacts(first, "progress")
        return found if "images done" in found.description else None

    assert 0 <= float(wait_for(progress, "the progress of the first run").data) < 100
    served.cancel(first)
    assert served.ends(first).type.value == "CANCELLED"
    wait_for(lambda: not processes(first), "the cancelled run's processes to end", 30)

    assert served.ends(second).type.value == "COMPLETED"
    assert len(uris(served.results)) == 12
    already = int(served.state(second).message.split(" had a row")[0].split()[-1])
    assert already >= 4
    link, report = sorted(served.artifacts(second, "markdown"), key=lambda artifact: str(artifact.key))
    assert (tmp_path / "page" / "index.html").as_uri() in link.data and "12" in (tmp_path / "page" / "index.html").read_text()
    for text in ("images/s", "Seconds by stage", "Share of the pixels", "Compared with", "data:image/jpeg;base64", "version"):
        assert text in report.data
    assert len(served.artifacts(second, "image")) == 1
    # The server files events a little later.
    (finish,) = wait_for(lambda: events(served, "deeplab.segmentation.finished"), "the event of the finished run")
    *_, commit = events(served, "deeplab.rows.committed")
    assert (finish["images"], finish["already"]) == (commit["images"], already)
    assert commit["version"] == finish["version"]


def test_a_run_that_died_with_its_runner_is_set_to_crashed_by_the_automation(orphan: tuple[Served, Any]) -> None:
    served, run = orphan
    state = served.ends(run)
    assert state.type.value == "CRASHED"
    assert "no heartbeat" in state.message
    wait_for(lambda: not processes(run), "the run's Ray to end")
    assert len(uris(served.results)) == served.committed()


def test_a_killed_run_is_crashed_and_the_next_goes_on_even_while_the_server_is_away(served: Served) -> None:
    first = served.start()
    wait_for(lambda: served.committed() >= 1, "a first commit")
    for pid in flow_processes(first):
        os.kill(pid, signal.SIGKILL)
    assert served.ends(first).type.value == "CRASHED"
    wait_for(lambda: not processes(first), "the killed run's processes to end", 30)
    kept = served.committed()
    assert len(uris(served.results)) == kept

    second = served.start()
    wait_for(lambda: flow_processes(second), "the next run to begin")
    wait_for(lambda: served.state(second).name == "Running", "the next run to run")
    served.server.stop()
    wait_for(lambda: served.committed() == 12, "the rest to be committed without the server")
    served.server.start()
    assert served.ends(second).type.value == "COMPLETED"
    assert len(uris(served.results)) == 12


@pytest.mark.nightly
def test_runs_of_any_deployment_on_one_table_wait_for_each_other_where_it_has_a_limit(served: Served) -> None:
    name = limit_name(filesystems.canonical(str(served.results)))
    with served.server.client() as client:
        client.upsert_global_concurrency_limit_by_name(name, 1)
        client.increment_concurrency_slots([name], slots=1, mode="concurrency")  # as a run of another deployment does
        run = served.start(limit=1)
        wait_for(lambda: [line for line in served.logs(run) if "another run works on" in line], "the run to say that it waits")
        assert served.committed() == 0
        client.release_concurrency_slots([name], slots=1, occupancy_seconds=1)
    assert served.ends(run).type.value == "COMPLETED"
    assert len(uris(served.results)) == 1


def test_our_errors_are_failures_with_their_message(served: Served) -> None:
    state = served.ends(served.start(archive="/nowhere"))
    assert state.type.value == "FAILED"
    assert "/nowhere: no such folder or file" in state.message


def test_no_secret_of_the_environment_is_in_anything_that_the_server_or_a_runner_wrote(
    prefect_server: Prefect, served: Served
) -> None:
    """Parameters, logs, artifacts and events of all runs are rows of one database file; runners' output lies beside it."""
    served.ends(served.start(archive="/nowhere"))
    written = [path for path in prefect_server.home.rglob("*") if path.is_file()]
    assert any(path.name == "prefect.db" for path in written)
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []

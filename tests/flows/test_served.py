"""Runs through a real server and a served deployment: cancelled, killed, watched, refused. Each is a drill of operations.md."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.hooks import MARKER, marked
from pipelines.results import ResultsTable
from tests.flows.conftest import ROOT, Prefect, Served, wait_for

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes of a run through /proc"),
]


def uris(results: Path) -> list[str]:
    """Images with a row; fails when one has two."""
    found = ResultsTable.open(str(results)).dataset().to_table(columns=["uri"])["uri"].to_pylist()
    assert len(found) == len(set(found))
    return found


def processes(run: Any) -> list[int]:
    return list(marked(f"{MARKER}={run}"))


def flow_processes(run: Any) -> list[int]:
    """Of a run's processes those that are not Ray's."""
    return [pid for pid in processes(run) if b"ray" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


def artifacts(server: Prefect, run: Any, kind: str) -> list[Any]:
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType

    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]), type=ArtifactFilterType(any_=[kind]))
    with server.client() as client:
        return client.read_artifacts(artifact_filter=wanted)


def test_parameters_out_of_bounds_are_refused_by_the_server_with_a_message(served: Served) -> None:
    from prefect.exceptions import PrefectHTTPStatusError

    for bad, message in (({"chunk_size": 0}, "minimum of 1"), ({"fusion": "sum"}, "fusion"), ({"tile": 5}, "193")):
        with pytest.raises(PrefectHTTPStatusError, match=message):
            served.start(**bad)


def test_setup_makes_what_is_missing_and_can_be_repeated(prefect_server: Prefect, tmp_path: Path) -> None:
    def setup() -> str:
        command = [sys.executable, "-m", "flows.cli", "setup-prefect", "--results", str(tmp_path / "results")]
        done = subprocess.run(command, env=prefect_server.environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "automation for dead runs: made" in setup()
    assert "made" not in setup()
    with prefect_server.client() as client:
        assert client.read_work_pool("deeplab").type == "process"
        assert [limit.limit for limit in client.read_global_concurrency_limits(limit=10, offset=0) if "results" in limit.name] == [
            1
        ]
        (zombies,) = [found for found in client.read_automations() if found.name.startswith("deeplab")]
        assert zombies.enabled


def test_a_cancelled_run_leaves_its_commits_and_the_one_that_waited_goes_on(served: Served) -> None:
    first = served.start()
    wait_for(lambda: served.state(first).type.value == "RUNNING", "the first run to begin")
    second = served.start()
    wait_for(lambda: served.state(second).name == "AwaitingConcurrencySlot", "the second run to wait")
    wait_for(lambda: served.commits() >= 1, "a first commit")

    def progress() -> Any:
        (found,) = artifacts(served.server, first, "progress")
        return found if "images done" in found.description else None

    assert 0 <= float(wait_for(progress, "the progress of the first run").data) < 100
    with served.server.client() as client:
        from prefect.states import Cancelling

        client.set_flow_run_state(first, Cancelling(), force=True)
    assert served.ends(first).type.value == "CANCELLED"
    wait_for(lambda: not processes(first), "the cancelled run's processes to end", 30)

    assert served.ends(second).type.value == "COMPLETED"
    assert len(uris(served.results)) == 16
    already = int(served.state(second).message.split(" had their row")[0].split()[-1])
    assert already >= 4
    (report,) = artifacts(served.server, second, "markdown")
    for text in ("images/s", "Share of the pixels", "Compared with", "data:image/jpeg;base64"):
        assert text in report.data
    assert len(artifacts(served.server, second, "image")) == 1


def test_a_killed_run_is_crashed_and_the_next_goes_on_even_while_the_server_is_away(served: Served) -> None:
    first = served.start()
    wait_for(lambda: served.commits() >= 1, "a first commit")
    for pid in flow_processes(first):
        os.kill(pid, signal.SIGKILL)
    assert served.ends(first).type.value == "CRASHED"
    wait_for(lambda: not processes(first), "the killed run's processes to end", 30)
    kept = served.commits()
    assert len(uris(served.results)) == 4 * kept

    second = served.start()
    wait_for(lambda: served.commits() > kept, "a commit of the next run")
    served.server.stop()
    during = served.commits()
    wait_for(lambda: served.commits() > min(during, 3), "a commit without the server")
    served.server.start()
    assert served.ends(second).type.value == "COMPLETED"
    assert len(uris(served.results)) == 16


def test_our_errors_are_failures_with_their_message(served: Served) -> None:
    state = served.ends(served.start(archive="/nowhere"))
    assert state.type.value == "FAILED"
    assert "/nowhere: no such folder or file" in state.message

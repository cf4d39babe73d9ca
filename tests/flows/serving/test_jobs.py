"""Runs on a Ray cluster of two nodes that was started apart and asks for a token: through its Jobs API, over HTTP only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deeplab.models import checkpoint
from flows.serving.cleanup import leave_nothing_behind
from pipelines.cluster import connection, ray_jobs
from pipelines.doctor import services
from pipelines.options import RegisteredTraining, SegmentOptions
from pipelines.table.results_table import ResultsTable
from tests.flows.conftest import ROOT, SECRET, Prefect, Served
from tests.flows.ray_cluster import RayCluster, ray_cluster
from tests.material import make_dataset, uris
from tests.processes import wait_for

pytestmark = [
    pytest.mark.drill,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc, by which processes are found: only on Linux"),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayCluster]:
    with ray_cluster() as made:
        yield made


@pytest.fixture
def jobs(nodes: RayCluster, monkeypatch: pytest.MonkeyPatch) -> ray_jobs.Jobs:
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    return ray_jobs.Jobs(nodes.url)


def options(served: Served, nodes: RayCluster) -> SegmentOptions:
    given = {**served.deployment.parameters["options"], "archive": str(served.archive), "results": str(served.results)}
    return SegmentOptions(**given, address=nodes.url)


def rows(results: Path) -> list[dict[str, Any]]:
    """All that a table says of its images, less who wrote it when."""
    table = ResultsTable.open(str(results)).dataset().to_table()
    return sorted(table.drop_columns(["run", "segmented_at"]).to_pylist(), key=lambda row: row["uri"])


def here_and_now(server: Prefect, command: str, chosen: SegmentOptions, log: str) -> Any:
    arguments = [chosen.archive, chosen.results, "--model", chosen.model, "--commit-every", 0.5, "--no-crf", "--scales", "1"]
    arguments += ["--precision", chosen.precision]
    arguments += ["--address", chosen.address] if chosen.address else []
    return server.deeplab(*command.split(), *arguments, log=log)


@pytest.mark.nightly
def test_a_job_outlives_its_watcher_the_next_run_takes_it_up_and_the_table_is_that_of_a_local_run(
    served: Served, nodes: RayCluster, jobs: ray_jobs.Jobs, tmp_path: Path
) -> None:
    # In float32 the job is still at work when the next run has started.
    chosen = options(served, nodes).model_copy(update={"precision": "float32"})
    name = ray_jobs.job_name("segment", chosen)
    first = here_and_now(served.server, "run segment", chosen, "watcher.log")
    wait_for(lambda: served.committed() >= 1 or first.poll() is not None, "a first commit")
    assert first.poll() is None, (served.server.home / "watcher.log").read_text()[-3000:]
    first.kill()
    run = served.start(address=nodes.url, precision="float32")
    assert served.ends(run).type.value == "COMPLETED"
    assert len(uris(served.results)) == 12
    wait_for(lambda: jobs.live(name) is None, "the end of the job")
    assert [job.status.value for job in jobs.attempts(name)] == ["SUCCEEDED"]  # the same work was never submitted twice

    local = tmp_path / "local"
    done = here_and_now(served.server, "segment", chosen.model_copy(update={"results": str(local), "address": None}), "local.log")
    assert done.wait(timeout=600) == 0
    assert rows(local) == rows(served.results)


def test_a_cancelled_run_stops_its_job(served: Served, nodes: RayCluster, jobs: ray_jobs.Jobs) -> None:
    chosen = options(served, nodes)
    name = ray_jobs.job_name("segment", chosen)
    run = served.start(address=nodes.url)
    wait_for(lambda: jobs.live(name) is not None, "the job")
    again = jobs.begin(name, "segment", chosen)
    assert again == (f"{name}-1", True)
    wait_for(lambda: served.committed() >= 1, "a first commit")
    (link,) = [found for found in served.artifacts(run, "markdown") if found.key.startswith("ray-")]
    assert jobs.page(f"{name}-1") in link.data
    served.cancel(run)
    assert served.ends(run).type.value == "CANCELLED"
    wait_for(lambda: jobs.live(name) is None and not nodes.drivers(), "the job and its program to end", 60)
    assert len(uris(served.results)) == served.committed()


def test_after_a_crash_the_runner_stops_the_job(served: Served, nodes: RayCluster, jobs: ray_jobs.Jobs) -> None:
    chosen = options(served, nodes)
    name = ray_jobs.job_name("segment", chosen)
    jobs.begin(name, "segment", chosen)
    run = SimpleNamespace(id=uuid.uuid4(), parameters={"options": chosen.model_dump(mode="json"), "report": {"photos": 6}})
    leave_nothing_behind(None, run, None)
    assert jobs.live(name) is None
    wait_for(lambda: not nodes.drivers(), "the job's program to end", 60)


def test_an_error_of_ours_in_a_job_arrives_with_its_sentence(served: Served, nodes: RayCluster, jobs: ray_jobs.Jobs) -> None:
    chosen = options(served, nodes).model_copy(update={"archive": "/nowhere"})
    lines: list[str] = []
    with pytest.raises(ray_jobs.JobRefused, match="/nowhere: no such folder or file") as caught:
        ray_jobs.run(jobs, "segment", chosen, lambda job, attached: None, lambda event: None, lines.append)
    assert caught.value.kind == "ArchiveError"
    assert not [line for line in lines if "Traceback" in line]


@pytest.mark.nightly
def test_a_training_is_a_job_too(nodes: RayCluster, jobs: ray_jobs.Jobs, tmp_path: Path) -> None:
    given = RegisteredTraining(
        dataset=str(make_dataset(tmp_path / "data")), out=str(tmp_path / "model"), steps=2, batch_size=2, crop=33,
        precision="float32", validate_every=2, loaders=0, address=nodes.url,
    )  # fmt: skip
    told: list[dict[str, Any]] = []
    best = ray_jobs.run(jobs, "train", given, lambda job, attached: None, told.append, lambda line: None)
    assert best["step"] == 2
    assert [event["step"] for event in told if event.get("validation")] == [2]
    assert checkpoint.load(tmp_path / "model").card["training"]["steps"] == 2


@pytest.mark.parametrize(("token", "message"), [("", "requires a token"), ("not the token", "does not accept this token")])
def test_a_missing_or_wrong_token_is_one_sentence(
    nodes: RayCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str, message: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(connection.ClusterError, match=message):
        ray_jobs.Jobs(nodes.url)
    joined = message.replace("this token", "the token that is set here")
    (finding,) = services.ray(f"127.0.0.1:{nodes.gcs}")  # as `deeplab doctor` says it
    assert finding.state == "failed"
    assert re.search(rf"{joined}.*\(InvalidAuthToken\): RAY_AUTH_TOKEN", finding.value)


JOIN = """
import sys
from pipelines.cluster import connection
from pipelines.doctor import services
with connection.session(sys.argv[1]):
    print(connection.resources())
    print(*services.ray(sys.argv[1]), sep="\\n")
"""


@pytest.mark.parametrize(("version", "code", "message"), [("", 0, ""), ("2.50.1", 1, "Ray: 2.50.1 Python: 3")])
def test_the_token_alone_joins_a_cluster_and_one_of_another_version_is_told_with_both(
    nodes: RayCluster, tmp_path: Path, version: str, code: int, message: str
) -> None:
    if version:  # every Python process that starts takes its Ray for that version
        (tmp_path / "sitecustomize.py").write_text(f"import ray; ray.__version__ = {version!r}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    machine = {**kept, "RAY_AUTH_TOKEN": SECRET, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", JOIN, f"127.0.0.1:{nodes.gcs}"]
    done = subprocess.run(command, env=machine, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert ("both must be the same" in done.stderr) is bool(version)
    assert ("accepts the one that is set here" in done.stdout) is not bool(version)


def test_a_place_that_is_no_jobs_api_is_one_sentence() -> None:
    for address in ("http://127.0.0.1:9", "http://"):
        with pytest.raises(connection.ClusterError, match=r"Jobs API|HOST:8265"):
            ray_jobs.Jobs(address)

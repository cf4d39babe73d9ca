"""A real Prefect server and a real `deeplab serve`, each in a process of its own, on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from flows.serving.cleanup import MARKER, end_processes, marked
from tests.material import committed, make_archive, make_model
from tests.processes import free_port, title, wait_for

ROOT = Path(__file__).parents[2]
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
# In the environment of everything that these tests start; no page, log or database of Prefect may ever hold it.
SECRET = "correct-horse-battery-staple"


def processes(run: Any) -> list[int]:
    return list(marked(f"{MARKER}={run}"))


def flow_processes(run: Any) -> list[int]:
    """Of a run's processes those that are not Ray's."""
    return [pid for pid in processes(run) if "ray" not in title(pid)]


@contextmanager
def held(run: Any) -> Iterator[None]:
    """The run stands still in mid-work: its Ray workers are stopped, as on a machine that swaps."""
    stopped: set[int] = set()
    over = threading.Event()

    def stop() -> None:  # again and again, as Ray may be starting one
        while not over.wait(0.1):
            for pid in processes(run):
                if pid not in stopped and "ray::" in title(pid) and "Counter" not in title(pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP)
                    stopped.add(pid)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@dataclass
class Prefect:
    """The server's process, to be stopped and started again on the same database, and what of ours talks to it."""

    home: Path
    port: int
    more: dict[str, str] = field(default_factory=dict)
    process: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "PREFECT_RUNNER_POLL_FREQUENCY": "2",
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "RAY_AUTH_TOKEN": SECRET,
            **self.more,
        }
        return {**os.environ, **own}

    def start(self) -> None:
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = self._run(command, "server.log")
        wait_for(self.healthy, "the Prefect server")

    def healthy(self) -> bool:
        assert self.process.poll() is None, (self.home / "server.log").read_text()[-3000:]
        try:
            with urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def deeplab(self, *arguments: object, log: str) -> Any:
        """`deeplab ...` against this server, in a session of its own; it is killed at the end."""
        return self._run([sys.executable, "-m", "flows.cli", *map(str, arguments)], log)

    def _run(self, command: list[str], log: str) -> Any:
        with (self.home / log).open("a") as out:
            return subprocess.Popen(command, stdout=out, stderr=out, env=self.environment, cwd=ROOT, start_new_session=True)

    def client(self) -> Any:
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.url)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    made = Prefect(tmp_path_factory.mktemp("prefect"), free_port())
    made.start()
    yield made
    end_processes(f"PREFECT_HOME={made.home}", grace=0)  # runs that outlive their runner, and their Ray, too


@pytest.fixture(scope="session")
def prepared(prefect_server: Prefect) -> Callable[[], str]:
    """`deeplab setup-prefect` has run; call it for another time. Returns what it said."""

    def setup() -> str:
        command = [sys.executable, "-m", "flows.cli", "setup-prefect", "--results", "/data/results"]
        done = subprocess.run(command, env=prefect_server.environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = setup()
    assert "automation for dead runs: made" in first
    return setup


@dataclass(frozen=True)
class Served:
    """A served deployment that takes one run at a time, and what its runs are to do; tests share the runner."""

    server: Prefect
    name: str
    archive: Path
    results: Path
    model: Path
    process: Any = None

    @property
    def deployment(self) -> Any:
        with self.server.client() as client:
            return client.read_deployment_by_name(f"segment-archive/{self.name}")

    def start(self, page: Path | None = None, **options: object) -> Any:
        """A new run on this archive and table; `options` are set in its parameters over the deployment's. `page`: of its report."""
        made = self.deployment
        places = {"archive": str(self.archive), "results": str(self.results)}
        parameters = {**made.parameters, "options": {**made.parameters["options"], **places, **options}}
        if page is not None:
            parameters["report"] = {"page": str(page)}
        with self.server.client() as client:
            return client.create_flow_run_from_deployment(made.id, parameters=parameters).id

    def state(self, run: Any) -> Any:
        with self.server.client() as client:
            return client.read_flow_run(run).state

    def reaches(self, run: Any, state: str) -> None:
        """Wait until the run's state is called so."""
        wait_for(lambda: self.state(run).name == state, f"run {run} to be {state}")

    def ends(self, run: Any) -> Any:
        """The final state of a run."""

        def final() -> Any:
            state = self.state(run)
            return state if state.type.value in FINAL else None

        return wait_for(final, f"the end of run {run}")

    def cancel(self, run: Any) -> None:
        """What the Cancel button does."""
        from prefect.states import Cancelling

        with self.server.client() as client:
            client.set_flow_run_state(run, Cancelling(), force=True)

    def committed(self) -> int:
        return committed(self.results)

    def logs(self, run: Any) -> list[str]:
        from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

        with self.server.client() as client:
            return [line.message for line in client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])))]

    def artifacts(self, run: Any, kind: str) -> list[Any]:
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType

        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]), type=ArtifactFilterType(any_=[kind]))
        with self.server.client() as client:
            return client.read_artifacts(artifact_filter=wanted)


def serve(server: Prefect, folder: Path, name: str, *arguments: object) -> Served:
    """12 photos in blocks of 4, served by `deeplab serve` in a session of its own. A block is some seconds' work, in which a
    test can do what it does to the run."""
    made = Served(server, name, make_archive(folder / "photos", 12, scale=20), folder / "results", make_model(folder / "tiny"))
    settings = ["--set", "commit_every=0.5", "--set", "crf=false", "--set", "scales=[1]", "--name", name, "--limit", 2, *arguments]
    log = f"{name}.log"
    process = server.deeplab("serve", made.archive, made.results, "--model", made.model, *settings, log=log)

    def ready() -> bool:
        from prefect.exceptions import ObjectNotFound

        assert process.poll() is None, (server.home / log).read_text()[-3000:]
        try:
            return bool(made.deployment)
        except ObjectNotFound:
            return False

    wait_for(ready, "the deployment")
    return replace(made, process=process)


@pytest.fixture(scope="session")
def runner(prefect_server: Prefect, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """One `deeplab serve` for all tests, with a schedule that is off. It ends with the server."""
    return serve(prefect_server, tmp_path_factory.mktemp("served"), "photos-12", "--interval", 10)


@pytest.fixture
def served(runner: Served, tmp_path: Path) -> Served:
    """The deployment, with a table of this test's own."""
    return replace(runner, results=tmp_path / "results")

"""A real Prefect server and a real `deeplab serve`, each in a process of its own, on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from flows.hooks import end_processes
from tests.pipelines.conftest import make_archive, make_model

ROOT = Path(__file__).parents[2]
PATIENCE = 600.0
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def wait_for(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Wait until the condition is true and return it; fail with `what` after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {patience:.0f} s for {what}"
        time.sleep(0.2)
    return found


@dataclass
class Prefect:
    """The server's process, to be stopped and started again on the same database, and what of ours talks to it."""

    home: Path
    port: int
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Prefect(tmp_path_factory.mktemp("prefect"), port)
    made.start()
    yield made
    end_processes(f"PREFECT_HOME={made.home}", grace=0)  # runs that outlive their runner, and their Ray, too


@dataclass
class Served:
    """A deployment of one archive into one table, served, and the runs of it."""

    server: Prefect
    archive: Path
    results: Path
    model: Path
    log: Path
    name: str

    def start(self, **options: object) -> Any:
        """A new run; `options` are set in its parameters over the deployment's."""
        with self.server.client() as client:
            deployment = client.read_deployment_by_name(f"segment-archive/{self.name}")
            given = {**deployment.parameters["options"], **options}
            return client.create_flow_run_from_deployment(deployment.id, parameters={**deployment.parameters, "options": given}).id

    def state(self, run: Any) -> Any:
        with self.server.client() as client:
            return client.read_flow_run(run).state

    def ends(self, run: Any) -> Any:
        """The final state of a run."""

        def final() -> Any:
            state = self.state(run)
            return state if state.type.value in FINAL else None

        return wait_for(final, f"the end of run {run}")

    def commits(self) -> int:
        log = self.results / "_delta_log"
        return sum('"txn"' in file.read_text() for file in log.glob("*.json")) if log.exists() else 0


@pytest.fixture
def served(prefect_server: Prefect, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Served]:
    """16 small photos in chunks of 4, served by `deeplab serve`."""
    name = f"test-{abs(hash(request.node.name)) % 10**8}"
    log = f"{name}.log"
    made = Served(
        prefect_server, make_archive(tmp_path / "photos", 16), tmp_path / "results", make_model(tmp_path / "tiny"),
        prefect_server.home / log, name,
    )  # fmt: skip
    settings = ["--set", "chunk_size=4", "--set", "crf=false", "--set", "scales=[1]", "--name", name, "--limit", 2]
    runner = prefect_server.deeplab("serve", made.archive, made.results, "--model", made.model, *settings, log=log)

    def ready() -> bool:
        from prefect.exceptions import ObjectNotFound

        assert runner.poll() is None, made.log.read_text()[-3000:]
        with prefect_server.client() as client:
            try:
                return bool(client.read_deployment_by_name(f"segment-archive/{name}"))
            except ObjectNotFound:
                return False

    wait_for(ready, "the deployment")
    yield made
    os.killpg(runner.pid, signal.SIGKILL)
    runner.wait()

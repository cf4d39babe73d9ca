"""A Prefect server on PostgreSQL, named by its URL, as docs/operations.md says."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.serving.cleanup import end_processes
from tests.flows.conftest import ROOT, Prefect
from tests.material import make_model
from tests.processes import free_port, wait_for

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1200)]


def program(name: str) -> str | None:
    """PostgreSQL's own programs are not in the PATH on Debian."""
    return shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None)


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """The URL of an empty database on loopback, for the body. `folder`: an empty one that its account can reach."""
    initdb, postgres = program("initdb"), program("postgres")
    assert initdb is not None and postgres is not None
    # It refuses to run as root.
    account = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    if account:
        shutil.chown(folder, "postgres", "postgres")
    data, port = folder / "data", free_port()
    command = [initdb, "-D", str(data), "-U", "prefect", "-A", "trust", "-N"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, **account)  # type: ignore[call-overload]
    command = [postgres, "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", str(folder), "-F"]
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, stderr=out, **account)  # type: ignore[call-overload]
    try:
        wait_for(lambda: "ready to accept connections" in log.read_text() or process.poll() is not None, "PostgreSQL")
        assert process.poll() is None, log.read_text()
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    if program("initdb") is None or program("postgres") is None:
        pytest.skip("no PostgreSQL, initdb and postgres: apt-get install postgresql")
    # Below pytest's own folder another user could not get at its files.
    with postgresql(Path(tempfile.mkdtemp(prefix="deeplab-postgres-"))) as url:
        yield url


@pytest.mark.nightly
def test_a_server_on_postgresql_takes_the_setup_and_a_run(database: str, tmp_path: Path) -> None:
    home = tmp_path / "prefect"
    home.mkdir()
    server = Prefect(home, free_port(), {"PREFECT_SERVER_DATABASE_CONNECTION_URL": database})
    server.start()
    try:
        for command in (["setup-prefect"], ["run", "evaluate", str(make_model(tmp_path / "tiny")), "examples/pets"]):
            command = [sys.executable, "-m", "flows.cli", *command]
            done = subprocess.run(command, env=server.environment, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        with server.client() as client:
            (run,) = client.read_flow_runs()
            wait_for(lambda: client.read_flow_run(run.id).state.is_completed(), "the state")
            assert client.read_work_pool("deeplab").type == "process"
        assert not (home / "prefect.db").exists()
    finally:
        server.stop()
        end_processes(f"PREFECT_HOME={home}", grace=0)

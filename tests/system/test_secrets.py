"""Credentials stay in the environment: runs on S3, good and failing, write them nowhere."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.storage import s3 as store
from pipelines.table.results_table import ResultsTable
from tests import s3_server
from tests.processes import free_port
from tests.system.conftest import PATIENCE

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]
Start = Callable[..., subprocess.Popen[str]]
WRONG = "another-secret-never-to-be-printed"
SECRETS = (s3_server.SECRET, WRONG)


@pytest.fixture
def ray_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the Ray of the runs of this test keeps its sessions, with all that its own processes have to say.

    Its path is short, as the names of sockets below it may have 107 bytes.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "info")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def assert_no_secret(text: str, where: object) -> None:
    for secret in SECRETS:
        assert secret not in text, where


def assert_no_secret_in_logs(ray_logs: Path) -> None:
    files = [path for path in ray_logs.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in files:
        assert_no_secret(path.read_bytes().decode(errors="replace"), path)


def run(start: Start, *arguments: str) -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=PATIENCE)
    assert_no_secret(out, "stdout")
    assert_no_secret(err, "stderr")
    return process.returncode, out, err


def test_a_run_on_s3_writes_no_secret_into_output_logs_or_table(
    start: Start, s3: str, s3_archive: str, model: Path, ray_logs: Path
) -> None:
    results = f"{s3}/results"
    options = ("--model", str(model), "--no-crf", "--max-error-rate", "0.5")
    code, out, err = run(start, "segment", s3_archive, results, *options, "--json")
    assert code == 0, err
    assert json.loads(out)["errors"] == 1
    code, out, _ = run(start, "status", results, "--archive", s3_archive)
    assert code == 0
    assert list(ray_logs.rglob("raylet.out"))
    assert_no_secret_in_logs(ray_logs)
    assert_no_secret(str(ResultsTable.open(results).dataset().to_table().to_pylist()), "rows")
    cards = ResultsTable.open(results).models()
    assert cards
    assert_no_secret(json.dumps(cards), "model card")
    objects = list(store.list_objects(results))
    assert any("_delta_log" in uri for uri, _, _ in objects)
    for uri, _, _ in objects:
        data = store.get(uri)[0]
        assert_no_secret(data.decode(errors="replace"), uri)
        if uri.endswith(".parquet"):  # compressed pages, and the metadata in its footer
            assert_no_secret(str(pq.read_schema(io.BytesIO(data)).metadata), uri)


@pytest.mark.parametrize("trouble", ["wrong secret", "no such bucket", "store down", "wrong secret for the table"])
def test_a_run_that_fails_says_why_without_the_secret(
    start: Start,
    s3: str,
    s3_archive: str,
    model: Path,
    archive: Path,
    ray_logs: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    photos = s3_archive
    if trouble == "no such bucket":
        photos = "s3://no-bucket-of-this-name/photos"
    elif trouble == "store down":
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    else:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG)
    if trouble.endswith("for the table"):
        photos = str(archive)
    code, out, err = run(start, "segment", photos, f"{s3}/results", "--model", str(model), "--no-crf", "--json")
    assert code == 1
    assert "error" in err
    assert "Traceback" not in err
    assert out == ""
    assert_no_secret_in_logs(ray_logs)

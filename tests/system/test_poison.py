"""Images that kill the process that touches them: each becomes one error row, and the rest of its block is done."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.table.results_table import ResultsTable
from tests.material import photo
from tests.system.conftest import PATIENCE

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]

# What a bug in a decoder does to a process, for photos that hold the word; Python runs this file at the start of each process.
SITECUSTOMIZE = """
import os, signal
import PIL.Image

opened = PIL.Image.open

def open(fp, *arguments, **options):
    if hasattr(fp, "getvalue") and b"POISON" in fp.getvalue():
        os.kill(os.getpid(), signal.SIGKILL)
    return opened(fp, *arguments, **options)

PIL.Image.open = open
"""


def test_a_photo_that_kills_its_process_is_one_error_row_and_the_others_are_done(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, archive: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    poison = {archive / "a" / "poison.jpg", archive / "b" / "poison.jpg"}
    for path in poison:
        path.write_bytes(photo(99) + b"POISON")
    results = tmp_path / "results"
    options = ("--no-crf", "--json", "--max-error-rate", "0.1")
    process = start("segment", str(archive), str(results), "--model", str(model), *options)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert (summary["images"], summary["errors"]) == (50, 2)
    rows = ResultsTable.open(str(results)).dataset().to_table(columns=["uri", "status", "error"]).to_pylist()
    assert len({row["uri"] for row in rows}) == len(rows) == 50
    failed = {row["uri"]: row["error"] for row in rows if row["status"] == "error"}
    assert failed.keys() == {path.as_uri() for path in poison}
    assert all("ended 3 times while it worked on this image alone" in error for error in failed.values())

"""Processes that are killed with -9 in the middle of a run: nothing lost, nothing doubled, masks as if undisturbed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from deeplab import masks
from pipelines.table.results_table import ResultsTable
from tests.material import committed, make_archive
from tests.processes import in_session, wait_for
from tests.system.conftest import PATIENCE

pytestmark = [
    pytest.mark.drill,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc, by which processes are found: only on Linux"),
]

Start = Callable[..., subprocess.Popen[str]]
OPTIONS = ("--scales", "1", "--crf-params", "deeplab-v1")


def found(results: Path) -> dict[str, np.ndarray]:
    """Masks by image; fails when an image has two rows or none that is ok."""
    rows = ResultsTable.open(str(results)).dataset().to_table(columns=["uri", "status", "mask"]).to_pylist()
    assert len({row["uri"] for row in rows}) == len(rows)
    assert {row["status"] for row in rows} == {"ok"}
    return {row["uri"]: masks.decode_png(row["mask"]) for row in rows}


def finish(start: Start, *arguments: str) -> dict[str, object]:
    process = start(*arguments, "--json")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Callable[[Path], dict[str, np.ndarray]]:
    """Masks of the photos in an archive as the plain classes give them, one photo at a time."""
    from deeplab.crf import DenseCRF
    from deeplab.images.decoding import decode
    from deeplab.models import checkpoint
    from deeplab.scoring.predictor import Predictor

    def run(archive: Path) -> dict[str, np.ndarray]:
        predictor, crf = Predictor(checkpoint.load(model).network), DenseCRF.named("deeplab-v1")
        result = {}
        for path in archive.rglob("*.jpg"):
            image = decode(path.read_bytes())
            result[path.as_uri()] = crf.labels(image, scores=predictor.scores([image])[0], stride=8)
        return result

    return run


def assert_same(masks_found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert masks_found.keys() == expected.keys()
    equal = sum(int((masks_found[uri] == expected[uri]).sum()) for uri in expected)
    # Batches that were cut otherwise sum in another order, so a label on a knife's edge may flip.
    assert equal >= 0.9999 * sum(mask.size for mask in expected.values())


def test_a_killed_driver_leaves_what_it_committed_and_the_next_run_does_the_rest(
    start: Start, tmp_path: Path, archive: Path, model: Path, undisturbed: Callable[[Path], dict[str, np.ndarray]]
) -> None:
    results = tmp_path / "results"
    command = ("segment", str(archive), str(results), "--model", str(model), "--commit-every", "0.5", *OPTIONS)
    process = start(*command)
    wait_for(lambda: committed(results) >= 1 or process.poll() is not None, "a commit")
    assert process.poll() is None, process.communicate()[1]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not in_session(process.pid, "raylet"), "the dead driver's Ray to end")
    kept = committed(results)
    assert 1 <= kept < 48
    assert len(found(results)) == kept

    summary = finish(start, *command)
    assert (summary["already"], summary["images"]) == (kept, 48 - kept)
    assert_same(found(results), undisturbed(archive))
    assert finish(start, *command)["images"] == 0


def test_a_killed_worker_costs_nothing_but_time(
    start: Start, tmp_path: Path, archive: Path, model: Path, undisturbed: Callable[[Path], dict[str, np.ndarray]]
) -> None:
    victim = "MapBatches(whole)"
    results = tmp_path / "results"
    process = start("segment", str(archive), str(results), "--model", str(model), "--json", *OPTIONS)
    wait_for(lambda: bool(in_session(process.pid, victim)) or process.poll() is not None, f"a process {victim}")
    for pid in in_session(process.pid, victim)[:1]:
        os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert json.loads(out)["images"] == 48
    assert_same(found(results), undisturbed(archive))


def test_ctrl_c_commits_what_is_finished_and_stops_cleanly(start: Start, tmp_path: Path, model: Path) -> None:
    """No commit is due for an hour, so every row that is there was committed on the way out."""
    archive, results = make_archive(tmp_path / "photos", 48, scale=12), tmp_path / "results"
    command = ("segment", str(archive), str(results), "--model", str(model), "--no-crf")
    process = start(*command, "--commit-every", "3600")
    done = 0
    while not done:
        done = finished(process)
    assert done < 48
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "run the same command to continue" in err
    assert "Traceback" not in err
    kept = committed(results)
    assert done <= len(found(results)) == kept < 48
    wait_for(lambda: not in_session(process.pid, "raylet"), "Ray to end")
    assert finish(start, *command)["images"] == 48 - kept
    assert len(found(results)) == 48


def finished(process: subprocess.Popen[str]) -> int:
    """Images that the command says are finished, by the next line of its plain progress."""
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line or process.poll() is None, "the run ended"
    counted = re.search(r"segmenting +(\d+)", line)
    return int(counted[1]) if counted else 0


@pytest.mark.nightly
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system: run as root")
def test_a_table_that_becomes_read_only_ends_the_run_with_what_is_committed_and_the_next_goes_on(
    start: Start, tmp_path: Path, archive: Path, model: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    with tmpfs(small, "size=16m"):
        command = ("segment", str(archive), str(small / "results"), "--model", str(model), "--commit-every", "0.5", *OPTIONS)
        process = start(*command)
        wait_for(lambda: committed(small / "results") >= 1 or process.poll() is not None, "a commit")
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert "Read-only file system" in err and "of 48 images are committed" in err
        assert "Traceback" not in err
        kept = committed(small / "results")
        subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
        assert finish(start, *command)["images"] == 48 - kept
        assert len(found(small / "results")) == 48


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system: run as root")
def test_a_full_disk_is_an_error_that_says_so_and_the_next_run_goes_on(
    start: Start, tmp_path: Path, archive: Path, model: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    with tmpfs(small, "size=64k"):
        command = ("segment", str(archive), str(small / "results"), "--model", str(model), "--commit-every", "0.5", *OPTIONS)
        process = start(*command)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert "No space left on device" in err
        assert "Traceback" not in err
        kept = committed(small / "results")
        subprocess.run(["mount", "-o", "remount,size=16m", str(small)], check=True)
        assert finish(start, *command)["images"] == 48 - kept
        assert len(found(small / "results")) == 48


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory, mounted on a folder; skips where none can be."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"tmpfs cannot be mounted (in a container: --cap-add SYS_ADMIN): {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)

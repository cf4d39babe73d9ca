"""Processes that are killed with -9 in the middle of a run: nothing lost, nothing doubled, masks as if undisturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deeplab import masks
from pipelines.results import ResultsTable
from tests.system.conftest import PATIENCE, processes, wait_for

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes through /proc"),
]

Start = Callable[..., subprocess.Popen[str]]
OPTIONS = ("--scales", "1", "--crf-params", "deeplab-v1")


def commits(results: Path) -> int:
    """Chunks that are committed, by the log's own files."""
    return sum('"txn"' in file.read_text() for file in (results / "_delta_log").glob("*.json")) if results.exists() else 0


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
    from deeplab import checkpoint
    from deeplab.crf import DenseCRF
    from deeplab.images import decode
    from deeplab.predictor import Predictor

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


def test_a_killed_driver_leaves_whole_chunks_and_the_next_run_does_the_rest(
    start: Start, tmp_path: Path, archive: Path, model: Path, undisturbed: Callable[[Path], dict[str, np.ndarray]]
) -> None:
    results = tmp_path / "results"
    command = ("segment", str(archive), str(results), "--model", str(model), "--chunk-size", "12", *OPTIONS)
    process = start(*command)
    wait_for(lambda: commits(results) >= 1 or process.poll() is not None, "a commit")
    assert process.poll() is None, process.communicate()[1]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not processes("raylet", process.pid), "the dead driver's Ray to end")
    kept = commits(results)
    assert 1 <= kept < 4
    assert len(found(results)) == 12 * kept

    summary = finish(start, *command)
    assert summary["already"] == 12 * kept
    assert summary["images"] == 48 - 12 * kept
    assert_same(found(results), undisturbed(archive))
    assert finish(start, *command)["images"] == 0


def test_a_killed_worker_costs_nothing_but_time(
    start: Start, tmp_path: Path, archive: Path, model: Path, undisturbed: Callable[[Path], dict[str, np.ndarray]]
) -> None:
    victim = "ray::MapBatches(whole)"
    results = tmp_path / "results"
    process = start("segment", str(archive), str(results), "--model", str(model), "--chunk-size", "24", "--json", *OPTIONS)
    wait_for(lambda: bool(processes(victim, process.pid)) or process.poll() is not None, f"a process {victim}")
    for pid in processes(victim, process.pid)[:1]:
        os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert json.loads(out)["images"] == 48
    assert_same(found(results), undisturbed(archive))


def test_ctrl_c_stops_cleanly_and_keeps_what_is_committed(start: Start, tmp_path: Path, archive: Path, model: Path) -> None:
    results = tmp_path / "results"
    command = ("segment", str(archive), str(results), "--model", str(model), "--chunk-size", "12", *OPTIONS)
    process = start(*command)
    wait_for(lambda: commits(results) >= 1 or process.poll() is not None, "a commit")
    assert process.poll() is None, process.communicate()[1]
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    kept = commits(results)
    assert len(found(results)) == 12 * kept
    wait_for(lambda: not processes("raylet", process.pid), "Ray to end")
    assert finish(start, *command)["images"] == 48 - 12 * kept
    assert len(found(results)) == 48


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount the small file system that this test fills")
def test_a_full_disk_is_an_error_that_says_so_and_the_next_run_goes_on(
    start: Start, tmp_path: Path, archive: Path, model: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        command = ("segment", str(archive), str(small / "results"), "--model", str(model), "--chunk-size", "12", *OPTIONS)
        process = start(*command)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert "No space left on device" in err
        assert "Traceback" not in err
        kept = commits(small / "results")
        subprocess.run(["mount", "-o", "remount,size=16m", str(small)], check=True)
        assert finish(start, *command)["images"] == 48 - 12 * kept
        assert len(found(small / "results")) == 48
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)

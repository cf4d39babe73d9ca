"""Training that is killed with -9 or asked to end, on one process, on Ray and on several nodes: it ends as if undisturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deeplab import weights
from deeplab.models import checkpoint
from tests.material import make_dataset
from tests.processes import in_session, wait_for
from tests.system.conftest import NODES

PATIENCE = 900.0
pytestmark = [
    pytest.mark.drill,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc, by which processes are found: only on Linux"),
]

Start = Callable[..., subprocess.Popen[str]]
STEPS = 8
OPTIONS = (
    "--steps", str(STEPS), "--batch-size", "2", "--crop", "33", "--validate-every", "4", "--checkpoint-every", "1",
    "--loaders", "0", "--device", "cpu", "--precision", "float32", "--keep", str(STEPS),
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "trained"
    command = [sys.executable, "-m", "flows.cli", "train", str(dataset), str(out), *OPTIONS]
    with kept_states(out):
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2], timeout=PATIENCE, capture_output=True)
    return out


@contextmanager
def kept_states(out: Path) -> Iterator[None]:
    """Link the run's states to OUT.states as they appear: a run removes its own at its end."""
    kept, over = out.with_suffix(".states"), threading.Event()
    kept.mkdir(exist_ok=True)

    def link() -> None:
        while not over.wait(0.005):
            for path in (out / "training").glob("*.pt"):
                with suppress(FileExistsError, FileNotFoundError):
                    os.link(path, kept / path.name)

    linker = threading.Thread(target=link)
    linker.start()
    try:
        yield
    finally:
        over.set()
        linker.join()


def states(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "training").glob("*.pt"))


def reached(out: Path, step: int) -> Callable[[], bool]:
    return lambda: states(out)[-1:] >= [f"step-{step:08d}.pt"]


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def finish(process: subprocess.Popen[str]) -> str:
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return err


def test_a_killed_training_goes_on_and_ends_with_the_same_bits(
    start: Start, tmp_path: Path, dataset: Path, undisturbed: Path
) -> None:
    out = tmp_path / "trained"
    command = ("train", str(dataset), str(out), *OPTIONS)
    process = start(*command)
    wait_for(lambda: reached(out, 2)() or process.poll() is not None, "two steps", PATIENCE)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert states(out), process.communicate()[1]

    refused = start(*command)
    _, err = refused.communicate(timeout=PATIENCE)
    assert refused.returncode == 1
    assert "--resume" in err

    finish(start(*command, "--resume"))
    assert (out / checkpoint.WEIGHTS).read_bytes() == (undisturbed / checkpoint.WEIGHTS).read_bytes()
    assert (out / "metrics.jsonl").read_text() == (undisturbed / "metrics.jsonl").read_text()
    assert not states(out)


def test_sigterm_saves_the_step_and_exits(start: Start, tmp_path: Path, dataset: Path) -> None:
    out = tmp_path / "trained"
    options = [*OPTIONS, "--checkpoint-every", "0", "--validate-every", "1000", "--steps", "1000"]
    process = start("train", str(dataset), str(out), *options)
    wait_for(lambda: (out / "training.json").exists() or process.poll() is not None, "the start", PATIENCE)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, err
    assert "--resume to continue" in " ".join(err.split())
    assert "Traceback" not in err
    assert len(states(out)) == 1


@pytest.mark.nightly
def test_ray_workers_survive_a_killed_worker_and_a_killed_driver(
    start: Start, tmp_path: Path, dataset: Path, undisturbed: Path
) -> None:
    """Two workers end where one process does; what dies in between is started again from the last state."""
    out = tmp_path / "trained"
    command = ("train", str(dataset), str(out), *OPTIONS, "--workers", "2")
    process = start(*command)
    wait_for(lambda: reached(out, 1)() or process.poll() is not None, "a first state", PATIENCE)
    assert process.poll() is None, process.communicate()[1]
    os.kill(in_session(process.pid, "ray::RayTrainWorker")[0], signal.SIGKILL)
    at = states(out)[-1]
    wait_for(lambda: states(out)[-1:] > [at] or process.poll() is not None, "steps after the worker's death", PATIENCE)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda: not in_session(process.pid, "raylet"), "the dead driver's Ray to end", PATIENCE)
    with kept_states(out):
        finish(start(*command, "--resume"))

    assert_ends_like(out, undisturbed)
    assert_same_weights(out, undisturbed)


def assert_ends_like(out: Path, undisturbed: Path) -> None:
    """The same losses, and the same weights as far as they are stored (half precision)."""
    expected = metrics(undisturbed)
    assert [line["step"] for line in metrics(out)] == [line["step"] for line in expected]
    np.testing.assert_allclose([line["loss"] for line in metrics(out)], [line["loss"] for line in expected], atol=1e-4)
    found, alone = (weights.read_safetensors(folder / checkpoint.WEIGHTS) for folder in (out, undisturbed))
    for key, value in alone.items():  # stored in half precision
        np.testing.assert_allclose(found[key], value, rtol=2e-3, atol=1e-4, err_msg=key)


def assert_same_weights(out: Path, undisturbed: Path) -> None:
    """Equal to 1e-5 in the last state that both runs left, which holds them in single precision."""
    found, alone = (sorted(path.name for path in folder.with_suffix(".states").glob("*.pt")) for folder in (out, undisturbed))
    last = max(set(found) & set(alone))
    assert last >= f"step-{STEPS - 2:08d}.pt"
    ours, theirs = (torch.load(folder.with_suffix(".states") / last, weights_only=True)["network"] for folder in (out, undisturbed))
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, atol=1e-5, rtol=0, err_msg=key)


class Lines:
    """What a running command says, line by line, without waiting for it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.lines: list[str] = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(process.stderr), daemon=True)  # type: ignore[arg-type]
        self.reader.start()

    def workers(self) -> list[int]:
        """How many workers started, each time."""
        return [int(line.split()[0]) for line in self.lines if "workers start" in line]


@pytest.fixture
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head with as many CPUs as the parameter says, and nodes of one CPU each so that there are two in all."""
    from ray.cluster_utils import Cluster

    for name, value in NODES.items():
        monkeypatch.setenv(name, value)

    memory, on_head = 200 << 20, request.param
    head = {"num_cpus": on_head, "object_store_memory": memory, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2 - on_head):
            made.add_node(num_cpus=1, object_store_memory=memory)
        yield made
    finally:
        made.shutdown()


def kill_a_node(cluster: Any) -> None:
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)


@pytest.mark.nightly
@pytest.mark.parametrize("cluster", [0], indirect=True, ids=["three nodes"])
def test_a_killed_node_is_replaced_and_the_training_ends_as_if_undisturbed(
    start: Start, tmp_path: Path, dataset: Path, undisturbed: Path, cluster: Any
) -> None:
    out = tmp_path / "trained"
    with kept_states(out):
        process = start("train", str(dataset), str(out), *OPTIONS, "--workers", "2", "--address", cluster.address)
        said = Lines(process)
        wait_for(lambda: reached(out, 1)() or process.poll() is not None, "a first state", PATIENCE)
        assert process.poll() is None, process.communicate()[1]
        kill_a_node(cluster)
        cluster.add_node(num_cpus=1, object_store_memory=200 << 20)
        process.wait(PATIENCE)
    said.reader.join(PATIENCE)
    assert process.returncode == 0, "".join(said.lines)
    assert said.workers() == [2, 2]
    assert_ends_like(out, undisturbed)
    assert_same_weights(out, undisturbed)


@pytest.mark.nightly
@pytest.mark.parametrize("cluster", [1], indirect=True, ids=["two nodes"])
def test_elastic_workers_go_on_without_a_lost_node_and_take_it_back(
    start: Start, tmp_path: Path, dataset: Path, cluster: Any
) -> None:
    out = tmp_path / "trained"
    options = [*OPTIONS, "--steps", "100000", "--validate-every", "100000", "--checkpoint-every", "5"]
    elastic = ("--workers", "2", "--min-workers", "1", "--resize-every", "2", "--retries", "10", "--address", cluster.address)
    process = start("train", str(dataset), str(out), *options, *elastic)
    said = Lines(process)

    def waited_for(workers: int, what: str) -> None:
        """Until the latest start was with so many workers, and a state came after it."""
        wait_for(lambda: said.workers()[-1:] == [workers] or process.poll() is not None, what, PATIENCE)
        assert process.poll() is None, "".join(said.lines)
        at = states(out)[-1:]
        wait_for(lambda: states(out)[-1:] > at or process.poll() is not None, f"steps with {what}", PATIENCE)

    waited_for(2, "two workers")
    kill_a_node(cluster)
    waited_for(1, "one worker")
    cluster.add_node(num_cpus=1, object_store_memory=200 << 20)
    waited_for(2, "two workers again")
    os.kill(process.pid, signal.SIGTERM)
    process.wait(PATIENCE)
    assert process.returncode == 143, "".join(said.lines)
    assert states(out)

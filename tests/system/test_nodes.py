"""A Ray cluster of several nodes: joined only when named, and survived when a node dies."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab.classes import PETS
from deeplab.crf import DenseCRF
from deeplab.images.decoding import decode
from deeplab.models import checkpoint
from deeplab.scoring.predictor import Predictor
from flows.serving.cleanup import marked
from pipelines.cluster import connection
from pipelines.table.results_table import ResultsTable
from tests.command_line import deeplab
from tests.material import EXAMPLES, make_archive, make_dataset
from tests.processes import free_port, in_session, wait_for
from tests.system.conftest import NODES, PATIENCE

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]

Start = Callable[..., subprocess.Popen[str]]


MARKER = "DEEPLAB_TEST_NODES"


@pytest.fixture
def gpus() -> int:
    """GPUs that one of the nodes says it has; a test may override it."""
    return 0


@pytest.fixture
def memory() -> int:
    """Bytes of each node's object store."""
    return 200 << 20


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, gpus: int, memory: int, tmp_path: Path) -> Iterator[object]:
    """A head without CPUs and two nodes of one CPU each, so that all work is on nodes that can be killed."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv(MARKER, str(tmp_path))  # what runs on the nodes is found by it
    for name, value in NODES.items():
        monkeypatch.setenv(name, value)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False})
    try:
        made.add_node(num_cpus=1, object_store_memory=memory)
        made.add_node(num_cpus=1, num_gpus=gpus, object_store_memory=memory)
        yield made
    finally:
        made.shutdown()


def segmented(results: Path) -> list[str]:
    rows = ResultsTable.open(str(results)).dataset().to_table(columns=["uri", "status"]).to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    return sorted(row["uri"] for row in rows)


def test_a_killed_node_costs_nothing_but_time(start: Start, tmp_path: Path, archive: Path, model: Path, cluster: object) -> None:
    results = tmp_path / "results"
    arguments = ("--model", str(model), "--commit-every", "0.5", "--scales", "1", "--address", cluster.address, "--json")  # type: ignore[attr-defined]
    process = start("segment", str(archive), str(results), *arguments)
    wait_for(lambda: len(list(results.glob("model=*/*.parquet"))) >= 1 or process.poll() is not None, "a first part file")
    assert process.poll() is None, process.communicate()[1]
    victim = cluster.worker_nodes.copy().pop()  # type: ignore[attr-defined]
    cluster.remove_node(victim, allow_graceful=False)  # type: ignore[attr-defined]
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert json.loads(out)["images"] == 48
    assert segmented(results) == sorted(path.as_uri() for path in archive.rglob("*.jpg"))


@pytest.mark.nightly
def test_nodes_that_join_a_running_stream_work_and_one_that_gets_a_notice_costs_its_images_in_flight(
    start: Start, tmp_path: Path, model: Path, cluster: object
) -> None:
    """One node works; two more join; one of these gets a SIGTERM, as a spot instance does. The summary counts images by node."""
    for node in cluster.worker_nodes.copy():  # type: ignore[attr-defined]
        cluster.remove_node(node)  # type: ignore[attr-defined]
    cluster.add_node(num_cpus=1, object_store_memory=200 << 20)  # type: ignore[attr-defined]
    archive, results = make_archive(tmp_path / "photos", 150, scale=12), tmp_path / "results"
    arguments = ("--model", str(model), "--commit-every", "1", "--no-crf", "--address", cluster.address, "--json")  # type: ignore[attr-defined]
    process = start("segment", str(archive), str(results), *arguments)
    wait_for(lambda: rows_of(results) > 0 or process.poll() is not None, "rows of the first node")
    joined = [cluster.add_node(num_cpus=1, object_store_memory=200 << 20) for _ in range(2)]  # type: ignore[attr-defined]
    ids = [node.node_id[:6] for node in joined]
    wait_for(lambda: len(at_work(tmp_path)) == 3 or process.poll() is not None, "work on all three nodes", 60)
    assert process.poll() is None, process.communicate()[1]
    joined[1].all_processes["raylet"][0].process.terminate()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert summary["images"] == len(segmented(results)) == 150
    by_node = {name.rsplit("/", 1)[1]: count for name, count in summary["images_by_node"].items()}
    assert sum(by_node.values()) == 150 and len(by_node) >= 2 and by_node[ids[0]] > 0


def rows_of(results: Path) -> int:
    with suppress(Exception):
        return ResultsTable.open(str(results)).dataset().count_rows()
    return 0


def at_work(place: Path) -> set[int]:
    """The raylets whose processes score."""
    parents = set()
    for pid in marked(f"{MARKER}={place}"):
        with suppress(OSError):
            if b"MapBatches(whole)" in Path(f"/proc/{pid}/cmdline").read_bytes():
                parents.add(int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]))
    return parents


@pytest.mark.parametrize("gpus", [1])
@pytest.mark.parametrize("victim", ["ray::MapWorker", pytest.param("ray::MapBatches(refine)", marks=pytest.mark.nightly)])
def test_with_gpus_scoring_and_refining_are_apart_and_the_death_of_either_costs_nothing_but_time(
    start: Start, tmp_path: Path, archive: Path, model: Path, cluster: object, victim: str
) -> None:
    """The GPU is one in name: the actors that Ray gives it to score on their CPU."""
    results = tmp_path / "results"
    arguments = ("--model", str(model), "--address", cluster.address, "--json")  # type: ignore[attr-defined]
    process = start("segment", str(archive), str(results), *arguments)

    def found() -> list[int]:
        return [pid for pid in marked(f"{MARKER}={tmp_path}") if victim.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]

    wait_for(lambda: bool(found()) or process.poll() is not None, victim)
    os.kill(found()[0], signal.SIGKILL)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert json.loads(out)["images"] == 48
    assert segmented(results) == sorted(path.as_uri() for path in archive.rglob("*.jpg"))


@pytest.mark.parametrize("gpus", [1])
def test_scorers_refine_where_they_are_told_to(start: Start, tmp_path: Path, cluster: object) -> None:
    """The GPU is one in name, and refines with torch on the CPU: the masks of the native engine in its exact mode."""
    archive = tmp_path / "photos"
    archive.mkdir()
    for path in sorted((EXAMPLES / "images").glob("*.jpg"))[:2]:
        shutil.copy(path, archive)
    (archive / "broken.jpg").write_bytes(b"no photo")
    results = tmp_path / "results"
    arguments = ("--model", "pets", "--crf-backend", "torch", "--max-error-rate", "0.5", "--json")
    arguments += ("--address", cluster.address)  # type: ignore[attr-defined]
    process = start("segment", str(archive), str(results), *arguments)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert summary["images"] == 3 and summary["errors"] == 1
    assert summary["seconds_by_stage"]["refine_gpu"] > 0
    network, crf = checkpoint.load("pets").network, DenseCRF("exact")
    same = total = 0
    for row in ResultsTable.open(str(results)).dataset().to_table().to_pylist():
        if row["status"] == "ok":
            pixels = decode(Path(row["uri"].removeprefix("file://")).read_bytes())
            expected = crf.labels(pixels, Predictor(network).scores([pixels])[0], stride=8)
            found = np.asarray(Image.open(io.BytesIO(row["mask"])))
            assert (row["height"], row["width"]) == found.shape == expected.shape
            assert row["refined"] == f"{crf.short()} torch" and 0.5 < row["confidence"] <= 1
            same, total = same + int((found == expected).sum()), total + found.size
    assert same >= 0.999 * total > 0


@pytest.mark.nightly
@pytest.mark.parametrize("gpus", [1])
@pytest.mark.parametrize("memory", [80 << 20])  # about the least that Ray takes
def test_a_slow_crf_holds_the_scorer_back_when_the_object_store_is_full(
    start: Start, tmp_path: Path, model: Path, cluster: object
) -> None:
    """Four fifths of a megabyte per image, and noise is the CRF's worst case; all together do not fit."""
    noise = np.random.default_rng(0)
    archive = tmp_path / "noise"
    archive.mkdir()
    for index in range(120):
        Image.fromarray(noise.integers(0, 256, (512, 512, 3), np.uint8)).save(archive / f"{index}.png", compress_level=0)
    results = tmp_path / "results"
    arguments = ("--model", str(model), "--address", cluster.address, "--json")  # type: ignore[attr-defined]
    process = start("segment", str(archive), str(results), *arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert json.loads(out)["images"] == len(segmented(results)) == 120


def test_a_cluster_on_this_host_is_not_joined_unless_it_is_named(
    start: Start, tmp_path: Path, archive: Path, model: Path, cluster: object
) -> None:
    """The head has no CPU to give to a job that would wander in, and Ray lists it as the host's current cluster."""
    for node in list(cluster.worker_nodes):  # type: ignore[attr-defined]
        cluster.remove_node(node)  # type: ignore[attr-defined]
    process = start("segment", str(archive), str(tmp_path / "results"), "--model", str(model), "--limit", "3", "--no-crf", "--json")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert json.loads(out)["images"] == 3


@pytest.mark.parametrize(
    ("address", "message"), [("127.0.0.1:{port}", "no answer from"), ("somewhere", "host:port"), ("ray://x:1", "host:port")]
)
def test_an_address_that_does_not_answer_is_an_error_within_the_deadline(
    tmp_path: Path, archive: Path, model: Path, address: str, message: str
) -> None:
    done = deeplab("segment", archive, tmp_path / "r", "--model", model, "--address", address.format(port=free_port()))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_answers_but_is_no_ray_is_an_error_and_not_a_hang(
    tmp_path: Path, archive: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 8)  # as after 30
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = deeplab("segment", archive, tmp_path / "r", "--model", model, "--address", address)
    assert done.returncode == 1
    assert address in done.stderr
    assert "Traceback" not in done.stderr


def listening(pids: list[int]) -> set[str]:
    """Addresses, as /proc/net has them, on which processes of this host listen."""
    sockets = set()
    for pid in pids:
        with suppress(OSError):
            sockets |= {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].split(":")[0])
    return found


def test_a_ray_of_our_own_listens_on_loopback_alone_and_ends_with_its_run_at_sigterm(
    start: Start, tmp_path: Path, archive: Path, model: Path
) -> None:
    process = start("segment", str(archive), str(tmp_path / "results"), "--model", str(model))
    wait_for(lambda: bool(in_session(process.pid, "MapBatches(whole)")) or process.poll() is not None, "a task")
    found = listening(in_session(process.pid))
    assert found  # raylet, GCS, workers
    assert found <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, err
    wait_for(lambda: not in_session(process.pid, "ray"), "Ray to end")


def test_an_evaluation_counts_every_image_once_when_a_node_dies(start: Start, tmp_path: Path, model: Path, cluster: object) -> None:
    dataset = make_dataset(tmp_path / "squares", count=40, classes=PETS.names)
    command = ("evaluate", str(model), str(dataset), "--split", "train", "--crf", "--json")
    process = start(*command, "--workers", "2", "--address", cluster.address)  # type: ignore[attr-defined]

    def at_work() -> list[int]:
        """The raylets whose workers have a share in hand."""
        busy = []
        for pid in marked(f"{MARKER}={tmp_path}"):
            with suppress(OSError):
                if b"ray::share" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    busy.append(int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]))
        return busy

    def raylet(node: object) -> int:
        return int(node.all_processes["raylet"][0].process.pid)  # type: ignore[attr-defined]

    wait_for(lambda: bool(at_work()) or process.poll() is not None, "a share")
    assert process.poll() is None, process.communicate()[1]
    victim = at_work()[0]
    nodes = cluster.worker_nodes.copy()  # type: ignore[attr-defined]
    cluster.remove_node(next(node for node in nodes if raylet(node) == victim), allow_graceful=False)  # type: ignore[attr-defined]
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    alone = start(*command)
    undisturbed, err = alone.communicate(timeout=PATIENCE)
    assert alone.returncode == 0, err
    assert json.loads(out) == json.loads(undisturbed)

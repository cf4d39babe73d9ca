"""A card that only sleeps: scorers keep it busy from the first image to the last, whatever is committed beside them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.options import SegmentOptions
from pipelines.segment import parallelism, stream
from pipelines.segment.run import SegmentProgress, segment
from pipelines.segment.stages import Score
from tests.material import make_archive
from tests.system.conftest import NODES

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]
CARDS, IMAGES, IMAGE_SECONDS = 2, 2400, 0.04
PLACE = "DEEPLAB_TEST_CARDS"


class Card:
    """Stands for a predictor: it holds a lock of its process for IMAGE_SECONDS an image, and notes when."""

    def __init__(self) -> None:
        self.path = Path(os.environ[PLACE]) / f"card-{os.getpid()}"

    def scores(self, pixels: list[np.ndarray]) -> list[np.ndarray]:
        with self.path.open("a") as log:
            fcntl.flock(log, fcntl.LOCK_EX)
            start = time.time()
            time.sleep(IMAGE_SECONDS * len(pixels))
            log.write(f"{start} {time.time()}\n")
        random = np.random.default_rng(len(pixels))
        return [random.normal(size=(3, -(-p.shape[0] // 8) + 1, -(-p.shape[1] // 8) + 1)).astype(np.float16) for p in pixels]


class SleepingScore(Score):
    def __init__(self, model: Any, task: Any, register: Any) -> None:
        super().__init__(model, task, register)
        self.scorer.predictor = Card()  # type: ignore[assignment]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A node with two cards in name, and one for the CRF."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv(PLACE, str(tmp_path))
    for name, value in NODES.items():
        monkeypatch.setenv(name, value)
    store = {"object_store_memory": 200 << 20}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store})
    try:
        nodes.add_node(num_cpus=2, num_gpus=CARDS, **store)
        nodes.add_node(num_cpus=2, **store)
        yield nodes
    finally:
        nodes.shutdown()


def test_cards_are_busy_from_the_first_image_to_the_last_over_fifty_commits(
    cluster: Any, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "Score", SleepingScore)
    monkeypatch.setattr(
        parallelism, "GPU_BLOCK", (16, 1 << 20)
    )  # half a second's work, so that there is something to commit each time
    archive = make_archive(tmp_path / "photos", IMAGES)
    options = SegmentOptions(
        archive=str(archive), results=str(tmp_path / "results"), model=str(model), commit_every=0.5, address=cluster.address
    )
    seen: list[SegmentProgress] = []
    summary = segment(options, seen.append)
    assert (summary.images, summary.errors) == (IMAGES, 0)
    assert summary.commits >= 50
    assert len(summary.images_by_node) == 2  # the CRF ran on the other node, too
    logs = [np.loadtxt(path) for path in tmp_path.glob("card-*")]
    assert len(logs) == CARDS
    shares = [float((log[:, 1] - log[:, 0]).sum() / (log[:, 1].max() - log[:, 0].min())) for log in logs]
    assert min(shares) >= 0.95, shares

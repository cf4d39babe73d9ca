"""How a run is spread over a cluster, and what a run is told of the stage that bounds it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cluster.connection import Resources
from pipelines.segment.bottleneck import bound
from pipelines.segment.parallelism import PROCESS_BYTES, Parallelism, parallelism

CPU = Parallelism(64, 4 << 20, 4, 4, 1.0, PROCESS_BYTES)
GPU = Parallelism(256, 64 << 20, 2, 16, 1.0, 0.0, 2, 1.0)


@given(cpus=st.integers(1, 500), gpus=st.integers(0, 64), memory=st.integers(1 << 28, 1 << 42), nodes=st.integers(1, 50))
def test_a_layout_never_asks_for_more_than_there_is(cpus: int, gpus: int, memory: int, nodes: int) -> None:
    chosen = parallelism(Resources(cpus, gpus, memory, memory / nodes))
    assert chosen.slots >= 1 and chosen.cores == cpus
    if gpus:
        assert chosen.scorers == gpus
        assert chosen.scorers * chosen.scorer_cpus + chosen.cpus <= cpus + 1e-9 and chosen.cpus > 0
    else:
        assert chosen.slots * chosen.cpus <= cpus
        assert chosen.memory <= memory / nodes  # so that the largest node takes at least one
        assert chosen.slots == 1 or chosen.slots * chosen.memory <= memory


def test_a_cluster_short_of_memory_works_at_fewer_images_at_a_time() -> None:
    plenty = 1000 * PROCESS_BYTES
    assert parallelism(Resources(4, 0, plenty, plenty)).slots == 4
    assert parallelism(Resources(4, 0, 2 * PROCESS_BYTES, 2 * PROCESS_BYTES)).slots == 2
    assert (parallelism(Resources(4, 0, 0, 0)).slots, parallelism(Resources(4, 0, 0, 0)).memory) == (4, 0)  # nodes that do not say
    assert parallelism(Resources(4, 0, 4 * PROCESS_BYTES, 4 * PROCESS_BYTES), 6_000_000).slots == 4  # a bundled model
    assert parallelism(Resources(4, 0, 4 * PROCESS_BYTES, 4 * PROCESS_BYTES), 773_000_000).slots == 1  # EDeconvNet


@pytest.mark.parametrize(
    ("seconds", "wall", "spread", "begins", "says"),
    [
        ({"score": 30.0, "refine": 8.0, "encode": 1.0, "read": 1.0}, 10, CPU, "score: 77%", "a GPU"),
        ({"score": 8.0, "refine": 28.0, "encode": 1.0}, 10, CPU, "refine: 76%", "--crf-mode fast"),
        ({"score": 4.0, "refine": 1.0, "read": 60.0}, 10, CPU, "waiting: the 4 cores were busy 12%", "a nearer store"),
        ({"score": 4.0, "refine": 1.0, "read": 0.5}, 10, CPU, "waiting: the 4 cores were busy 12%", "more images"),
        ({"score": 18.0, "refine": 40.0, "encode": 2.0}, 10, GPU, "score: 2 GPUs were busy 90%", "more GPUs"),
        ({"score": 10.0, "refine": 140.0, "encode": 10.0}, 10, GPU, "refine: cores were busy 94%", "about 30 cores"),
        ({"score": 2.0, "refine": 4.0}, 10, GPU, "waiting: GPUs were busy 10%", "more images"),
        ({}, 10, CPU, "", ""),
        ({"read": 1.0}, 0, CPU, "", ""),
    ],
)
def test_a_run_is_told_what_bounds_it(seconds: dict[str, float], wall: float, spread: Parallelism, begins: str, says: str) -> None:
    found = bound(seconds, wall, spread)
    assert found.startswith(begins) and says in found and bool(found) == bool(begins)

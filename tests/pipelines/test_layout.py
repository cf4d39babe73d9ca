"""How a chunk is spread over a cluster, and what a run is told of the stage that bounds it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.bound import bound
from pipelines.layout import PROCESS_BYTES, Layout, layout

PLENTY = 1000 * PROCESS_BYTES
CPU = Layout(64, 4, 0.9, 0.1)
GPU = Layout(256, 16, 1.0, 0.1, 2, 1.0)


@given(cpus=st.integers(1, 500), gpus=st.integers(0, 64), memory=st.integers(1 << 28, 1 << 42), images=st.integers(1, 10**6))
def test_a_layout_never_asks_for_more_than_there_is(cpus: int, gpus: int, memory: int, images: int) -> None:
    found = layout(cpus, gpus, memory, images)
    assert 1 <= found.images_per_block <= max(images, 1)
    if gpus:
        assert found.scorers is not None and 1 <= found.scorers <= gpus
        assert found.scorers * found.scorer_cpus + found.cpus + found.write_cpus <= cpus + 1e-9
    else:
        assert found.tasks * found.cpus + found.write_cpus <= cpus + 0.1
        assert found.tasks == 1 or found.tasks * PROCESS_BYTES <= memory


def test_small_chunks_reach_every_core_and_large_ones_are_cut_finely() -> None:
    assert layout(4, 0, PLENTY, 18).images_per_block == 5
    assert layout(4, 0, PLENTY, 20_000).images_per_block == 64
    assert layout(4, 0, 2 * PROCESS_BYTES, 20_000).tasks == 2
    assert layout(4, 0, math.inf, 20_000).tasks == 4


@pytest.mark.parametrize(
    ("seconds", "wall", "spread", "begins", "says"),
    [
        ({"score": 30.0, "refine": 8.0, "encode": 1.0, "read": 1.0}, 10, CPU, "score: 77%", "a GPU"),
        ({"score": 8.0, "refine": 28.0, "encode": 1.0}, 10, CPU, "refine: 76%", "--crf-mode fast"),
        ({"score": 4.0, "refine": 1.0, "read": 60.0}, 10, CPU, "waiting: the 4 cores were at work 12%", "a nearer store"),
        ({"score": 4.0, "refine": 1.0, "read": 0.5}, 10, CPU, "waiting: the 4 cores were at work 12%", "more images"),
        ({"score": 18.0, "refine": 40.0, "encode": 2.0}, 10, GPU, "score: 2 GPUs were at work 90%", "more GPUs"),
        ({"score": 10.0, "refine": 140.0, "encode": 10.0}, 10, GPU, "refine: cores were at work 94%", "about 30 cores"),
        ({"score": 2.0, "refine": 4.0}, 10, GPU, "waiting: GPUs were at work 10%", "more images"),
        ({}, 10, CPU, "", ""),
        ({"read": 1.0}, 0, CPU, "", ""),
    ],
)
def test_a_run_is_told_what_bounds_it(seconds: dict[str, float], wall: float, spread: Layout, begins: str, says: str) -> None:
    found = bound(seconds, wall, spread)
    assert found.startswith(begins) and says in found and bool(found) == bool(begins)

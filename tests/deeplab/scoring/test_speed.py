"""The figures of `deeplab benchmark`: FLOPs against a count by hand, the estimate's arithmetic, and a whole measurement."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deeplab.crf import DenseCRF
from deeplab.images.decoding import decode
from deeplab.models import checkpoint
from deeplab.scoring import speed
from deeplab.scoring.speed import Speed, estimate
from deeplab.zoo import build

ROOT = Path(__file__).parents[3]
MEASURED = Speed("one core", "float32", 8, 187_500.0, {"decode": 0.01, "score": 0.2, "refine": 0.05, "encode": 0.04}, 40e9, 400e9)


def test_flops_are_those_of_a_count_by_hand():
    network = build("vgg16-largefov", 21).to("meta").eval()
    by_hand = []

    def count(conv: torch.nn.Conv2d, given: object, result: torch.Tensor) -> None:
        by_hand.append(2 * conv.weight[0].numel() * result.numel())

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.empty(1, 3, 65, 97, device="meta"))
    assert len(by_hand) == 16
    assert speed.flops_of(build("vgg16-largefov", 21), 60, 97, (1.0,), flip=False) == sum(by_hand)
    assert speed.flops_of(build("vgg16-largefov", 21), 65, 97, (1.0,), flip=True) == 2 * sum(by_hand)


def test_three_scales_cost_what_they_must():
    network = build("mobilenet-v2-aspp", 3)
    one = speed.flops_of(network, 375, 500, (1.0,), flip=False)
    three = speed.flops_of(network, 375, 500, (0.5, 0.75, 1.0), flip=False)
    assert three / one == pytest.approx(1 + 0.5625 + 0.25, rel=0.04)  # each scale's sides go up to the lattice


def test_an_estimate_multiplies_what_was_measured():
    on_cores = estimate(MEASURED, 36_000, cores=3, hourly_price=2.0)
    assert on_cores.images_per_second == pytest.approx(10.0)
    assert on_cores.hours == pytest.approx(1.0) and on_cores.cost == pytest.approx(2.0)
    assert on_cores.bound == "score"
    assert estimate(MEASURED, 10, cores=100, gpus=1).images_per_second == pytest.approx(5.0)
    starved = estimate(MEASURED, 10, cores=1, gpus=4)
    assert starved.images_per_second == pytest.approx(10.0) and starved.bound == "decode, refine and encode"
    assert MEASURED.utilisation == pytest.approx(0.5)


def test_every_stage_of_a_model_is_measured(photo):
    model = checkpoint.load("pets")
    encoded = speed.pictures(2, 65, 90)
    assert decode(encoded[0]).shape == (65, 90, 3) and encoded[0] != encoded[1]
    told: list[tuple[int, int]] = []
    crf = DenseCRF.named("kazuto")
    found = speed.measure(model, encoded, device="cpu", crf=crf, rounds=2, watch=lambda done, total: told.append((done, total)))
    assert set(found.seconds) == {"decode", "score", "refine", "encode"}
    assert all(value > 0 for value in found.seconds.values()) and found.utilisation > 0
    assert (found.images, found.pixels) == (2, 65 * 90) and told[-1] == (3, 3)
    with pytest.raises(ValueError, match="no photos"):
        speed.measure(model, [])


def test_the_script_for_a_gpu_runs_at_toy_size_on_a_cpu():
    """Nothing of it may fail for the first time on a machine that is paid by the hour."""
    asked = ["--device", "cpu", "--architecture", "mobilenet-v2-aspp", "--sizes", "33x49,41x41", "--count", "2", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", *asked], capture_output=True, text=True, cwd=ROOT, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images/s") == 2 and "Self CPU time total" in done.stdout

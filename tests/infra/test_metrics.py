"""What a run exports, scraped from a real Ray node: all that the dashboard and the alerts ask for."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from pipelines.options import SegmentOptions
from pipelines.segment.run import segment
from tests.infra.test_files import expressions
from tests.material import make_archive

# Only nodes with GPUs have them.
WITH_GPUS = {"ray_node_gpus_utilization", "ray_node_gram_used"}


def sample(text: str, name: str, results: str) -> dict[str, float]:
    """Label `stage` (or nothing) -> value of a metric's samples for one table."""
    found = {}
    for labels, value in re.findall(rf"^{name}\{{(.*)\}} (\S+)$", text, re.M):
        if f'results="{results}"' not in labels:
            continue
        stage = re.search(r'stage="(\w+)"', labels)
        found[stage[1] if stage else ""] = float(value)
    return found


def test_a_run_exports_what_dashboard_and_alerts_ask_for(running_ray: None, model: Path, tmp_path: Path) -> None:
    (node,) = ray.nodes()
    archive = make_archive(tmp_path / "photos", 5)
    (archive / "broken.jpg").write_bytes(b"not an image")
    options = SegmentOptions(
        archive=str(archive), results=str(tmp_path / "results"), model=str(model), max_error_rate=1, crf_mode="exact"
    )
    summary = segment(options)
    assert (summary.images, summary.errors) == (6, 1)
    text = ""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        images, pending = (sample(text, f"ray_deeplab_{name}", summary.results) for name in ("images_total", "pending_images"))
        if images == {"": 6.0} and pending == {"": 0.0}:
            break
        time.sleep(1)
    assert images == {"": 6.0}
    assert sample(text, "ray_deeplab_errors_total", summary.results) == {"": 1.0}
    assert sample(text, "ray_deeplab_commits_total", summary.results) == {"": summary.commits}
    assert pending == {"": 0.0}
    stages = sample(text, "ray_deeplab_stage_seconds_total", summary.results)
    assert {"score", "refine", "decode"} <= set(stages)
    assert all(value == pytest.approx(summary.seconds_by_stage[stage], rel=0.05) for stage, value in stages.items())
    assert f'results="{summary.results}"' in text and f'model="{summary.model}"' in text

    exported = set(re.findall(r"^(\w+)(?:\{| )", text, re.M))
    for where, expression in expressions().items():
        asked = set(re.findall(r"\b(ray_\w+)\b", expression))
        assert asked and asked - WITH_GPUS <= exported, where

"""`deeplab run ...`: the flows here and now, with the embedded server and with a real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import ROOT, Prefect
from tests.material import make_archive, make_model, uris
from tests.processes import wait_for

pytestmark = [pytest.mark.drill, pytest.mark.timeout(1200)]


def run(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", "run", *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


def test_without_a_server_the_final_state_is_printed_and_the_exit_code_tells(tmp_path: Path) -> None:
    archive, model = make_archive(tmp_path / "photos", 3), make_model(tmp_path / "tiny")
    (archive / "broken.jpg").write_bytes(b"no image")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect"), "HOME": "/dev/null/home", "HTTP_PROXY": "http://127.0.0.1:9"}
    command = ("segment", archive, tmp_path / "results", "--model", model, "--no-crf", "--scales", "1")
    done = run(environment, *command)
    assert done.returncode == 3, done.stderr
    assert "Failed" in done.stderr
    assert "1 of 4 images (25.0%) became error rows" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(uris(tmp_path / "results")) == 4


def test_a_run_from_a_shell_is_seen_and_cancelled_on_the_server(prefect_server: Prefect, tmp_path: Path) -> None:
    """No runner supervises it, so it asks the server itself; Ctrl-C takes the same way."""
    from prefect.states import Cancelling

    archive, model, results = make_archive(tmp_path / "photos", 24, scale=20), make_model(tmp_path / "tiny"), tmp_path / "results"
    more = ("--model", model, "--no-crf", "--scales", "1", "--commit-every", 0.5)
    process = prefect_server.deeplab("run", "segment", archive, results, *more, log="shell.log")
    log = prefect_server.home / "shell.log"
    wait_for(lambda: re.search(r"[1-9]\d* committed", log.read_text()) or process.poll() is not None, "a first commit")
    assert process.poll() is None, log.read_text()[-3000:]
    with prefect_server.client() as client:
        (mine,) = [found for found in client.read_flow_runs() if found.parameters.get("options", {}).get("results") == str(results)]
        client.set_flow_run_state(mine.id, Cancelling(), force=True)
        assert process.wait(timeout=300) == 130
        assert client.read_flow_run(mine.id).state.type.value == "CANCELLED"
    assert 0 < len(uris(results)) < 24


@pytest.mark.nightly
def test_a_trained_model_takes_the_free_alias_and_is_reported_with_its_curves(prefect_server: Prefect, tmp_path: Path) -> None:
    init, registry = make_model(tmp_path / "start"), tmp_path / "registry"
    small = ("--steps", 2, "--batch-size", 2, "--crop", 65, "--loaders", 0)
    command = ("train", "examples/pets", tmp_path / "mine", "--init", init, *small, "--registry", registry, "--json")
    done = run(prefect_server.environment, *command)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["registered"]["moved"]
    alias = json.loads((registry / "aliases" / "production.json").read_text())
    assert alias["entry"] == result["registered"]["entry"]
    assert alias["figures"]["mean_iou"] == pytest.approx(result["mean_iou"])

    def report(artifact: Any) -> bool:
        return bool(artifact.type == "markdown" and artifact.key and artifact.key.startswith("training-mine"))

    with prefect_server.client() as client:
        (text,) = [artifact.data for artifact in client.read_artifacts() if report(artifact)]
    for part in ("mean iou", "data:image/jpeg;base64", "| step | loss | mIoU |", "first holder of production"):
        assert part in text

    # The other flow trains once more, decides about the alias, and segments with whoever holds it then.
    more = {"dataset": "examples/pets", "out": str(tmp_path / "next"), "init": str(init), "registry": str(registry)}
    (tmp_path / "train.json").write_text(json.dumps({**more, "steps": 1, "batch_size": 2, "crop": 65, "loaders": 0, "seed": 5}))
    archive = make_archive(tmp_path / "photos", 2)
    command = ("refresh", archive, tmp_path / "results", "--model", f"{registry}@production", "--train", tmp_path / "train.json")
    done = run(prefect_server.environment, *command, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    holder = json.loads((registry / "aliases" / "production.json").read_text())
    assert result["segmented"]["model"] == holder["label"]
    assert result["trained"]["registered"]["moved"] == (holder["entry"] != alias["entry"])
    assert result["segmented"]["images"] == 2


def test_the_shipped_deployments_are_accepted_by_a_server_with_their_schedules_off(
    prefect_server: Prefect, prepared: object
) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "infra/prefect.yaml"]
    done = subprocess.run(command, env=prefect_server.environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with prefect_server.client() as client:
        found = client.read_deployment_by_name("segment-archive/photos")
        refreshed = client.read_deployment_by_name("refresh/refresh")
    (schedule,) = found.schedules
    assert (schedule.slug, schedule.active, schedule.schedule.timezone) == ("nightly", False, "Europe/Berlin")
    assert (found.global_concurrency_limit.limit, found.concurrency_options.collision_strategy) == (1, "ENQUEUE")
    assert refreshed.work_pool_name == "deeplab"

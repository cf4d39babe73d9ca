"""Parts of the flows that need no server: the report's text, the curves, the registry's decision, the cleaning."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from PIL import Image
from prefect.states import Failed
from pydantic import ValidationError

from deeplab.classes import PETS
from deeplab.training.presets import PRESETS
from flows.segment import transient
from flows.serving import settings
from flows.serving.cleanup import end_processes
from flows.train import preflight
from flows.watching import progress
from flows.watching.progress import slug
from flows.watching.run_report import markdown, picture_url
from pipelines.archive.image_lists import ArchiveError
from pipelines.cluster.ray_jobs import JobFailed
from pipelines.options import EvaluateOptions, RegisteredTraining
from pipelines.segment.run import SegmentError, Summary, TooManyErrors
from pipelines.storage import s3 as store
from pipelines.storage.model_registry import Registry
from pipelines.storage.storage_errors import StorageError
from pipelines.train import flow_steps
from tests.material import EXAMPLES, make_dataset, make_model
from tests.processes import wait_for


def summary() -> Summary:
    return Summary(
        "run-1", "pets@abc", "file:///r", version=7, archive_images=1000, already=400, images=600, errors=2,
        errors_by_reason={"decode: a | b": 2}, class_shares={"cat": 0.25, "dog": 0.75}, seconds=1800.0,
        seconds_by_stage={"score": 30.0, "refine": 10.0}, images_per_second=1 / 3,
    )  # fmt: skip


def test_the_report_compares_shares_counts_errors_and_knows_the_cost() -> None:
    text = markdown(summary(), {"cat": 0.20}, "`run-0`", 4.0)
    assert "| cat | 25.00% | 20.00% | +5.00% |" in text
    assert "| dog | 75.00% | - | - |" in text
    assert "| 2 | decode: a \\| b |" in text
    assert "| score | 30.0 | 75% |" in text
    assert "2.0000 at 4 an hour, 3.3333 per 1,000 images" in text
    assert "cost" not in markdown(summary(), {}, "", None)


def test_names_for_keys_are_short_safe_and_distinct() -> None:
    assert slug("s3://Bucket/My Results/") != slug("s3://Other/My Results/")
    assert set(slug("s3://Bucket/My Results/" + "x" * 200)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_a_picture_is_sent_inside_its_url() -> None:
    assert picture_url(Image.new("RGB", (8, 8))).startswith("data:image/jpeg;base64,")


def test_presets_in_the_form_are_those_that_exist() -> None:
    assert RegisteredTraining.model_json_schema()["properties"]["preset"]["enum"] == list(PRESETS)
    with pytest.raises(ValidationError, match="finetune"):
        RegisteredTraining(dataset="d", out="o", preset="finetun")


def test_an_alias_moves_to_a_model_that_is_as_good_and_not_to_a_worse_one(tmp_path: Path) -> None:
    place = str(tmp_path / "registry")
    holder, other = make_model(tmp_path / "holder"), make_model(tmp_path / "other", 1, "other")
    data = str(make_dataset(tmp_path / "data", classes=PETS.names))
    options = RegisteredTraining(dataset=data, out=str(other), registry=place)
    figures = flow_steps.evaluate(EvaluateOptions(model=str(holder), dataset=data))
    assert flow_steps.register(options.model_copy(update={"out": str(holder)}), figures)["moved"]
    worse = flow_steps.register(options, {**figures, "mean_iou": figures["mean_iou"] - 1e-3})
    assert not worse["moved"]
    assert "stays" in worse["reason"]
    assert Registry(place).alias("production").entry.startswith("tiny-")  # type: ignore[union-attr]
    assert flow_steps.register(options, figures)["moved"]
    assert Registry(place).alias("production").entry == worse["entry"]  # type: ignore[union-attr]


def test_a_training_whose_registry_could_lose_a_move_does_not_start(s3: str) -> None:
    options = RegisteredTraining(dataset=str(EXAMPLES), out="out", registry=f"{s3}/models")
    assert preflight.fn(options) == "production is free"
    store.client().meta.events.register("before-parameter-build.s3.PutObject", lambda params, **_: params.pop("IfMatch", None))
    with pytest.raises(StorageError, match=r"/models: this store ignores conditional PUT \(If-Match\)"):
        preflight.fn(options)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (SegmentError("the run stopped, 1 of 2 images are committed"), True),
        (JobFailed("job was stopped"), True),
        (ConnectionResetError("store"), True),
        (OSError("disk full"), True),
        (FileNotFoundError("no such archive"), False),
        (ArchiveError("no such archive"), False),
        (TooManyErrors("2 of 3 images", summary()), False),
    ],
)
def test_trouble_of_the_system_is_tried_again_and_errors_of_the_user_are_not(error: Exception, again: bool) -> None:
    assert transient(None, None, Failed(data=error)) is again


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc, by which processes are found: only on Linux")
def test_only_processes_of_the_named_run_are_ended() -> None:
    def sleeper(run: str) -> subprocess.Popen[bytes]:
        code = "import sys, time; print(flush=True); time.sleep(60)"
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "DEEPLAB_TEST_RUN": run}, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process

    mine, foreign = sleeper("mine"), sleeper("foreign")
    try:
        assert end_processes("DEEPLAB_TEST_RUN=mine", grace=0.2) == 1
        assert mine.wait(timeout=10) < 0
        assert foreign.poll() is None
    finally:
        for process in (mine, foreign):
            process.kill()
            process.wait()


def test_a_server_that_is_away_when_a_run_begins_is_told_of_it_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Any, ...]] = []

    class Client:
        """Refuses calls while it is away, as a server does that is being started again."""

        away, refusals = True, 0

        def create_artifact(self, artifact: Any) -> Any:
            if Client.away:
                Client.refusals += 1
                raise httpx.ConnectError("connection refused")
            sent.append(("made", artifact.data, artifact.description))
            return SimpleNamespace(id=uuid4())

        def update_artifact(self, number: Any, change: Any) -> None:
            sent.append(("changed", change.data, change.description))

    monkeypatch.setattr(progress, "get_client", lambda sync_client: Client())
    monkeypatch.setattr(progress, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(progress, "flow_run", SimpleNamespace(id=str(uuid4()), root_flow_run_id=None))
    monkeypatch.setattr(progress, "ARTIFACT_SECONDS", 0.01)
    with progress.Watcher("progress-photos") as watcher:
        watcher.show(50, "half of it")
        wait_for(lambda: Client.refusals >= 2, "refused calls")
        Client.away = False
        wait_for(lambda: sent, "the call that is not refused")
        watcher.show(100, "all of it")
    assert sent == [("made", 50, "half of it"), ("changed", 100, "all of it")]


def test_a_page_that_a_server_does_not_take_ends_no_run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(progress, "get_run_logger", lambda: logging.getLogger("test"))

    @progress.best_effort("report")
    def report() -> None:
        raise httpx.ConnectError("connection refused")

    report()
    assert "no report on the run's page: the Prefect server cannot be reached" in caplog.text


def test_a_run_begins_without_its_turn_when_no_server_can_say_whose_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(sync_client: bool) -> None:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(settings, "get_client", refused)
    monkeypatch.setattr(settings, "get_run_logger", lambda: logging.getLogger("test"))
    with settings.one_at_a_time("file:///results"):
        assert "the run does not wait for others on file:///results" in caplog.text

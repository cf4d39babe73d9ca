"""What one option promises, the others keep: refusals come before the work, and only what may pass is tried again."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from prefect.states import Failed
from pydantic import BaseModel, ValidationError
from typer.testing import CliRunner

from deeplab import masks, zoo
from deeplab.crf import DenseCRF
from deeplab.devices import DeviceError
from deeplab.errors import UserError
from deeplab.models import checkpoint
from deeplab.models.checkpoint import ModelError
from flows.cli import app
from flows.segment import transient
from pipelines import options
from pipelines.archive import inventory
from pipelines.archive.image_lists import ArchiveError
from pipelines.segment.run import SegmentError
from pipelines.storage import filesystems, storage_errors
from pipelines.storage import s3 as store
from pipelines.storage.model_registry import Registry, read_model
from pipelines.table.commit import write_part
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import FILE_SCHEMA
from pipelines.table.table_errors import ResultsError
from pipelines.train import flow_steps
from pipelines.train.crf_search import tune
from pipelines.train.evaluation import evaluate
from pipelines.train.ray_train import train
from tests.material import EXAMPLES, make_archive, make_dataset, make_model
from tests.s3_server import fresh_clients

PLACES = {"archive": "a", "results": "r", "dataset": "d", "model": "m", "model_out": "o", "out": "o"}


@pytest.mark.parametrize(
    ("kind", "values", "at"),
    [
        (options.SegmentOptions, {"tile": 256, "overlap": 256}, "overlap"),
        (options.SegmentOptions, {"tile": 256, "overlap": 193}, "overlap"),
        (options.TrainOptions, {"workers": 2, "min_workers": 3}, "min_workers"),
        (options.TrainOptions, {"batch_size": 1, "accumulate": 2}, "workers"),
        (options.TrainOptions, {"workers": 4000}, "workers"),
        (options.TrainOptions, {"workers": 2, "device": "cpu", "batch_norm": "sync"}, "workers"),
        (options.TrainOptions, {"preset": "finetun"}, "preset"),
        (options.RegisteredTraining, {"split": "val"}, "val_split"),
        (options.RegisteredTraining, {"workers": 2, "min_workers": 3}, "min_workers"),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_the_schema(
    kind: type[BaseModel], values: dict[str, object], at: str
) -> None:
    places = {name: place for name, place in PLACES.items() if name in kind.model_fields}
    with pytest.raises(ValidationError) as caught:
        kind(**places, **values)
    assert [problem["loc"] for problem in caught.value.errors()] == [(at,)]
    if kind is options.TrainOptions and "preset" in values:
        assert "nearest finetune; one of" in str(caught.value)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("segment a r --tile 256 --overlap 256 --scales big --crf-mode slow --limit 0", "overlap scales crf-mode limit"),
        ("run segment a r --tile 256 --overlap 256 --max-error-rate 2", "overlap max-error-rate"),
        ("train d o --steps 0 --min-workers 2 --batch-norm new --preset x", "steps min-workers batch-norm preset"),
        ("run train d o --split val --crop 3 --set tile=4", "val-split crop set"),
        ("evaluate m d --trimap wide --scales 9 --workers 0 --split ../x", "trimap scales workers split"),
        ("run evaluate m d --trimap 0 --crf-mode slow", "trimap crf-mode"),
        ("tune-crf m d --rounds 9 --images 0 --grid fine", "rounds images grid"),
        ("serve a r --set overlap=1025 --set model=pets --set limt=3", "set set"),
    ],
)
def test_every_bad_option_is_named_at_once_as_it_is_typed(command: str, flags: str) -> None:
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 2, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert sorted(line.split()[1].strip(":-") for line in lines) == sorted(flags.split())
    assert not isinstance(done.exception, ValidationError | TypeError)


@pytest.mark.parametrize(
    ("name", "value", "again"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", False),
        ("AWS_ACCESS_KEY_ID", "wrong", False),
        ("AWS_SECRET_ACCESS_KEY", None, False),
        ("AWS_REQUEST_CHECKSUM_CALCULATION", "nonsense", False),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", True),
    ],
)
def test_a_store_that_is_away_is_asked_again_and_one_that_refuses_is_not(
    s3: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, again: bool
) -> None:
    """Every way to a store says the same: ours, the Delta library's, and the flows that hear of it."""
    table = f"{s3}/table"
    ResultsTable.ensure(table)
    monkeypatch.setattr(store, "TRIES", 1)
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    fresh_clients()
    ways = [
        lambda: filesystems.read_versioned(f"{s3}/x"),
        lambda: filesystems.write_whole(f"{s3}/x", b"x"),
        lambda: list(store.list_objects(s3)),
        lambda: store.require_conditional_put(s3),
    ]
    if "CHECKSUM" not in name:  # botocore's own
        ways.append(lambda: ResultsTable.open(table))
    for way in ways:
        with pytest.raises(UserError) as caught:
            way()
        assert filesystems.passes(caught.value) is again, caught.value
        assert transient(None, None, Failed(data=caught.value)) is again


def test_a_missing_bucket_is_not_asked_for_again(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def listed() -> None:
        tries.append(1)
        list(store.list_objects("s3://no-such-bucket-here/photos"))

    with pytest.raises(storage_errors.StorageError, match="no such bucket"):
        filesystems.outlast(listed)
    assert len(tries) == 1


def test_an_error_about_an_outage_passes_and_a_chunk_that_met_a_refusal_does_not() -> None:
    listing = ArchiveError("s3://photos: cannot be listed")
    listing.__cause__ = storage_errors.Outage("s3://photos: away")
    assert filesystems.passes(listing)
    assert not filesystems.passes(ArchiveError("no such archive"))
    assert transient(None, None, Failed(data=SegmentError("chunk 1 of 2: no such bucket", passing=False))) is False


def test_a_gpu_that_is_not_there_is_one_line_in_every_command(tmp_path: Path, running_ray: None) -> None:
    """In this process, and through Ray."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: CUDA_VISIBLE_DEVICES= hides it")
    data, given = str(make_dataset(tmp_path / "data", 2)), {"device": "cuda"}
    commands = [
        lambda: evaluate(options.EvaluateOptions(model="pets", dataset=str(tmp_path / "nowhere"), **given)),
        lambda: tune(options.TuneOptions(model="pets", dataset=str(tmp_path / "nowhere"), **given)),
        lambda: train(options.TrainOptions(dataset=data, model_out=str(tmp_path / "out"), batch_size=2, **given)),
        lambda: DenseCRF(backend="torch", **given).labels(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 2), np.float32)),
        lambda: evaluate(options.EvaluateOptions(model="pets", dataset=str(EXAMPLES), workers=2, **given)),
    ]
    for command in commands:
        with pytest.raises(DeviceError, match=r"^device cuda: .* 'cpu' and 'auto' are accepted"):
            command()
    done = CliRunner().invoke(app, ["benchmark", "pets", "--device", "cuda"])
    assert isinstance(done.exception, DeviceError)


def test_a_search_that_could_not_be_kept_does_not_begin(s3: str, tmp_path: Path) -> None:
    """Bundled, in a registry by alias or by folder, read-only: refused before the data are opened. A model on s3:// is written."""
    registry = Registry(str(tmp_path / "registry"))
    entry = registry.publish(str(make_model(tmp_path / "model")))
    registry.move("production", entry, {}, None)
    refused = {"pets": "pets is bundled", f"{registry.uri}@production": "in a registry", f"{registry.uri}/{entry}": "in a registry"}
    if os.geteuid():
        os.chmod(tmp_path / "model", 0o500)
        refused[str(tmp_path / "model")] = "model.json cannot be written"
    for reference, message in refused.items():
        with pytest.raises(ModelError, match=message):
            tune(options.TuneOptions(model=reference, dataset=str(tmp_path / "nowhere")))
    os.chmod(tmp_path / "model", 0o700)
    assert checkpoint.parse(*registry.read(entry)).label == checkpoint.load(tmp_path / "model").label
    for name in (checkpoint.WEIGHTS, checkpoint.CARD):
        filesystems.write_whole(f"{s3}/model/{name}", (tmp_path / "model" / name).read_bytes())
    written = tune(options.TuneOptions(model=f"{s3}/model", dataset=str(EXAMPLES), images=1, rounds=0, device="cpu"))
    stored = checkpoint.parse(*read_model(f"{s3}/model"))
    assert stored.label == written["model"] and stored.card["crf"]["mean_iou"] == written["mean_iou"]


def test_the_evaluation_after_a_training_computes_where_it_runs() -> None:
    """Not on the training's device, which the process that evaluates may not have; over its workers, where it can reach them."""
    given = {"dataset": "d", "out": "o", "device": "cuda", "workers": 3, "batch_size": 6, "start_timeout": 5, "skip_broken": True}
    measured = flow_steps.evaluation(options.RegisteredTraining(**given, address="head:6379"), "r@production")
    assert measured == options.EvaluateOptions(
        model="r@production", dataset="d", workers=3, address="head:6379", start_timeout=5, skip_broken=True
    )
    through_jobs = flow_steps.evaluation(options.RegisteredTraining(**given, address="http://head:8265"), "o")
    assert (through_jobs.device, through_jobs.workers, through_jobs.address) == ("auto", 1, None)


def test_broken_pairs_that_a_training_skips_are_not_in_its_evaluation(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", 4)
    (data / "labels" / "picture_1.png").write_bytes(b"x")
    assert flow_steps.check_data(options.RegisteredTraining(dataset=str(data), out="o", skip_broken=True)) == {"train": 4, "val": 2}
    with pytest.raises(UserError, match="picture_1"):
        flow_steps.check_data(options.RegisteredTraining(dataset=str(data), out="o"))
    torch.manual_seed(0)
    classes = [{"name": name, "colour": [i, i, i]} for i, name in enumerate(("ground", "square"))]
    card = {"name": "two", "architecture": {"name": "mobilenet-v2-aspp", "options": {}}, "classes": classes}
    checkpoint.save(tmp_path / "two", zoo.build("mobilenet-v2-aspp", 2), card)
    given = options.EvaluateOptions(model=str(tmp_path / "two"), dataset=str(data), device="cpu", skip_broken=True)
    figures = evaluate(given)
    assert (figures["images"], figures["skipped"]) == (1, ["picture_1"])
    assert figures["pixels"] == evaluate(given.model_copy(update={"split": "val"}))["pixels"]


def test_options_that_would_change_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "table" / "_delta_log").mkdir(parents=True)
    with pytest.raises(ResultsError, match="masks exist already; --scales, --crf are for a model"):
        evaluate(options.EvaluateOptions(model=str(tmp_path / "table"), dataset="d", crf=True, scales=(0.5,)))
    with pytest.raises(ResultsError, match="pets: not a results table; --rows-of"):
        evaluate(options.EvaluateOptions(model="pets", dataset="d", rows_of="pets"))


def test_run_takes_every_option_of_the_command_that_it_runs() -> None:
    for name in ("segment", "evaluate"):
        plain, run = (CliRunner().invoke(app, [*way, name, "--help"], env={"COLUMNS": "200"}).output for way in ([], ["run"]))
        flags = set(re.findall(r"--[a-z][a-z-]+", plain))
        assert flags <= set(re.findall(r"--[a-z][a-z-]+", run)) and len(flags) > 10
    page = CliRunner().invoke(app, ["segment", "--help"], env={"COLUMNS": "400"}).output
    assert "isht7, deconvnet, or card" in " ".join(page.split())


def test_the_patterns_that_an_archive_was_segmented_with_say_what_of_it_is_pending(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "photos", 6)
    place = inventory.take(str(archive), tmp_path / "i.parquet", include=("a/*",)).path
    model = checkpoint.load("pets")
    table = ResultsTable.ensure(str(tmp_path / "results"))
    table.register(model.label, model.card)
    labels = np.zeros((60, 80), np.uint8)
    made = [
        {"uri": uri, "version": version, "status": "ok", "height": 60, "width": 80, "mask": masks.encode_png(labels, model.classes)}
        | {"class_pixels": [("background", 4800)], "run": "run-1", "segmented_at": datetime(2026, 1, 2, tzinfo=UTC)}
        for uri, version in zip(*(pq.read_table(place)[name].to_pylist() for name in ("uri", "version")), strict=True)
    ]
    table.commit(
        "chunk",
        1,
        [write_part(table.uri, model.label, pa.Table.from_pylist(made, FILE_SCHEMA)).add_action(model.label)],
        model=model.label,
    )

    def asked(*arguments: str) -> tuple[int, dict[str, Any]]:
        done = CliRunner().invoke(app, [*arguments, "--json"])
        return done.exit_code, json.loads(done.stdout)

    where = (str(tmp_path / "results"), "--archive", str(archive))
    for patterns in (("--include", "a/*"), ("--exclude", "b/*")):
        assert asked("status", *where, *patterns)[1]["archive"]["pending"] == 0
        assert asked("verify", *where, *patterns) == (0, {"files": 1, "rows": 3, "count": 0, "problems": [], "pending": 0})
    assert asked("status", *where)[1]["archive"]["pending"] == asked("verify", *where)[1]["pending"] == 3
    refused = CliRunner().invoke(app, ["verify", where[0], "--include", "a/*"])
    assert refused.exit_code == 2 and "--include" in refused.output

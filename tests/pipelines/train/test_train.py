"""Training through Ray: what is asked for and never comes, and errors that no retry would cure."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deeplab.errors import UserError
from deeplab.models import checkpoint
from deeplab.training.adaptation import LEAST_STEPS
from deeplab.training.loop import Stopped, TrainingProgress
from deeplab.training.saved_states import TrainingError
from pipelines.options import TrainOptions
from pipelines.storage import filesystems
from pipelines.storage import s3 as store
from pipelines.storage.model_registry import read_model
from pipelines.train.ray_train import Notice, configuration, train
from tests.material import make_dataset
from tests.s3_server import fresh_clients

pytestmark = pytest.mark.timeout(900)


def options(tmp_path: Path, **given: object) -> TrainOptions:
    data = tmp_path / "data"
    if not data.exists():
        make_dataset(data)
    base = {"steps": 2, "batch_size": 4, "crop": 33, "loaders": 0, "device": "cpu", "validate_every": 1}
    return TrainOptions(dataset=str(data), model_out=str(tmp_path / "out"), **(base | given))  # type: ignore[arg-type]


def test_workers_that_the_cluster_never_gives_end_in_what_was_asked_and_what_there_is(tmp_path: Path, running_ray: None) -> None:
    with pytest.raises(TrainingError, match=r"no workers for 5 s: 3 need 1 CPU each, .* has 2 CPU and 0 GPU"):
        train(options(tmp_path, workers=3, start_timeout=5))


def test_an_error_of_the_training_is_told_once_and_not_retried(tmp_path: Path, running_ray: None) -> None:
    seen: list[object] = []
    with pytest.raises(TrainingError, match=r"picture_.*try a lower learning rate"):
        train(options(tmp_path, workers=2, learning_rate=1e30), seen.append)
    assert sum(isinstance(event, Notice) and event.phase == "start" for event in seen) == 1
    assert not list((tmp_path / "out" / "training").glob("*.pt"))


def test_a_preset_is_overridden_by_what_is_given_only(tmp_path: Path) -> None:
    config = configuration(options(tmp_path, precision="bfloat16", clip_norm=0.0, schedule="step", objective="official", ema=0.0))
    assert (config.steps, config.precision, config.clip_norm) == (2, "bfloat16", 0.0)
    assert (config.schedule, config.objective, config.ema) == ("step", "official", 0.0)
    assert (config.preset, config.learning_rate) == ("finetune", 1e-3)


def test_steps_and_class_weights_follow_from_the_data_and_a_resumed_run_has_those_it_began_with(tmp_path: Path) -> None:
    """The squares have a smaller share of the pixels than the ground, so they weigh more; --steps wins over the preset's rule."""
    asked: list[int] = []
    seen: list[object] = []
    given = options(tmp_path, steps=None, validate_every=100)
    with pytest.raises(Stopped):
        train(given, seen.append, lambda: len(asked) > 1 or bool(asked.append(1)))
    (started,) = [event.text for event in seen if isinstance(event, Notice) and event.phase == "start"]
    assert f"{LEAST_STEPS} steps of 4 crops of 33, rate 0.001" in started  # voc knows neither the ground nor squares
    record = json.loads((tmp_path / "out" / "training.json").read_text())["config"]
    ground, square = record["class_weights"]
    assert record["steps"] == LEAST_STEPS
    assert 0 < ground < 1 < square
    with pytest.raises(Stopped):
        train(given.model_copy(update={"resume": True}), stop=lambda: True)
    again = json.loads((tmp_path / "out" / "training.json").read_text())["config"]
    assert again == record
    assert configuration(options(tmp_path, steps=7)).passes == 0
    assert configuration(options(tmp_path, learning_rate=0.5)).known_classes_rate == 1


def test_a_preset_without_weights_of_its_own_asks_for_them(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"preset resnet101-v2 has no weights to start from: name them with --init"):
        train(options(tmp_path, preset="resnet101-v2"))


def test_a_training_on_s3_stops_goes_on_and_leaves_a_model_there(s3: str, tmp_path: Path) -> None:
    """Data set, states, metrics and model in a bucket; the same bits as on a disk."""
    data = make_dataset(tmp_path / "data")
    for path in data.rglob("*.*"):
        store.put(f"{s3}/data/{path.relative_to(data)}", path.read_bytes())
    steps = {"steps": 3, "batch_size": 2, "checkpoint_every": 1, "validate_every": 2, "keep": 1}
    train(options(tmp_path, **steps))
    there = options(tmp_path, **steps).model_copy(update={"dataset": f"{s3}/data", "model_out": f"{s3}/model"})
    done: list[int] = []

    def watch(progress: TrainingProgress | Notice) -> None:
        if isinstance(progress, TrainingProgress):
            done.append(progress.step)

    with pytest.raises(Stopped, match="stopped at step 1"):
        train(there, watch, lambda: bool(done) or True)
    assert states_in(f"{s3}/model") == ["step-00000001.pt"]
    with pytest.raises(TrainingError, match="unfinished training: --resume"):
        train(there)
    train(there.model_copy(update={"resume": True}), watch)
    assert done == [1, 2, 3]
    assert states_in(f"{s3}/model") == []
    for name in (checkpoint.WEIGHTS, "metrics.jsonl"):
        assert store.get(f"{s3}/model/{name}")[0] == (tmp_path / "out" / name).read_bytes()
    assert checkpoint.parse(*read_model(f"{s3}/model")).classes.names == ("ground", "square")


def states_in(place: str) -> list[str]:
    return filesystems.files(place).names("training")


def test_a_store_that_cannot_be_written_is_named(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = store.put

    def refuse(uri: str, data: bytes, **given: object) -> object:
        if "step-00000002.pt" in uri:
            raise PermissionError(13, "AccessDenied", uri)
        return whole(uri, data, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "put", refuse)
    given = options(tmp_path, checkpoint_every=1, validate_every=2, batch_size=2)
    with pytest.raises(TrainingError, match=r"the state of step 2 was not saved \(.*AccessDenied.*earlier ones are kept"):
        train(given.model_copy(update={"model_out": f"{s3}/model"}))
    assert states_in(f"{s3}/model") == ["step-00000001.pt"]
    monkeypatch.setattr(store, "put", whole)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    fresh_clients()
    with pytest.raises(UserError, match=rf"{s3}/other"):
        train(options(tmp_path).model_copy(update={"model_out": f"{s3}/other"}))


def test_tensorboard_and_the_folder_show_figures_and_sample_predictions(tmp_path: Path) -> None:
    train(options(tmp_path, batch_size=1))
    out = tmp_path / "out"
    with Image.open(out / "samples" / "step-00000002.jpg") as sheet:
        assert sheet.width > 400
    shown: dict[str, list[int]] = {}
    for event in events(next((out / "tensorboard").glob("events*"))):
        for value in event.summary.value:
            shown.setdefault(value.tag, []).append(event.step)
    assert shown["train/loss"] == shown["validation/mean_iou"] == shown["iou/square"] == shown["samples"] == [1, 2]


def events(path: Path) -> Iterator[Any]:
    """The records of a TensorBoard file: length, its checksum, data, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, place = path.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += 16 + length

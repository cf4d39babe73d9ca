"""Training through Ray: what is asked for and never comes, and errors that no retry would cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeplab.states import TrainingError
from pipelines.options import TrainOptions
from pipelines.train import Notice, configuration, train
from tests.pipelines.conftest import make_dataset

pytestmark = pytest.mark.timeout(900)


def options(tmp_path: Path, **given: object) -> TrainOptions:
    data = tmp_path / "data"
    if not data.exists():
        make_dataset(data)
    base = {"steps": 2, "batch_size": 4, "crop": 33, "loaders": 0, "device": "cpu", "validate_every": 1}
    return TrainOptions(dataset=str(data), model_out=str(tmp_path / "out"), **(base | given))  # type: ignore[arg-type]


def test_workers_that_the_cluster_never_gives_end_in_what_was_asked_and_what_there_is(tmp_path: Path, running_ray: None) -> None:
    with pytest.raises(TrainingError, match=r"no workers for 5 s: 3 with 1 CPU each .* has 2 CPU and 0 GPU"):
        train(options(tmp_path, workers=3, start_timeout=5))


def test_an_error_of_the_training_is_told_once_and_not_retried(tmp_path: Path, running_ray: None) -> None:
    seen: list[object] = []
    with pytest.raises(TrainingError, match=r"picture_.*try a lower learning rate"):
        train(options(tmp_path, workers=2, learning_rate=1e30), seen.append)
    assert sum(isinstance(event, Notice) and event.phase == "start" for event in seen) == 1
    assert not list((tmp_path / "out" / "training").glob("*.pt"))


def test_what_cannot_go_together_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--min-workers 3 is above --workers 2"):
        train(options(tmp_path, workers=2, min_workers=3))
    with pytest.raises(TrainingError, match="no preset what: finetune, "):
        configuration(options(tmp_path, preset="what"))
    assert not (tmp_path / "out").exists()


def test_a_preset_is_overridden_by_what_is_given_only(tmp_path: Path) -> None:
    config = configuration(options(tmp_path, precision="bfloat16", clip_norm=0.0))
    assert (config.steps, config.precision, config.clip_norm) == (2, "bfloat16", 0.0)
    assert (config.preset, config.learning_rate) == ("finetune", 0.0005)

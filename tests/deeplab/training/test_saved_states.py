"""What a run leaves behind: kept by number and by best, atomic, and never another run's."""

from __future__ import annotations

import errno
import json

import pytest
import torch

from deeplab.data.datasets import LabelledFolder
from deeplab.files import LocalFiles
from deeplab.models import checkpoint
from deeplab.training import saved_states
from deeplab.training.presets import TrainingConfig
from deeplab.training.saved_states import TrainingError

CONFIG = TrainingConfig(preset="tiny", architecture="mobilenet-v2-aspp")


@pytest.fixture
def splits(labelled_folder):
    root = labelled_folder(3)
    return LabelledFolder(root, "train"), LabelledFolder(root, "val")


@pytest.fixture
def out(tmp_path):
    return LocalFiles(tmp_path / "out")


def save(out, run, step, best=0, keep=2):
    saved_states.save(out, run, {"step": step, "best": {"step": best}, "weights": torch.full((3,), float(step))}, keep)


def steps(out):
    return [int(name[5:13]) for name in out.names(saved_states.FOLDER)]


def test_the_newest_states_stay_and_the_best_steps(out, splits):
    run = saved_states.begin(out, CONFIG, *splits, resume=False).id
    for step in range(1, 7):
        save(out, run, step, best=2 if step >= 2 else 0)
    assert steps(out) == [2, 5, 6]
    assert saved_states.newest(out, run)["step"] == 6
    assert saved_states.newest(out, run)["weights"].tolist() == [6.0] * 3


def test_a_damaged_state_gives_way_to_the_one_before(out, splits):
    run = saved_states.begin(out, CONFIG, *splits, resume=False).id
    save(out, run, 1)
    save(out, run, 2)
    whole = out.read("training/step-00000002.pt")
    out.write("training/step-00000002.pt", whole[: len(whole) // 2])
    assert saved_states.newest(out, run)["step"] == 1
    out.write("training/step-00000001.pt", b"")
    with pytest.raises(TrainingError, match=r"no state can be read .*step-00000001\.pt"):
        saved_states.newest(out, run)


def test_a_state_of_another_run_is_never_taken_up(out, splits):
    first = saved_states.begin(out, CONFIG, *splits, resume=False).id
    save(out, first, 5)
    assert saved_states.newest(out, "train-other") is None
    with pytest.raises(TrainingError, match=f"now belongs to {first}, not to train-other"):
        save(out, "train-other", 6)
    assert steps(out) == [5]
    with pytest.raises(TrainingError, match="holds an unfinished training: --resume"):
        saved_states.begin(out, CONFIG, *splits, resume=False)
    assert saved_states.begin(out, CONFIG, *splits, resume=True).id == first


def test_a_run_goes_on_with_its_own_configuration_and_data_only(out, splits, labelled_folder):
    saved_states.begin(out, CONFIG, *splits, resume=False)
    with pytest.raises(TrainingError, match=r"learning_rate 0\.00025, now 0\.5; give the flags it began with"):
        saved_states.begin(
            out, TrainingConfig(preset="tiny", architecture="mobilenet-v2-aspp", learning_rate=0.5), *splits, resume=True
        )
    with pytest.raises(TrainingError, match="other lists of images or classes"):
        saved_states.begin(out, CONFIG, LabelledFolder(labelled_folder(4, name="more"), "train"), splits[1], resume=True)


def test_a_finished_run_has_no_states_and_says_its_best(out, splits):
    record = saved_states.begin(out, CONFIG, *splits, resume=False)
    save(out, record.id, 1)
    saved_states.finish(out, record, {"mean_iou": 0.5, "step": 1})
    assert steps(out) == []
    assert saved_states.begin(out, CONFIG, *splits, resume=True).best == {"mean_iou": 0.5, "step": 1}
    assert saved_states.begin(out, CONFIG, *splits, resume=False).id != record.id


def test_a_full_disk_is_named_and_leaves_the_earlier_state(out, splits, monkeypatch):
    run = saved_states.begin(out, CONFIG, *splits, resume=False).id
    save(out, run, 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TrainingError, match=r"state of step 2 was not saved \(.*No space left.*earlier ones are kept"):
        save(out, run, 2)
    monkeypatch.undo()
    assert saved_states.newest(out, run)["step"] == 1
    assert out.names() == ["training.json", "training/step-00000001.pt"]  # no half-written leftovers


def test_a_folder_that_cannot_be_written_or_read_is_named(tmp_path, splits):
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingError, match="file"):
        saved_states.begin(LocalFiles(tmp_path / "file"), CONFIG, *splits, resume=False)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / checkpoint.TRAINING).write_text(json.dumps({"what": 1}))
    with pytest.raises(TrainingError, match=r"training\.json: damaged"):
        saved_states.begin(LocalFiles(tmp_path / "odd"), CONFIG, *splits, resume=True)

"""The one training loop takes every kind of network, and what it writes is a model that scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeplab.classes import ClassTable
from deeplab.data.datasets import LabelledFolder
from deeplab.models import checkpoint
from deeplab.scoring.predictor import Predictor
from deeplab.training.loop import Execution, train
from deeplab.training.presets import TrainingConfig
from deeplab.weights import initialise
from deeplab.zoo import build

CLASSES = ClassTable.from_names(["ground", "square"])
KINDS = {
    "vgg16-aspp-s": {"loss": "stride", "objective": "official"},
    "vgg16-largefov-features": {"loss": "stride", "frozen_layers": 15},
    "vgg16-attention": {"loss": "stride"},
    "fcn8s": {"normalize": False, "head_multiplier": 1.0, "learning_rate": 1e-9},
    "deconvnet": {"head_multiplier": 1.0, "sampling": "objects"},
}


@pytest.fixture
def run(labelled_folder, tmp_path):
    root = labelled_folder(3)

    def start(name: str, network=None, **changes):
        config = TrainingConfig(
            preset="t", architecture=name, options={"width": 1 / 32}, steps=2, batch_size=2, crop=33, scales=(1.0,),
            learning_rate=changes.pop("learning_rate", 1e-3), validate_every=2, **changes,
        )  # fmt: skip
        network = network or build(name, 2, seed=0, **config.options)
        splits = LabelledFolder(root, "train"), LabelledFolder(root, "val")
        train(network, config, *splits, tmp_path / name, card={"name": name}, classes=CLASSES, execution=Execution("cpu", 0))
        return tmp_path / name

    return start


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_trained_saved_loaded_and_scores(name, run, photo):
    model = checkpoint.load(run(name, **KINDS[name]))
    assert model.card["architecture"] == {"name": name, "options": {"width": 1 / 32}}
    labels = Predictor(model.network, device="cpu").labels([photo(30, 41), photo(41, 33)])
    assert [label.shape for label in labels] == [(30, 41), (41, 33)]
    assert all(label.max() < 2 for label in labels)


def test_an_fcn_goes_on_from_its_coarser_stage(run):
    folder = run("fcn16s", **KINDS["fcn8s"])
    finer = build("fcn8s", 2, width=1 / 32)
    assert "the others are new" in initialise(finer, folder, [])
    stored = checkpoint.load(folder).network
    assert torch.equal(finer.head.score_pool4.weight, stored.head.score_pool4.weight)
    assert not np.any(finer.head.score_pool3.weight.detach().numpy())

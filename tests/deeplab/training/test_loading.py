from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import replace

import pytest
import torch

from deeplab import devices
from deeplab.classes import ClassTable
from deeplab.data.augmentation import Augmentation
from deeplab.data.datasets import LabelledFolder
from deeplab.training.loading import batches_of, default_loaders
from deeplab.training.loop import Execution, train
from deeplab.training.presets import TrainingConfig
from deeplab.training.sampling import Samples, Shares

CPU = torch.device("cpu")
CONFIG = TrainingConfig(
    preset="tiny", architecture="mobilenet-v2-aspp", steps=5, batch_size=8, crop=129, validate_every=5,
)  # fmt: skip


def samples_of(root, config=CONFIG):
    return Samples(LabelledFolder(root, "train"), Augmentation(config.crop, config.scales, (127.5,) * 3), config)


def test_a_batch_is_the_same_with_any_number_of_loaders_and_lies_as_the_network_wants_it(labelled_folder):
    samples = samples_of(labelled_folder(4), replace(CONFIG, steps=2, batch_size=3))
    plain, loaded = (list(batches_of(samples, Shares(3, 0, 2), loaders, CPU)) for loaders in (0, 2))
    assert len(plain) == len(loaded) == 2
    for number, ((images, labels), (others, other_labels)) in enumerate(zip(plain, loaded, strict=True)):
        assert torch.equal(images, others) and torch.equal(labels, other_labels)
        assert (images.shape, images.dtype) == ((3, 3, 129, 129), torch.uint8)
        assert images.is_contiguous(memory_format=torch.channels_last) and others.is_contiguous(memory_format=torch.channels_last)
        for position in range(3):
            image, own = samples[3 * number + position]
            assert torch.equal(images[position], image) and torch.equal(labels[position], own)


@pytest.mark.parametrize(
    ("cpus", "workers", "loaders"), [(1, "1", 1), (2, "1", 1), (4, "1", 3), (16, "4", 3), (64, "2", 8), (4, "8", 1)]
)
def test_by_default_a_gpu_has_its_share_of_the_cpus_less_one_as_loaders(monkeypatch, cpus, workers, loaders):
    monkeypatch.setattr("deeplab.training.loading.available_cpus", lambda: cpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", workers)
    assert default_loaders(torch.device("cuda")) == loaders
    assert default_loaders(CPU) == 1
    assert Execution().loaders is None


def test_the_cpus_of_a_process_are_at_least_one_and_no_more_than_it_is_bound_to(monkeypatch):
    assert devices.available_cpus() >= 1
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert devices.available_cpus() == 1


def test_a_device_that_needs_less_than_the_loaders_make_does_not_wait(labelled_folder, small_network, tmp_path):
    """The device only sleeps, four times as long as a batch takes to load here; without loaders it waits for each batch."""
    root = labelled_folder(4, side=500)
    samples = samples_of(root)
    began = time.perf_counter()
    for number in range(4 * CONFIG.batch_size):
        samples[number]
    pause = time.perf_counter() - began  # of four batches

    def share_waited(loaders):
        network, steps = small_network(classes=2), []
        network.register_forward_pre_hook(lambda module, _: time.sleep(pause) if module.training else None)
        train(
            network, CONFIG, *(LabelledFolder(root, split) for split in ("train", "val")), tmp_path / str(loaders),
            card={"name": "fed"}, classes=ClassTable.from_names(["ground", "square"]), report=steps.append,
            execution=Execution(device="cpu", loaders=loaders),
        )  # fmt: skip
        # Of a typical step: the first also starts the loader, and other work on the machine may hold up any.
        return statistics.median(step.waited / (step.at - before.at) for before, step in itertools.pairwise(steps))

    assert share_waited(1) < 0.05 < share_waited(0)

"""Several processes that train together compute what one does: same samples, one loss, one confusion matrix."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import distributed

from deeplab.classes import ClassTable
from deeplab.data.datasets import LabelledFolder
from deeplab.distributed import Ranks
from deeplab.models import checkpoint
from deeplab.training.loop import Execution, Stopped, train
from deeplab.training.losses import labelled_pixels, segmentation_loss
from deeplab.training.presets import TrainingConfig
from deeplab.training.sampling import Shares
from deeplab.training.saved_states import TrainingError

CONFIG = TrainingConfig(
    preset="tiny", architecture="mobilenet-v2-aspp", steps=20, batch_size=4, crop=33, learning_rate=0.02, scales=(0.75, 1.0),
    head_multiplier=2.0, colour=0.2, ema=0.9, validate_every=10, warmup_steps=1, weight_decay=1e-4, dropout=0.1,
)  # fmt: skip
PLAIN = Execution(device="cpu", loaders=0)


@pytest.fixture
def run(labelled_folder, small_network, tmp_path):
    """(name, ranks, **what differs) -> (losses by step, final weights, error of rank 0 if any)."""
    root = labelled_folder(5)

    def once(name, config, execution, resume, stop_at, network):
        seen = []
        best = train(
            network, config, LabelledFolder(root, "train"), LabelledFolder(root, "val"), tmp_path / name, card={"name": name},
            classes=ClassTable.from_names(["ground", "square"]), execution=execution,
            run=resume, stop=lambda: len(seen) >= stop_at, report=seen.append,
        )  # fmt: skip
        return [progress.loss for progress in seen], {k: v.numpy() for k, v in network.state_dict().items()}, best

    def start(name, ranks=1, config=CONFIG, execution=PLAIN, resume=None, stop_at=1000):
        network = small_network(classes=2)
        if ranks == 1:
            return once(name, config, execution, resume, stop_at, network)
        return together(ranks, tmp_path / f"{name}-store", lambda: once(name, config, execution, resume, stop_at, network))

    return start


def together(size, store, work):
    """Run `work` in `size` forked processes of one gloo group; what rank 0 returns. What any of them raises is raised."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def member(rank):
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
        try:
            results.put((rank, work()))
        except Exception as error:
            results.put((rank, error))
        distributed.destroy_process_group()

    members = [context.Process(target=member, args=(rank,)) for rank in range(size)]
    for process in members:
        process.start()
    found = dict(results.get() for _ in members)
    for process in members:
        process.join()
    store.unlink(missing_ok=True)
    for result in found.values():
        if isinstance(result, Exception):
            raise result
    return found[0]


def assert_close(weights, expected, tolerance):
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(weights[key], value, rtol=0, atol=tolerance, err_msg=key)


def test_workers_and_passes_share_a_batch_and_compute_what_one_process_does(run, tmp_path):
    losses, weights, best = run("one")
    assert losses[-1] < losses[0]
    for name, ranks, accumulate in (("two", 2, 1), ("three", 3, 1), ("passes", 1, 2), ("both", 2, 2)):
        again, others, figures = run(name, ranks, execution=replace(PLAIN, accumulate=accumulate))
        np.testing.assert_allclose(again, losses, rtol=0, atol=1e-4, err_msg=name)
        assert_close(others, weights, 1e-4)
        assert figures["pixels"] == best["pixels"]
        assert figures["mean_iou"] == pytest.approx(best["mean_iou"], abs=1e-3)


def test_stopped_workers_save_and_go_on_to_the_same_weights(run, tmp_path):
    losses, weights, best = run("undisturbed", 2, replace(CONFIG, steps=8, validate_every=4))
    with pytest.raises(Stopped, match="step 3"):
        run("stopped", 2, replace(CONFIG, steps=8, validate_every=4), stop_at=2)
    (state,) = (tmp_path / "stopped" / "training").iterdir()
    assert state.name == "step-00000003.pt"
    identity = torch.load(state, weights_only=True)["id"]
    rest, others, again = run("stopped", 2, replace(CONFIG, steps=8, validate_every=4), resume=identity)
    np.testing.assert_allclose(rest, losses[3:], rtol=0, atol=1e-5)
    assert_close(others, weights, 1e-5)
    assert again == best
    cards = [checkpoint.read_card(tmp_path / name) for name in ("stopped", "undisturbed")]
    assert cards[0]["metrics"] == cards[1]["metrics"]


def test_fewer_images_than_workers_are_trained_on_and_counted_once_each(run, labelled_folder, tmp_path):
    """One image to train on and one to validate on, for three workers: each step shows it often, nobody waits for ever."""
    for name in ("train", "val"):
        (tmp_path / "data" / f"{name}.txt").write_text("picture_0\n")
    config = replace(CONFIG, steps=4, validate_every=2)
    losses, weights, best = run("one", config=config)
    again, others, figures = run("three", 3, config)
    np.testing.assert_allclose(again, losses, rtol=0, atol=1e-4)
    assert_close(others, weights, 1e-4)
    assert figures["pixels"] == best["pixels"] > 0


def test_more_workers_than_crops_in_a_batch_are_refused(run):
    with pytest.raises(TrainingError, match="batch of 4 cannot be divided over 1 workers x 5 passes"):
        run("few", execution=replace(PLAIN, accumulate=5))


@pytest.mark.parametrize(("size", "parts"), [(1, 1), (2, 1), (3, 1), (2, 3), (1, 4)])
def test_the_samples_of_a_step_are_dealt_once_each_whoever_shares_them(size, parts):
    dealt = [Shares(7, 2, 5, rank, size, parts) for rank in range(size)]
    for step in (2, 3, 4):
        numbers = [number for share in dealt for part in share.of_step(step) for number in part]
        assert numbers == list(range(7 * step, 7 * step + 7))
    assert [len(list(share)) for share in dealt] == [3 * parts] * size == [len(share) for share in dealt]
    assert all(part for share in dealt for part in share)


@pytest.mark.parametrize(("resolution", "stride"), [("full", 8), ("stride", 8), ("stride", 16)])
def test_parts_of_a_batch_add_up_to_its_loss_and_gradient(rng, resolution, stride):
    scores = torch.from_numpy(rng.normal(size=(3, 4, 32 // stride + 1, 32 // stride + 1))).float().requires_grad_()
    labels = torch.from_numpy(rng.choice([0, 1, 2, 3, 255, 255], (3, 33, 33)).astype(np.uint8))
    labels[0, :20] = 255  # parts with unequal numbers of labelled pixels
    segmentation_loss(scores, labels, True, resolution).backward()
    whole, scores.grad = scores.grad, None
    parts = (slice(0, 1), slice(1, 3))
    counts = [labelled_pixels(labels[part], stride, resolution) for part in parts]
    for part, count in zip(parts, counts, strict=True):
        (segmentation_loss(scores[part], labels[part], True, resolution) * (count / sum(counts))).backward()
    torch.testing.assert_close(scores.grad, whole, rtol=1e-5, atol=1e-8)


def test_alone_every_exchange_is_a_plain_value():
    ranks = Ranks()
    assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)
    assert ranks.sum([1.5, 2]) == [1.5, 2]
    assert ranks.on_first(lambda: {"a": 1}) == {"a": 1}
    assert ranks.any(True) and not ranks.any(False)

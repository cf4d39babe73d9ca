from __future__ import annotations

import functools
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from deeplab.classes import ClassTable
from deeplab.data.augmentation import Augmentation
from deeplab.data.datasets import LabelledFolder
from deeplab.models import checkpoint
from deeplab.training.loop import CURVES, Execution, Stopped, TrainingProgress, train
from deeplab.training.optimizer import learning_rate_factor, parameter_groups, update_average
from deeplab.training.presets import PRESETS, TrainingConfig
from deeplab.training.sampling import Samples
from deeplab.training.saved_states import TrainingError
from deeplab.weights import read_safetensors
from deeplab.zoo import build

CLASSES = ClassTable.from_names(["ground", "square"])
CONFIG = TrainingConfig(
    preset="tiny", architecture="mobilenet-v2-aspp", steps=6, batch_size=2, crop=33, learning_rate=0.02, scales=(0.75, 1.0, 1.25),
    head_multiplier=2.0, colour=0.2, ema=0.9, validate_every=2, warmup_steps=1, weight_decay=1e-4, dropout=0.1,
)  # fmt: skip

PLAIN = Execution(device="cpu", loaders=0)


class Killed(Exception):
    """What the reporting callback raises to end a run as abruptly as a signal does."""


@pytest.fixture
def run(labelled_folder, small_network, tmp_path):
    """(name of the output folder, **what differs) -> (best summary, progress by step)."""
    root = labelled_folder(4)

    def start(name, config=CONFIG, stop_after=None, network=None, resume=False, execution=PLAIN, stop=lambda: False):
        seen: list[TrainingProgress] = []

        def report(progress: TrainingProgress) -> None:
            seen.append(progress)
            if progress.step == stop_after:
                raise Killed

        splits = LabelledFolder(root, "train"), LabelledFolder(root, "val")
        best = train(
            network or small_network(classes=2), config, *splits, tmp_path / name,
            card={"name": name}, classes=CLASSES, execution=execution, resume=resume, stop=stop, report=report,
        )  # fmt: skip
        return best, seen

    return start


def states(folder):
    return sorted((folder / "training").glob("*"))


def weights(folder):
    return (folder / checkpoint.WEIGHTS).read_bytes()


@pytest.mark.parametrize("stop_after", [2, 3, 5])
def test_an_interrupted_and_resumed_run_ends_with_the_same_bits(run, small_network, tmp_path, stop_after):
    """Stopped at a validation (2) or between two (3, 5: what came after the last saved state is done again)."""
    undisturbed, resumed = small_network(classes=2), small_network(classes=2, seed=1)
    best, steps = run("undisturbed", network=undisturbed)
    with pytest.raises(Killed):
        run("stopped", stop_after=stop_after)
    again, later = run("stopped", network=resumed, resume=True)
    assert again == best
    assert weights(tmp_path / "stopped") == weights(tmp_path / "undisturbed")
    for key, value in undisturbed.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=0, atol=0)
    assert later == steps[stop_after - stop_after % 2 :]
    assert states(tmp_path / "stopped") == []


def test_two_runs_of_one_configuration_are_equal_and_another_seed_differs(run, tmp_path):
    first, second, third = run("first")[1], run("second")[1], run("third", replace(CONFIG, seed=1))[1]
    assert first == second
    assert weights(tmp_path / "first") == weights(tmp_path / "second")
    assert [step.loss for step in third] != [step.loss for step in first]


def test_the_loss_falls_and_the_squares_are_found(run, tmp_path):
    config = replace(CONFIG, steps=60, validate_every=30, learning_rate=0.05, batch_size=4, ema=0.5)
    best, steps = run("longer", config)
    assert np.mean([step.loss for step in steps[-5:]]) < 0.5 * np.mean([step.loss for step in steps[:3]])
    assert best["mean_iou"] > 0.7
    log = [json.loads(line) for line in (tmp_path / "longer" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [30, 60]
    means = [np.mean([step.loss for step in part]) for part in (steps[:30], steps[30:])]
    assert [entry["loss"] for entry in log] == pytest.approx(means)
    with Image.open(tmp_path / "longer" / CURVES) as picture:
        assert picture.format == "PNG"
    assert max(entry["mean_iou"] for entry in log) == best["mean_iou"]
    assert best["split"] == "val"


def test_progress_tells_loss_rate_and_validation(run):
    _, steps = run("told", replace(CONFIG, ema=0.0))
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.validation is not None for step in steps] == [False, True] * 3
    poly = [0.02 * (1 - k / 6) ** 0.9 for k in range(6)]
    assert [step.learning_rate for step in steps] == pytest.approx([0.5 * poly[0], *poly[1:]])


def test_the_model_folder_holds_the_card_of_the_run(run, tmp_path):
    torch.manual_seed(0)
    network = build("mobilenet-v2-aspp", 2, output_stride=16)
    config = replace(CONFIG, steps=1, options={"output_stride": 16})
    best, _ = run("real", config, network=network)
    model = checkpoint.load(tmp_path / "real")
    assert model.classes == CLASSES
    assert model.card["training"] == json.loads(json.dumps(config.as_dict()))
    assert model.card["metrics"]["validation"] == json.loads(json.dumps(best))
    assert model.network.stride == 16


def test_an_infinite_loss_stops_with_the_pictures_and_keeps_the_last_state(run, small_network, tmp_path):
    network = small_network(classes=2)

    passes = []

    def poison(backbone, inputs):
        passes.append(backbone.training)
        if sum(passes) == 3:
            network.head.branches[0].bias.data.fill_(float("nan"))

    network.backbone.register_forward_pre_hook(poison)
    config = replace(CONFIG, validate_every=1, batch_size=1)
    with pytest.raises(TrainingError, match=r"loss is nan at step 2 on picture_\d; .*lower learning rate"):
        run("poisoned", config, network=network)
    state = torch.load(states(tmp_path / "poisoned")[-1], weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["network"].values() if value.is_floating_point())
    assert state["step"] == 2
    _, later = run("poisoned", config, resume=True)
    assert [step.step for step in later] == [3, 4, 5, 6]


def test_weights_that_overflow_never_become_the_best_model(run, tmp_path):
    """One step at an absurd rate: the loss before it was a number, the weights after it are not."""
    with pytest.raises(TrainingError, match="picture_"):
        run("burst", replace(CONFIG, learning_rate=1e30, validate_every=1, warmup_steps=0, ema=0.0))
    assert not (tmp_path / "burst" / checkpoint.CARD).exists()
    assert states(tmp_path / "burst") == []


def test_an_unfinished_run_is_not_started_over_or_resumed_by_accident(run, tmp_path):
    with pytest.raises(Killed):
        run("out", stop_after=2)
    with pytest.raises(TrainingError, match="unfinished training: --resume"):
        run("out")
    with pytest.raises(TrainingError, match="another configuration"):
        run("out", replace(CONFIG, learning_rate=0.5), resume=True)
    with pytest.raises(TrainingError, match="no training state"):
        run("elsewhere", resume=True)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_of_other_things_is_refused_before_the_first_step(run, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("keep")
    with pytest.raises(TrainingError, match="not a model folder"):
        run("photos", stop_after=1)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["mine.txt"]


def test_samples_are_a_pure_function_of_their_number(labelled_folder):
    data = LabelledFolder(labelled_folder(4), "train")
    samples = Samples(data, Augmentation(33, (0.75, 1.0), (127.5,) * 3), CONFIG)
    assert len(samples) == 12
    forwards, backwards = [samples[n] for n in range(12)], [samples[n] for n in reversed(range(12))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    orders = [[samples.image_of(n) for n in range(start, start + 4)] for start in range(0, 40, 4)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)  # each epoch shows every picture once
    assert len({tuple(order) for order in orders}) > 1
    assert forwards[0][0].shape == (3, 33, 33)
    assert forwards[0][0].dtype == torch.uint8


def test_the_head_learns_faster_and_its_bias_without_decay(small_network):
    network = small_network()
    network.freeze_batch_norm()
    groups = parameter_groups(network, replace(CONFIG, learning_rate=0.001, head_multiplier=10.0, weight_decay=5e-4))
    assert [group["base_lr"] for group in groups] == pytest.approx([0.001, 0.01, 0.02])
    assert [group["weight_decay"] for group in groups] == [5e-4, 5e-4, 0]
    backbone, head, bias = ({id(p) for p in group["params"]} for group in groups)
    assert head == {id(branch.weight) for branch in network.head.branches}
    assert bias == {id(branch.bias) for branch in network.head.branches}
    assert backbone == {id(m.weight) for m in network.backbone.modules() if isinstance(m, torch.nn.Conv2d)}  # no batch norm


def test_the_average_follows_its_formula(small_network):
    network = small_network()
    average = {key: value.clone() for key, value in network.state_dict().items()}
    weight = network.head.branches[0].weight
    expected = weight.detach().double().numpy().copy()
    for step in range(30):
        with torch.no_grad():
            weight.add_(1)
        update_average(average, network, 0.7, step)
        decay = min(0.7, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach().double().numpy()
    np.testing.assert_allclose(average["head.branches.0.weight"], expected, rtol=1e-5)


def test_the_step_schedule_and_the_warmup():
    config = replace(CONFIG, schedule="step", step_every=3, steps=9, warmup_steps=0)
    assert [learning_rate_factor(config, step) for step in range(7)] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01])
    assert learning_rate_factor(replace(config, warmup_steps=3), 0) == pytest.approx(0.25)


@pytest.mark.parametrize("field", ["steps", "batch_size", "crop", "validate_every", "learning_rate"])
def test_a_configuration_out_of_range_is_refused(field):
    with pytest.raises(ValueError, match=rf"{field} 0.*accepted"):
        replace(CONFIG, **{field: 0})
    with pytest.raises(ValueError, match=r"ema 1\.0.*accepted"):
        replace(CONFIG, ema=1.0)
    with pytest.raises(ValueError, match=r"dropout -0\.1.*accepted"):
        replace(CONFIG, dropout=-0.1)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_itself_builds_and_crops_on_the_lattice(name):
    config = PRESETS[name]()
    assert config.preset == name
    with torch.device("meta"):
        network = build(config.architecture, 3, **config.options)
        saved = build(config.architecture, 3, **{**config.options, **config.saved_options})
    assert network.lattice_size(config.crop) == config.crop
    assert saved.stride * saved.grids == network.stride  # what is scored at a finer stride than it was trained at says so


def test_a_stop_during_validation_saves_the_step_and_the_validation_is_made_up_for(run, small_network, tmp_path):
    undisturbed, resumed = small_network(classes=2), small_network(classes=2, seed=1)
    best, _ = run("undisturbed", network=undisturbed)
    asked = []

    def in_the_second_image() -> bool:
        asked.append(True)
        return len(asked) == 4  # steps 1 and 2, then the images of the first validation

    with pytest.raises(Stopped, match="stopped at step 2"):
        run("stopped", stop=in_the_second_image)
    assert not (tmp_path / "stopped" / "metrics.jsonl").exists()
    again, _ = run("stopped", network=resumed, resume=True)
    assert again == best
    assert weights(tmp_path / "stopped") == weights(tmp_path / "undisturbed")
    assert (tmp_path / "stopped" / "metrics.jsonl").read_text() == (tmp_path / "undisturbed" / "metrics.jsonl").read_text()


def test_states_between_validations_resume_to_the_same_bits(run, small_network, tmp_path):
    execution = replace(PLAIN, checkpoint_every=1, keep=1)
    best, _ = run("undisturbed", replace(CONFIG, validate_every=4))
    with pytest.raises(Killed):
        run("stopped", replace(CONFIG, validate_every=4), stop_after=3, execution=execution)
    assert [path.name for path in states(tmp_path / "stopped")] == ["step-00000003.pt"]
    again, later = run("stopped", replace(CONFIG, validate_every=4), resume=True, execution=execution)
    assert again == best
    assert [step.step for step in later] == [4, 5, 6]
    assert weights(tmp_path / "stopped") == weights(tmp_path / "undisturbed")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_learns_and_resumes_to_the_same_bits(run, tmp_path, precision):
    config = replace(CONFIG, precision=precision)
    full, halved = run("full")[1], run("halved", config)[1]
    assert halved[0].loss == pytest.approx(full[0].loss, rel=0.02)
    assert [step.loss for step in halved] != [step.loss for step in full]
    with pytest.raises(Killed):
        run("stopped", config, stop_after=2)
    run("stopped", config, resume=True)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "halved")


def test_a_gradient_longer_than_the_limit_is_cut_to_it(run, small_network):
    network = small_network(classes=2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    run("clipped", replace(CONFIG, clip_norm=1e-4, steps=1, weight_decay=0.0, warmup_steps=0, head_multiplier=1.0), network=network)
    moved = {key: (network.state_dict()[key] - value).double().norm().item() for key, value in before.items() if "num" not in key}
    rates = {key: 0.04 if key.endswith("bias") else 0.02 for key in moved}  # a head's bias moves twice as fast
    assert sum((moved[key] / rates[key]) ** 2 for key in moved) ** 0.5 == pytest.approx(1e-4, rel=1e-2)


def test_learnt_batch_norm_moves_and_frozen_stays(run, small_network):
    for kind in ("frozen", "sync"):
        network = small_network(classes=2)
        before = {key: value.clone() for key, value in network.backbone.state_dict().items() if ".1." in key}
        run(kind, replace(CONFIG, batch_norm=kind, steps=2), network=network)
        moved = [not torch.equal(network.backbone.state_dict()[key], value) for key, value in before.items()]
        assert all(moved) if kind == "sync" else not any(moved)


def test_affine_batch_norm_learns_scale_and_shift_and_keeps_its_statistics(run, small_network):
    network = small_network(classes=2)
    before = {key: value.clone() for key, value in network.backbone.state_dict().items() if ".1." in key}
    run("affine", replace(CONFIG, batch_norm="affine", steps=2), network=network)
    moved = {key.rsplit(".", 1)[1]: not torch.equal(network.backbone.state_dict()[key], value) for key, value in before.items()}
    assert moved == {
        "weight": True, "bias": True, "running_mean": False, "running_var": False, "num_batches_tracked": False
    }  # fmt: skip


def test_classes_that_differ_are_refused(run, small_network):
    with pytest.raises(TrainingError, match="the network has 3 classes, the training set 2"):
        run("three", network=small_network(classes=3))


def test_a_compiled_network_trains_as_a_plain_one_and_is_saved_under_the_same_names(run, tmp_path, monkeypatch):
    """Traced, differentiated and called as compiled; what a C++ compiler would make of it takes a minute and is left out."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    config = replace(CONFIG, steps=2)
    plain, compiled = run("plain", config)[1], run("compiled", config, execution=replace(PLAIN, compile=True))[1]
    np.testing.assert_allclose([step.loss for step in compiled], [step.loss for step in plain], rtol=0, atol=1e-5)
    keys = [read_safetensors(tmp_path / name / checkpoint.WEIGHTS).keys() for name in ("plain", "compiled")]
    assert keys[0] == keys[1]


def test_convolutions_are_trained_with_channels_innermost(run, small_network):
    network = small_network(classes=2)
    seen = []
    network.backbone.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    run("laid", replace(CONFIG, steps=1), network=network)
    assert seen and all(seen)
    kernels = [module.weight for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_progress_says_when_a_step_was_done_and_how_long_it_waited_for_data(run):
    _, steps = run("timed", replace(CONFIG, steps=3))
    assert all(before.at < after.at for before, after in itertools.pairwise(steps))
    assert all(0 <= step.waited < steps[-1].at - steps[0].at + 60 for step in steps)


def test_the_average_of_the_weights_is_what_is_validated_and_saved(run, small_network, tmp_path):
    plain, averaged = small_network(classes=2), small_network(classes=2)
    run("plain", replace(CONFIG, ema=0.0, dropout=0.0), network=plain)
    run("averaged", replace(CONFIG, ema=0.9, dropout=0.0), network=averaged)
    for key, value in plain.state_dict().items():  # the training itself is the same
        assert torch.equal(averaged.state_dict()[key], value)
    assert weights(tmp_path / "plain") != weights(tmp_path / "averaged")

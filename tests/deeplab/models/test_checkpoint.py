from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deeplab.models import checkpoint
from deeplab.models.checkpoint import ModelError
from deeplab.networks.network import SegmentationNetwork
from deeplab.weights import WeightsError, initialise
from deeplab.zoo import build

CARD: dict[str, Any] = {
    "name": "shapes",
    "architecture": {"name": "mobilenet-v2-aspp", "options": {"output_stride": 16}},
    "classes": [{"name": "ground", "colour": [0, 0, 0]}, {"name": "square", "colour": [128, 0, 0]}],
    "licence": "CC0, with an ä",
}


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    torch.manual_seed(0)
    return build("mobilenet-v2-aspp", 2, output_stride=16).eval()


@pytest.fixture(scope="module")
def saved(network, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "shapes"
    checkpoint.save(folder, network, CARD)
    return folder


@pytest.fixture
def model(saved, tmp_path) -> Path:
    """A copy of the saved model that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def test_a_saved_model_comes_back_with_its_weights_classes_and_card(saved, network):
    model = checkpoint.load(saved)
    assert model.name == "shapes"
    assert model.classes.names == ("ground", "square")
    assert model.classes.colours == ((0, 0, 0), (128, 0, 0))
    assert model.card["licence"] == "CC0, with an ä"
    assert checkpoint.read_card(saved) == model.card
    assert not model.network.training
    assert model.network.stride == 16
    for key, value in network.state_dict().items():
        rounded = value.half().float() if value.ndim > 1 else value  # convolutions are stored in half precision
        torch.testing.assert_close(model.network.state_dict()[key], rounded, rtol=0, atol=0)


def test_saving_a_loaded_model_again_changes_no_weight(saved, tmp_path):
    checkpoint.save(tmp_path / "again", checkpoint.load(saved).network, CARD)
    assert (tmp_path / "again" / checkpoint.WEIGHTS).read_bytes() == (saved / checkpoint.WEIGHTS).read_bytes()
    assert checkpoint.load(tmp_path / "again").digest == checkpoint.load(saved).digest


def test_a_model_is_only_safetensors_and_json(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["model.json", "model.safetensors"]
    assert [path.name for path in saved.parent.iterdir()] == ["shapes"]  # nothing half-written beside it
    stored = load_file(saved / "model.safetensors")
    assert {value.dtype for value in stored.values() if value.ndim > 1} == {torch.float16}


def test_the_digest_is_sha256_over_weights_and_card(saved):
    parts = [hashlib.sha256((saved / name).read_bytes()).digest() for name in ("model.safetensors", "model.json")]
    model = checkpoint.load(saved)
    assert model.digest == hashlib.sha256(b"".join(parts)).hexdigest()
    assert model.label == f"shapes@{model.digest[:12]}"


def test_any_changed_byte_of_card_or_weights_is_another_model(model):
    digests = [checkpoint.load(model).digest]
    with (model / "model.json").open("a") as card:
        card.write(" ")
    digests.append(checkpoint.load(model).digest)
    rewritten(model, lambda card: card.pop("weights_sha256"))  # as cards of earlier versions are
    digests.append(checkpoint.load(model).digest)
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert len({*digests, checkpoint.load(model).digest}) == 4


def rewritten(model: Path, change: Any) -> None:
    card = json.loads((model / "model.json").read_text())
    change(card)
    (model / "model.json").write_text(json.dumps(card))


def damage_weights(model: Path, change: Any) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")


def a_pickle(model: Path) -> None:
    (model / "model.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))


def a_torch_file(model: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, model / "model.safetensors")


def cut_short(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[: len(data) // 2])


DAMAGE = {
    "no weights": (lambda m: (m / "model.safetensors").unlink(), r"model\.safetensors cannot be read"),
    "no card": (lambda m: (m / "model.json").unlink(), r"model\.json cannot be read"),
    "pickle": (a_pickle, "pickles are never loaded"),
    "torch file": (a_torch_file, "pickles are never loaded"),
    "cut short": (cut_short, "damaged"),
    "empty weights": (lambda m: (m / "model.safetensors").write_bytes(b""), "damaged"),
    "card is no JSON": (lambda m: (m / "model.json").write_text("{"), "not JSON"),
    "card is no text": (lambda m: (m / "model.json").write_bytes(b"\xff\xfe\x00"), "not JSON"),
    "card is a list": (lambda m: (m / "model.json").write_text("[1]"), "format None"),
    "other format": (lambda m: rewritten(m, lambda c: c.update(format="deeplab-model/2")), "/2'; this version reads"),
    "no format": (lambda m: rewritten(m, lambda c: c.pop("format")), "format None"),
    "unknown architecture": (lambda m: rewritten(m, lambda c: c["architecture"].update(name="unet")), "unknown architecture"),
    "unknown option": (lambda m: rewritten(m, lambda c: c["architecture"].update(options={"depth": 3})), "depth"),
    "options no map": (lambda m: rewritten(m, lambda c: c["architecture"].update(options=[1])), "does not describe"),
    "architecture no map": (lambda m: rewritten(m, lambda c: c.update(architecture=3)), "does not describe"),
    "no name": (lambda m: rewritten(m, lambda c: c.pop("name")), "name"),
    "no classes": (lambda m: rewritten(m, lambda c: c.pop("classes")), "classes"),
    "equal classes": (lambda m: rewritten(m, lambda c: c.update(classes=[c["classes"][0]] * 2)), "differ"),
    "a class without colour": (lambda m: rewritten(m, lambda c: c["classes"][1].pop("colour")), "colour"),
    "a colour of two numbers": (lambda m: rewritten(m, lambda c: c["classes"][1].update(colour=[1, 2])), "colour"),
    "a colour beyond 255": (lambda m: rewritten(m, lambda c: c["classes"][1].update(colour=[1, 2, 256])), "colour"),
    "more classes than weights": (
        lambda m: rewritten(m, lambda c: c["classes"].append({"name": "third", "colour": [1, 1, 1]})),
        r"head\.branches\.0\.weight is \(2, 1280, 3, 3\), not \(3, 1280, 3, 3\)",
    ),
    "a weight missing": (lambda m: damage_weights(m, lambda t: t.pop("head.branches.2.bias")), r"head\.branches\.2\.bias missing"),
    "a weight too many": (lambda m: damage_weights(m, lambda t: t.update(extra=torch.zeros(1))), "extra unknown"),
    "a weight that is no number": (lambda m: damage_weights(m, lambda t: t["head.branches.0.bias"].fill_(float("nan"))), "finite"),
    "an infinite weight": (lambda m: damage_weights(m, lambda t: t["head.branches.0.weight"].fill_(float("inf"))), "finite"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_model_is_refused_with_what_is_wrong(model, kind):
    damage, message = DAMAGE[kind]
    damage(model)
    with pytest.raises(ModelError, match=message) as caught:
        checkpoint.load(model)
    assert str(model) in str(caught.value)


def test_a_pickle_is_not_even_opened(model, tmp_path):
    """A pickle that would write a file when loaded."""

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",)

    (model / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ModelError):
        checkpoint.load(model)
    assert not (tmp_path / "sprung").exists()


def test_a_path_that_is_no_model_says_what_is_accepted(tmp_path):
    with pytest.raises(ModelError, match=r"no model .*nowhere: give a model folder"):
        checkpoint.load(tmp_path / "nowhere")
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(ModelError, match="is a file; a model is a folder"):
        checkpoint.load(tmp_path / "weights.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"model\.json cannot be read"):
        checkpoint.load(tmp_path / "empty")


def test_a_bundled_models_name_finds_its_folder(saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / "bundle" / "shapes")
    monkeypatch.setattr(checkpoint, "BUNDLED", tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    assert checkpoint.bundled() == ["shapes"]
    assert checkpoint.find("shapes") == tmp_path / "bundle" / "shapes"
    assert checkpoint.load("shapes").name == "shapes"
    with pytest.raises(ModelError, match="bundled models: shapes"):
        checkpoint.find("shape")


def test_saving_replaces_a_model_and_leaves_other_folders_alone(network, model, tmp_path):
    checkpoint.save(model, network, {**CARD, "name": "second"})
    assert checkpoint.load(model).name == "second"
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "mine.txt").write_text("keep")
    with pytest.raises(ModelError, match="not a model folder"):
        checkpoint.save(photos, network, CARD)
    assert [path.name for path in photos.iterdir()] == ["mine.txt"]
    with pytest.raises(ModelError, match="not a model folder"):
        checkpoint.save(photos / "mine.txt", network, CARD)
    assert (photos / "mine.txt").read_text() == "keep"


def test_weights_that_half_precision_cannot_hold_are_not_saved(tmp_path):
    network = build("mobilenet-v2-aspp", 2)
    with torch.no_grad():
        network.head.branches[0].weight[0, 0, 0, 0] = 1e6
    with pytest.raises(ModelError, match="not finite"):
        checkpoint.save(tmp_path / "big", network, CARD)
    assert not (tmp_path / "big").exists()


def test_training_starts_from_a_model_and_from_its_scores_of_the_classes_that_have_the_same_name(saved, network):
    names = list(checkpoint.load(saved).classes.names)
    same = build("mobilenet-v2-aspp", 2)
    assert "backbone and head" in initialise(same, saved, names)
    torch.testing.assert_close(same.head.branches[3].weight, network.head.branches[3].weight, rtol=1e-3, atol=1e-4)
    other = build("mobilenet-v2-aspp", 3)
    new = other.head.branches[3].weight[0].clone()
    assert "scores of new classes: 1 of 3" in initialise(other, saved, ["roof", *names[::-1]])
    torch.testing.assert_close(other.head.branches[3].weight[1:], network.head.branches[3].weight.flip(0), rtol=1e-3, atol=1e-4)
    assert torch.equal(other.head.branches[3].weight[0], new)
    with_other_head = build("mobilenet-v2-aspp-v3", 2)
    assert "the head is new" in initialise(with_other_head, saved, names)
    torch.testing.assert_close(
        other.backbone.features[3].project[0].weight, network.backbone.features[3].project[0].weight, rtol=1e-3, atol=1e-4
    )
    with pytest.raises(WeightsError, match="do not fit ResNet"):
        initialise(build("resnet50-aspp", 2), saved, names)


@pytest.mark.drill
def test_a_save_that_is_killed_at_any_file_operation_leaves_a_whole_model_or_none(tmp_path):
    """And can be done again: save_kills does, after each kill."""
    command = [sys.executable, "-m", "tests.deeplab.models.save_kills", str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == 0, done.stderr
    left = json.loads(done.stdout)
    for begun_with, found in left.items():
        assert set(found) <= {"none", "new"} | ({"old"} if begun_with != "empty" else set())
        assert found == sorted(found, key=["old", "none", "new"].index) and len(found) > 6
        assert found[-1] == "new"


def test_weights_of_another_model_are_refused_and_half_a_model_is_replaced(saved, model, network, tmp_path):
    torch.manual_seed(1)
    checkpoint.save(tmp_path / "other", build("mobilenet-v2-aspp", 2, output_stride=16), CARD)
    shutil.copy(tmp_path / "other" / checkpoint.WEIGHTS, model)
    with pytest.raises(
        ModelError, match=r"model\.json does not belong to these weights: the model is being saved, or a save was interrupted"
    ):
        checkpoint.load(model)
    (model / checkpoint.CARD).unlink()
    checkpoint.save(model, network, CARD)
    assert checkpoint.load(model).digest == checkpoint.load(saved).digest

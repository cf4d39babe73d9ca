"""Ensembles as model folders: whole, digested with their members, and refused with the member or class that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deeplab.models import checkpoint, ensemble
from deeplab.models.checkpoint import CARD, WEIGHTS, ModelError
from deeplab.weights.initialisation import initialise, known_classes
from tests.material import make_model, make_narrow


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("members")
    return [make_narrow(folder / "one", "fcn32s"), make_narrow(folder / "other", "fcn32s", seed=1)]


@pytest.fixture
def folder(tmp_path: Path, members: list[Path]) -> Path:
    ensemble.save(tmp_path / "both", "both", [checkpoint.read(member) for member in members], "product")
    return tmp_path / "both"


def changed(folder: Path, **entries: Any) -> Path:
    """The folder with entries of its card replaced."""
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, **entries}))
    return folder


def without(folder: Path, prefix: str, **added: torch.Tensor) -> Path:
    """The folder without the weights of a prefix, and a card that belongs to them."""
    tensors = {key: value for key, value in load_file(folder / WEIGHTS).items() if not key.startswith(prefix)}
    save_file({**tensors, **added}, folder / WEIGHTS)
    card = json.loads((folder / CARD).read_text())
    card.pop(checkpoint.WEIGHTS_DIGEST, None)
    (folder / CARD).write_text(json.dumps(card))
    return folder


def test_an_ensemble_holds_exact_copies_of_its_members(folder, members):
    model = checkpoint.load(folder)
    assert (model.name, model.rule, model.stride, model.by_proposals) == ("both", "product", 1, False)
    for member, source in zip(model.members, members, strict=True):
        alone = checkpoint.load(source)
        assert (member.label, member.classes) == (alone.label, alone.classes)
        assert all(torch.equal(value, alone.network.state_dict()[key]) for key, value in member.network.state_dict().items())
    assert sorted(path.name for path in folder.iterdir()) == [CARD, WEIGHTS]


def test_the_digest_covers_members_and_rule(folder, members, tmp_path):
    digests = {checkpoint.load(folder).digest}
    for number, (sources, rule) in enumerate([(members, "mean"), (members[::-1], "product"), ([members[0]] * 2, "product")]):
        place = tmp_path / str(number)
        ensemble.save(place, "both", [checkpoint.read(source) for source in sources], rule)
        digests.add(checkpoint.load(place).digest)
    assert len(digests) == 4


def test_an_ensemble_may_have_ensembles_as_members(folder, members, tmp_path):
    ensemble.save(tmp_path / "outer", "outer", [checkpoint.read(folder), checkpoint.read(members[0])], "mean")
    outer = checkpoint.load(tmp_path / "outer")
    assert [len(member.members) for member in outer.members] == [2, 0]


def test_a_member_that_is_gone_is_named(folder, members):
    label = checkpoint.load(members[1]).label
    with pytest.raises(ModelError, match=rf"both: member {label} \(2 of 2\) is gone: .* make the ensemble again"):
        checkpoint.load(without(folder, "1."))


def test_a_damaged_member_is_named(folder, members):
    label = checkpoint.load(members[0]).label
    with pytest.raises(ModelError, match=rf"both, member {label}: 1 weights do not fit fcn32s: head.score_fr.bias missing"):
        checkpoint.load(without(folder, "0.head.score_fr.bias"))
    with pytest.raises(ModelError, match=r"weights of no member of the card \(7\.x\)"):
        checkpoint.load(without(folder, "none", **{"7.x": torch.zeros(1)}))


def test_classes_that_differ_are_refused_with_the_first_difference(members, tmp_path, folder):
    other = make_narrow(tmp_path / "fcn8s", "fcn8s", classes=("background", "dog", "cat"))
    first, label = checkpoint.load(members[0]).label, checkpoint.load(other).label
    with pytest.raises(ModelError, match=f"^class 1 is 'cat' in {first} and 'dog' in {label}; an ensemble's members"):
        ensemble.save(tmp_path / "x", "x", [checkpoint.read(members[0]), checkpoint.read(other)], "mean")
    two = make_narrow(tmp_path / "two", "fcn8s", classes=("background", "cat"))
    with pytest.raises(ModelError, match=f"^{first} has 3 classes and two@.* has 2; an ensemble's members"):
        ensemble.save(tmp_path / "x", "x", [checkpoint.read(members[0]), checkpoint.read(two)], "mean")
    assert not (tmp_path / "x").exists()
    classes = json.loads((folder / CARD).read_text())["classes"]
    with pytest.raises(ModelError, match="class 0 is 'cat' in both and 'background' in one@"):
        checkpoint.load(changed(folder, classes=[classes[1], classes[0], classes[2]]))


def test_a_card_that_is_no_ensembles_is_refused(folder):
    entries = json.loads((folder / CARD).read_text())["ensemble"]
    for bad in ([], 3, {}, {**entries, "rule": "sum"}, {**entries, "members": 5}, {**entries, "members": [1, 2]}):
        with pytest.raises(ModelError, match="does not describe a model of this version"):
            checkpoint.load(changed(folder, ensemble=bad))
    member = {"label": "one@0", "card": {"format": "other"}}
    with pytest.raises(ModelError, match="format 'other'; this version reads"):
        checkpoint.load(changed(folder, ensemble={**entries, "members": [member, member]}))


def test_one_model_is_no_ensemble(members, tmp_path):
    with pytest.raises(ModelError, match="of 1 models; two or more"):
        ensemble.save(tmp_path / "x", "x", [checkpoint.read(members[0])], "mean")


def test_an_ensemble_does_not_start_a_training(folder):
    network = checkpoint.load("pets").network
    with pytest.raises(ModelError, match=r"is an ensemble \(one@.*, other@.*\) and has no network of its own: give one of"):
        initialise(network, folder, [])
    assert known_classes(folder, "fcn32s") == []


@pytest.mark.parametrize("bad", [{"method": "bing"}, {"count": 0}, {"boxes": 3}, 7])
def test_proposals_that_cannot_be_are_refused(tmp_path, bad):
    with pytest.raises(ModelError, match="does not describe a model of this version"):
        checkpoint.load(make_narrow(tmp_path / "fcn8s", "fcn8s", proposals=bad))


def test_proposals_of_a_network_at_another_stride_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"proposals need .*mobilenet-v2-aspp has stride 8"):
        checkpoint.load(changed(make_model(tmp_path / "tiny"), proposals={}))

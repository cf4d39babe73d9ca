"""State dicts of other code bases: torchvision's own output, and kazuto's and isht7's layouts against a reference."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F

from deeplab.networks import resnet as resnet_module
from deeplab.weights import WeightsError, import_file, import_state_dict, import_weights, initialise, key_maps, read_pth
from deeplab.weights.foreign_networks import OFFICIAL, OWN_SIZE
from deeplab.weights.initialisation import fully_connected
from deeplab.zoo import build
from tests.deeplab.networks import reference

BLOCKS = (1, 2, 1, 1)
KAZUTO = {"branch2a": "reduce", "branch2b": "conv3x3", "branch2c": "increase", "branch1": "shortcut"}
ISHT7 = {"branch2a": "{}1", "branch2b": "{}2", "branch2c": "{}3", "branch1": "downsample.{}"}


def kazuto_names(name: str) -> tuple[str, str]:
    """Caffe's layer name -> kazuto's convolution and norm."""
    if name == "conv1":
        return "base.layer1.conv1.conv", "base.layer1.conv1.bn"
    stage, block, branch = name.replace("_", ".").split(".")
    base = f"base.layer{stage}.block{int(block) + 1}.{KAZUTO[branch]}"
    return f"{base}.conv", f"{base}.bn"


def isht7_names(name: str) -> tuple[str, str]:
    if name == "conv1":
        return "Scale.conv1", "Scale.bn1"
    stage, block, branch = name.replace("_", ".").split(".")
    base = f"Scale.layer{int(stage) - 1}.{block}."
    if branch == "branch1":
        return f"{base}downsample.0", f"{base}downsample.1"
    return base + ISHT7[branch].format("conv"), base + ISHT7[branch].format("bn")


def layout(names: Callable[[str], tuple[str, str]], score: str, classes: int) -> dict[str, torch.Tensor]:
    """A random ResNet-ASPP of BLOCKS in that naming."""
    torch.manual_seed(1)
    found: dict[str, torch.Tensor] = {}

    def unit(name: str, inputs: int, outputs: int, kernel: int) -> None:
        conv, norm = names(name)
        found[f"{conv}.weight"] = torch.randn(outputs, inputs, kernel, kernel) * (2 / inputs) ** 0.5 / kernel
        found[f"{norm}.weight"], found[f"{norm}.running_var"] = torch.rand(outputs) + 0.5, torch.rand(outputs) + 0.5
        found[f"{norm}.bias"], found[f"{norm}.running_mean"] = torch.randn(outputs) * 0.2, torch.randn(outputs) * 0.2

    unit("conv1", 3, 64, 7)
    inputs = 64
    for stage, count in enumerate(BLOCKS, 2):
        width = 16 * 2**stage
        for block in range(count):
            if block == 0:
                unit(f"{stage}.{block}_branch1", inputs, 4 * width, 1)
            unit(f"{stage}.{block}_branch2a", inputs, width, 1)
            unit(f"{stage}.{block}_branch2b", width, width, 3)
            unit(f"{stage}.{block}_branch2c", width, 4 * width, 1)
            inputs = 4 * width
    for i in range(4):
        found[f"{score}{i}.weight"] = torch.randn(classes, inputs, 3, 3) * 0.01
        found[f"{score}{i}.bias"] = torch.randn(classes)
    return found


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "names", "score", "geometry"),
    [("kazuto", kazuto_names, "base.aspp.c", OWN_SIZE), ("isht7", isht7_names, "Scale.layer5.conv2d_list.", OFFICIAL)],
)
def test_a_state_dict_in_that_layout_gives_the_reference_forward(family, names, score, geometry, monkeypatch, assert_close):
    monkeypatch.setitem(resnet_module.BLOCKS, 101, BLOCKS)
    weights = layout(names, score, 6)
    network = import_state_dict(weights, family)
    assert (network.classes, network.geometry, network.training) == (6, geometry, False)
    assert network.normalization.mean == (104.008, 116.669, 122.675)

    def conv_norm(x, name, stride, pad, hole):
        conv, norm = names(name)
        y = F.conv2d(x, weights[f"{conv}.weight"], None, stride, pad, hole)
        return reference.norm(y, *(weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = torch.randn(1, 3, 49, 60)
    top = reference.resnet_v2(x, conv_norm, BLOCKS)["res5"]
    branches = [(weights[f"{score}{i}.weight"], weights[f"{score}{i}.bias"]) for i in range(4)]
    assert_close(network(x), sum(F.conv2d(top, *b, 1, r, r) for b, r in zip(branches, (6, 12, 18, 24), strict=True)))


@pytest.mark.parametrize("keys", [key_maps.kazuto, key_maps.isht7])
def test_the_maps_fill_the_whole_published_net_and_every_name_once(keys):
    with torch.device("meta"):
        ours = set(build("resnet101-aspp", 21).state_dict())
    assert set(keys().values()) == ours
    assert len(set(keys().values())) == len(keys())


def test_kazutos_names_as_its_files_have_them():
    keys = key_maps.kazuto()
    assert keys["base.layer4.block23.conv3x3.bn.running_var"] == "backbone.layer3.22.bn2.running_var"
    assert keys["base.layer2.block1.shortcut.conv.weight"] == "backbone.layer1.0.downsample.0.weight"
    assert key_maps.caffe_resnet(101)["res4b22_branch2b"] == "backbone.layer3.22.conv2"
    assert key_maps.caffe_resnet(101)["bn5c_branch2c"] == "backbone.layer4.2.bn3"
    assert key_maps.caffe_resnet(50)["res4f_branch2a"] == "backbone.layer3.5.conv1"


TORCHVISION = {
    "deeplabv3_resnet50": "resnet50-aspp-v3",
    "deeplabv3_resnet101": "resnet101-aspp-v3",
    "deeplabv3_mobilenet_v3_large": "mobilenet-v3-aspp-v3",
    "fcn_resnet50": "resnet50-fcn",
    "fcn_resnet101": "resnet101-fcn",
}


@torch.no_grad()
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_weights_give_torchvisions_own_output(name, randomised, assert_close):
    make = getattr(torchvision.models.segmentation, name)
    theirs = randomised(make(weights=None, weights_backbone=None, num_classes=5, aux_loss=True))
    found = import_weights(theirs.state_dict(), "torchvision")
    assert found.architecture == TORCHVISION[name]
    assert found.left_out
    assert all(key.startswith("aux_classifier.") for key in found.left_out)
    for size in ((48, 64), (51, 66)):
        x = torch.randn(1, 3, *size)
        scores = found.network(x)
        ours = F.interpolate(scores, size, mode="bilinear", align_corners=found.network.align_corners)
        assert_close(ours, theirs(x)["out"])


def test_weights_of_another_family_are_refused_with_what_they_are():
    weights = {"Scale.conv1.weight": torch.zeros(64, 3, 7, 7)}
    with pytest.raises(WeightsError, match=r"not of family kazuto: no base\.aspp\.c0\.weight among 1 keys \(Scale\.conv1\.weight"):
        import_state_dict(weights, "kazuto")
    with pytest.raises(WeightsError, match="unknown family 'kazutto'; nearest: kazuto"):
        import_state_dict(weights, "kazutto")
    with pytest.raises(WeightsError, match="COCO init"):
        import_state_dict({"fc.weight": torch.zeros(91, 2048, 1, 1)}, "kazuto")
    with pytest.raises(WeightsError, match="import_file"):
        import_state_dict(weights, "caffe")


def test_what_does_not_fit_is_listed(monkeypatch):
    monkeypatch.setitem(resnet_module.BLOCKS, 101, (1, 1, 1, 1))
    weights = layout(kazuto_names, "base.aspp.c", 3)
    with pytest.raises(WeightsError, match=r"base\.layer3\.block2\.reduce\.conv\.weight unknown"):
        import_state_dict(weights, "kazuto")
    monkeypatch.setitem(resnet_module.BLOCKS, 101, BLOCKS)
    fewer = {key: value for key, value in weights.items() if key != "base.layer5.block1.increase.bn.bias"}
    with pytest.raises(WeightsError, match=r"backbone\.layer4\.0\.bn3\.bias missing"):
        import_state_dict(fewer, "kazuto")
    with pytest.raises(WeightsError, match=r"head\.branches\.2\.weight is \(4, 2048, 3, 3\), not \(3, 2048, 3, 3\)"):
        import_state_dict({**weights, "base.aspp.c2.weight": torch.zeros(4, 2048, 3, 3)}, "kazuto")


class Bomb:
    def __reduce__(self):
        return print, ("code of a weight file was run",)


def test_code_in_a_pth_file_is_not_run(tmp_path, capsys):
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb()))
    torch.save({"a": Bomb()}, tmp_path / "zip.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "zip.pth").read_bytes()[:100])
    for name in ("bomb.pth", "zip.pth", "list.pth", "cut.pth", "none.pth"):
        with pytest.raises(WeightsError, match=name):
            import_file(tmp_path / name, "kazuto")
    assert "was run" not in capsys.readouterr().out


def test_a_state_dict_within_a_checkpoint_is_found(tmp_path):
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(2)}}, tmp_path / "checkpoint.pth")
    assert list(read_pth(tmp_path / "checkpoint.pth")) == ["a"]


class Settings(dict):
    """As a framework keeps its hyper-parameters: a class that the reader does not have."""


class Watcher:
    def __init__(self) -> None:
        self.best = 0.5


CHECKPOINTS = {
    "DataParallel": lambda state: {f"module.{key}": value for key, value in state.items()},
    "torch.compile of DataParallel": lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    "torchvision's references": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.01}]},
        "epoch": 29,
        "args": argparse.Namespace(data_path="/data/coco", lr=0.01, device=Path("x"), best=np.float64(0.5)),
    },
    "Lightning": lambda state: {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {f"model.{key}": value for key, value in state.items()} | {"criterion.weight": torch.ones(5)},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "hyper_parameters": Settings(lr=0.1, loss=Watcher()),
        "callbacks": {"EarlyStopping": {"best": Watcher()}},
    },
}


@pytest.fixture(scope="module")
def torchvision_state():
    torch.manual_seed(0)
    return torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    ).state_dict()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_training_frameworks_give_the_weights_within(kind, legacy, tmp_path, torchvision_state):
    made = CHECKPOINTS[kind](torchvision_state)
    if legacy and kind != "DataParallel":  # other files of the old form are refused, as its names cannot be listed
        made = {"model": torchvision_state, "args": argparse.Namespace(lr=0.01)}
    torch.save(made, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=not legacy)
    found = import_file(tmp_path / "checkpoint.pth", "torchvision")
    plain = import_weights(torchvision_state, "torchvision")
    for key, value in plain.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[key], value), key
    assert found.left_out == plain.left_out + ["criterion.weight"] * (kind == "Lightning" and not legacy)


def test_no_class_that_a_checkpoint_names_is_built(tmp_path, torchvision_state, monkeypatch):
    def built(*_: object) -> None:
        raise AssertionError("a class of the file was built")

    torch.save(CHECKPOINTS["Lightning"](torchvision_state), tmp_path / "checkpoint.pth")
    monkeypatch.setattr(Settings, "__new__", built)
    monkeypatch.setattr(Watcher, "__new__", built)
    assert len(import_file(tmp_path / "checkpoint.pth", "torchvision").network.state_dict()) > 100


def test_a_refused_file_is_explained_in_one_line_without_escape_codes(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    torch.save({"model": {"a": 1}}, tmp_path / "numbers.pth")
    torch.save({"args": os.system}, tmp_path / "system.pth")
    torch.save({"args": Watcher()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("whole.pth", "numbers.pth", "system.pth", "old.pth"):
        with pytest.raises(WeightsError) as caught:
            read_pth(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert str(caught.value).isprintable()


def test_vggs_matrices_become_convolutions_that_see_the_same_places():
    fc6, fc7 = torch.arange(4096.0)[:, None] + torch.zeros(1, 25088), torch.zeros(4096, 4096)
    fc6 += torch.arange(25088.0) * 1e-5
    tensors = {"classifier.0.weight": fc6, "classifier.0.bias": torch.arange(4096.0)}
    tensors |= {"classifier.3.weight": fc7, "classifier.3.bias": torch.arange(4096.0)}
    whole = {f"{layer}.{part}": value for layer, part, value in fully_connected(tensors, 7, 4096)}
    assert torch.equal(whole["fc6.weight"].flatten(1), fc6)
    small = {f"{layer}.{part}": value for layer, part, value in fully_connected(tensors, 3, 1024)}
    chosen = small["fc6.bias"].long()
    assert len(set(chosen.tolist())) == 1024
    for i in range(3):
        for j in range(3):
            torch.testing.assert_close(small["fc6.weight"][:, 5, i, j], fc6[chosen, 5 * 49 + 3 * i * 7 + 3 * j])
    assert small["fc7.weight"].shape == (1024, 1024, 1, 1)
    with pytest.raises(WeightsError, match="4096 x 25088"):
        fully_connected({**tensors, "classifier.0.weight": torch.zeros(10, 10)}, 3, 1024)


def test_the_imagenet_convolutions_start_every_vgg(shared):
    path = shared / "weights" / "vgg16_imagenet_convs.safetensors"
    for name in ("vgg16-aspp-l", "fcn8s"):
        with torch.device("meta"):
            network = build(name, 3)
        network = network.to_empty(device="cpu")
        assert "the 13 convolutions from" in initialise(network, path, [])
        first = network.backbone.features[0].weight.detach()
        assert 0.1 < float(first.std()) < 1
    with pytest.raises(WeightsError, match=r"do not fit ResNet: .*conv1\.weight missing"):
        initialise(build("resnet50-plain", 2), path, [])

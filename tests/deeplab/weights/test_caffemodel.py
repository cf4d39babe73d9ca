"""Official .caffemodel files: layouts as Caffe writes them, and files that no Caffe wrote."""

from __future__ import annotations

import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from deeplab.networks import resnet as resnet_module
from deeplab.placement import Geometry
from deeplab.weights import WeightsError, foreign_networks, import_file
from deeplab.weights.caffemodel import parse, read_caffemodel
from deeplab.zoo import build
from tests.deeplab.networks import reference
from tests.deeplab.networks.reference import FCN_BODY, LARGEFOV_BODY
from tests.deeplab.weights.caffe_writer import integer, layer, layer_v1, message, net, varint
from tests.examples import examples

CLASSES = 3
CONVOLUTION_V1 = 4


@pytest.fixture
def saved(tmp_path: Path):
    def save(data: bytes) -> Path:
        path = tmp_path / "net.caffemodel"
        path.write_bytes(data)
        return path

    return save


@pytest.fixture
def narrow(monkeypatch):
    """The importer builds nets of a sixteenth of the channels, so that files are small."""
    monkeypatch.setattr(foreign_networks, "build", partial(build, width=1 / 16))


def values(rng, *shape: int) -> np.ndarray:
    fan = int(np.prod(shape[1:])) or 1
    return rng.normal(0, (2 / fan) ** 0.5 if len(shape) > 1 else 0.2, shape).astype(np.float32)


def resnet_layers(rng, blocks: tuple[int, ...]) -> dict[str, tuple[str, list[np.ndarray]]]:
    """Every layer of DeepLab v2's ResNet as Caffe stores it: statistics multiplied by the moving-average factor."""
    found: dict[str, tuple[str, list[np.ndarray]]] = {}

    def unit(name: str, inputs: int, outputs: int, kernel: int) -> None:
        factor = np.float32(rng.uniform(0.5, 900))
        key = name.removeprefix("res") if name.startswith("res") else "_" + name
        found[name] = "Convolution", [values(rng, outputs, inputs, kernel, kernel)]
        mean, var = rng.normal(0, 0.2, outputs), rng.uniform(0.5, 1.5, outputs)
        found["bn" + key] = "BatchNorm", [(mean * factor).astype("f4"), (var * factor).astype("f4"), np.array([factor])]
        found["scale" + key] = "Scale", [rng.uniform(0.6, 1.2, outputs).astype("f4"), values(rng, outputs)]

    unit("conv1", 3, 64, 7)
    inputs = 64
    for stage, count in enumerate(blocks, 2):
        width = 32 * 2**stage // 2
        for block in range(count):
            name = f"res{stage}{'abc'[block]}_branch"
            if block == 0:
                unit(name + "1", inputs, 4 * width, 1)
            unit(name + "2a", inputs, width, 1)
            unit(name + "2b", width, width, 3)
            unit(name + "2c", width, 4 * width, 1)
            inputs = 4 * width
    for i in range(4):
        found[f"fc1_voc12_c{i}"] = "Convolution", [values(rng, CLASSES, inputs, 3, 3), values(rng, CLASSES)]
    return found


@torch.no_grad()
def test_a_resnet_file_gives_caffes_own_forward(rng, saved, monkeypatch, assert_close):
    """BN divided by its factor, Scale joined, the copies at half and three quarters left out and named."""
    monkeypatch.setitem(resnet_module.BLOCKS, 50, (1, 1, 2, 1))
    layers = resnet_layers(rng, (1, 1, 2, 1))
    copies = [layer(f"{copy}_conv1", "Convolution", [np.zeros((64, 3, 7, 7))]) for copy in ("res05", "res075")]
    found = import_file(saved(net([*(layer(n, kind, blobs) for n, (kind, blobs) in layers.items()), *copies])), "caffe")
    assert found.architecture == "resnet50-aspp"
    assert set(found.left_out) == {"res05_conv1", "res075_conv1"}
    assert found.network.normalization.mean == (104.008, 116.669, 122.675)
    assert found.network.geometry == foreign_networks.OFFICIAL

    def conv_norm(x, name, stride, pad, hole):
        if name != "conv1":
            place, branch = name.split("_")
            stage, block = place.split(".")
            name = f"res{stage}{'abc'[int(block)]}_{branch}"
        key = name.removeprefix("res") if name.startswith("res") else "_" + name
        mean, var, factor = (torch.from_numpy(b) for b in layers["bn" + key][1])
        scale, shift = (torch.from_numpy(b) for b in layers["scale" + key][1])
        y = F.conv2d(x, torch.from_numpy(layers[name][1][0]), None, stride, pad, hole)
        return reference.norm(y, mean / factor, var / factor, scale, shift)

    x = torch.randn(1, 3, 49, 60)
    top = reference.resnet_v2(x, conv_norm, (1, 1, 2, 1))["res5"]
    heads = [[torch.from_numpy(b) for b in layers[f"fc1_voc12_c{i}"][1]] for i in range(4)]
    expected = sum(F.conv2d(top, *head, 1, r, r) for head, r in zip(heads, (6, 12, 18, 24), strict=True))
    assert_close(found.network(x), expected)


def vgg_layers(rng, table, fc: tuple[int, int, int]) -> dict[str, list[np.ndarray]]:
    """Layer name -> weight and bias of a VGG a sixteenth wide, with fc6 of that kernel and that many filters, and fc7."""
    found, inputs = {}, 3
    for name, *_ in table:
        if name.startswith("conv"):
            outputs = {"1": 4, "2": 8, "3": 16, "4": 32, "5": 32}[name[4]]
            found[name] = [values(rng, outputs, inputs, 3, 3), values(rng, outputs)]
            inputs = outputs
    kernel, filters, last = fc
    found["fc6"] = [values(rng, filters, inputs, kernel, kernel), values(rng, filters)]
    found["fc7"] = [values(rng, last, filters, 1, 1), values(rng, last)]
    return found


def tensors(layers: dict[str, list[np.ndarray]]):
    return {name: tuple(torch.from_numpy(b) for b in blobs) for name, blobs in layers.items()}


@torch.no_grad()
@pytest.mark.parametrize("average", [True, False])
def test_a_largefov_file_of_2014_gives_caffes_own_forward(rng, saved, narrow, assert_close, average):
    layers = vgg_layers(rng, LARGEFOV_BODY, (3, 64, 64))
    layers["fc8_voc12"] = [values(rng, CLASSES, 64, 1, 1), values(rng, CLASSES)]
    parts = [layer_v1(name, CONVOLUTION_V1, blobs) for name, blobs in layers.items()]
    found = import_file(saved(net([*parts, *([layer_v1("pool5a", 17)] if average else [])])), "caffe")
    assert found.architecture == ("vgg16-largefov" if average else "vgg16-v2-largefov")
    assert found.network.geometry == foreign_networks.OFFICIAL
    w = tensors(layers)
    w["fc8"] = w["fc8_voc12"]
    x = torch.randn(1, 3, 49, 60)
    top = reference.body(x, w, LARGEFOV_BODY)["pool5"]
    assert_close(found.network(x), reference.branch(reference.pool5a(top) if average else top, w, 3, 12))


@torch.no_grad()
@pytest.mark.parametrize(("name", "rates"), [("vgg16-aspp-s", (2, 4, 8, 12)), ("vgg16-aspp-l", (6, 12, 18, 24))])
def test_a_vgg_aspp_file_tells_its_rates(rng, saved, narrow, assert_close, name, rates):
    layers = vgg_layers(rng, LARGEFOV_BODY, (3, 64, 64))
    del layers["fc6"], layers["fc7"]
    for i in range(1, 5):
        layers |= {
            f"fc6_{i}": [values(rng, 64, 32, 3, 3), values(rng, 64)],
            f"fc7_{i}": [values(rng, 64, 64, 1, 1), values(rng, 64)],
        }
        layers[f"fc8_voc12_{i}"] = [values(rng, CLASSES, 64, 1, 1), values(rng, CLASSES)]
    parts = [
        layer(n, "Convolution", blobs, dilation=rates[int(n[-1]) - 1] if n.startswith("fc6") else 0) for n, blobs in layers.items()
    ]
    found = import_file(saved(net(parts)), "caffe")
    assert found.architecture == name
    w = tensors(layers)
    w |= {f"fc8_{i}": w[f"fc8_voc12_{i}"] for i in range(1, 5)}
    x = torch.randn(1, 3, 41, 41)
    top = reference.body(x, w, LARGEFOV_BODY)["pool5"]
    assert_close(found.network(x), sum(reference.branch(top, w, 3, rate, f"_{i}") for i, rate in enumerate(rates, 1)))


@torch.no_grad()
def test_an_fcn8s_file_gives_its_forward(rng, saved, narrow, assert_close):
    layers = vgg_layers(rng, FCN_BODY, (7, 256, 256))
    for name, channels in (("score_fr", 256), ("score_pool4", 32), ("score_pool3", 16)):
        layers[name] = [values(rng, CLASSES, channels, 1, 1), values(rng, CLASSES)]
    eye = np.eye(CLASSES, dtype="f4")[:, :, None, None]
    for name, side in (("upscore2", 4), ("upscore_pool4", 4), ("upscore8", 16)):
        layers[name] = [eye * reference.bilinear(side).numpy()]
    found = import_file(saved(net([layer(n, "Convolution", blobs) for n, blobs in layers.items()])), "caffe")
    assert found.architecture == "fcn8s"
    assert found.network.geometry == Geometry()
    x = torch.randn(1, 3, 50, 41)
    assert_close(found.network(x), reference.fcn(x, {n: b for n, b in tensors(layers).items() if len(b) == 2}, 8, (1.0, 1.0)))


def test_a_deconvnet_file_fills_every_layer_and_its_norm_is_the_stored_scale_and_shift(rng, saved, narrow):
    network = build("deconvnet", CLASSES, width=1 / 16)
    stages = [("conv", "bn", stage) for stage in (1, 2, 3, 4, 5)] + [("deconv", "debn", stage) for stage in (5, 4, 3, 2, 1)]
    names = [(f"{p}{s}_{i}", f"{q}{s}_{i}") for p, q, s in stages for i in range(1, 4 if s > 2 else 3)]
    names[13:13] = [("fc6", "bnfc6"), ("fc7", "bnfc7"), ("fc6-deconv", "fc6-deconv-bn")]
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert len(convolutions) == len(names) + 1 == 30
    layers, stored = [], {}
    for (name, norm), module in zip(names, convolutions, strict=False):
        stored[norm] = [values(rng, module.out_channels), values(rng, module.out_channels)]
        layers.append(layer_v1(name, 4, [values(rng, *module.weight.shape), values(rng, module.out_channels)]))
        layers.append(layer_v1(norm, 99, [b.reshape(1, -1, 1, 1) for b in stored[norm]]))
    layers.append(layer_v1("seg-score-voc", 4, [values(rng, *network.head.score.weight.shape), values(rng, CLASSES)]))
    imported = import_file(saved(net(layers)), "caffe").network
    norm = imported.head.stages[0][0][1]
    x = torch.randn(1, 32, 3, 3)
    scale, shift = (torch.from_numpy(b).view(1, -1, 1, 1) for b in stored["debn5_1"])
    torch.testing.assert_close(norm(x), x * scale + shift)


def small_file() -> bytes:
    weights = np.arange(24, dtype="f4").reshape(2, 3, 2, 2)
    return net([layer("a", "Convolution", [weights, np.ones(2)], 6), layer_v1("b", 4, [weights]), layer("relu", "ReLU")])


def test_layers_blobs_and_dilation_are_read_as_written():
    first, second, third = parse(memoryview(small_file()))
    assert (first.name, first.type, first.dilation, second.name, second.type, third.blobs) == ("a", "Convolution", 6, "b", "4", [])
    np.testing.assert_array_equal(first.blobs[0], np.arange(24).reshape(2, 3, 2, 2))
    np.testing.assert_array_equal(first.blobs[1], [1, 1])
    np.testing.assert_array_equal(second.blobs[0], first.blobs[0])


def test_a_file_cut_anywhere_within_a_layer_is_refused_or_has_lost_whole_layers():
    data = small_file()
    whole = len(parse(memoryview(data)))
    refused = 0
    for end in range(len(data)):
        try:
            assert len(parse(memoryview(data[:end]))) < whole
        except WeightsError:
            refused += 1
    assert refused > len(data) - 8


@settings(max_examples=examples(200))
@given(st.binary(max_size=200), st.integers(0, 500), st.integers(0, 255))
def test_damaged_bytes_are_refused_or_read_and_nothing_else(noise, at, byte):
    data = bytearray(small_file())
    data[at % len(data)] = byte
    for candidate in (bytes(data), noise, bytes(data) + noise):
        try:
            parse(memoryview(candidate))
        except WeightsError:
            refused = True
        else:
            refused = False
        assert refused or parse(memoryview(candidate))


HOSTILE = {
    "a length beyond the file": (varint(100 << 3 | 2) + varint(2**60), "2 bytes|bytes, 0 are left"),
    "a shape that is not its data": (message(100, message(7, message(7, message(1, varint(70000) * 4)) + message(5, b"\0" * 8))), "2 numbers"),  # noqa: E501
    "a side of 2^63": (message(100, message(7, message(7, message(1, varint(2**63))) + message(5, b"\0" * 4))), "a side of"),
    "hundreds of dimensions": (message(100, message(7, message(7, message(1, b"\1" * 300)) + message(5, b"\0" * 4))), "dimensions"),
    "a number without an end": (b"\xff" * 40, "no number"),
    "a group, which protobuf gave up": (varint(5 << 3 | 3), "wire type 3"),
    "floats that are no floats": (message(100, message(7, message(5, b"\0" * 7))), "packed"),
    "no weights": (net([layer("relu", "ReLU")]), "no layers with weights"),
    "many blobs": (message(100, message(7, b"") * 100), "more than 16 blobs"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_with_its_reason(kind, saved):
    data, reason = HOSTILE[kind]
    with pytest.raises(WeightsError, match=rf"net\.caffemodel: not a whole \.caffemodel: .*({reason})"):
        read_caffemodel(saved(data))


def test_a_hostile_file_costs_no_more_than_its_own_size(saved):
    """3 MB of empty layers would be a million Python objects."""
    path = saved(message(100, b"") * 1_000_000)
    tracemalloc.start()
    with pytest.raises(WeightsError, match="more than 10000 layers"):
        read_caffemodel(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_an_empty_or_missing_file_is_refused(saved, tmp_path):
    for path in (saved(b""), tmp_path / "none.caffemodel"):
        with pytest.raises(WeightsError, match=r"caffemodel: cannot be read"):
            read_caffemodel(path)


def test_layers_of_another_net_are_named(rng, saved, narrow):
    layers = vgg_layers(rng, LARGEFOV_BODY, (3, 64, 64)) | {"fc8_voc12": [values(rng, 3, 64, 1, 1), values(rng, 3)]}
    parts = [layer(n, "Convolution", blobs) for n, blobs in layers.items()]
    with pytest.raises(WeightsError, match="layer conv6_1 has weights and no place"):
        import_file(saved(net([*parts, layer("conv6_1", "Convolution", [np.ones((1, 1, 1, 1))])])), "caffe")
    with pytest.raises(WeightsError, match=r"backbone\.fc\.fc7\.weight missing"):
        import_file(saved(net([part for part, name in zip(parts, layers, strict=True) if name != "fc7"])), "caffe")
    with pytest.raises(WeightsError, match="no network of the family: layers data_conv"):
        import_file(saved(net([layer("data_conv", "Convolution", [np.ones((1, 1, 1, 1))])])), "caffe")
    assert integer(1, 300) == b"\x08\xac\x02"  # protobuf's own example: the writer is right

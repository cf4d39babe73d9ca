"""DeepLabv3 on MobileNetV2 from a .tflite file, written here with random codes: values by hand, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from deeplab.models import checkpoint
from deeplab.networks.mobilenet import STAGES
from deeplab.weights import import_file
from deeplab.weights.strict_loading import WeightsError

pytest.importorskip("tflite", reason="needs the package tflite: pip install 'deeplab-pipelines[tflite]'")
from tests.deeplab.weights.tflite_writer import Stored, write

CLASSES = 4


def places() -> list[tuple[str, str, tuple[int, int, int, int]]]:
    """Operator, name and stored shape of every convolution, from Table 2 of arXiv 1801.04381."""
    layers = [("CONV_2D", "MobilenetV2/Conv", (32, 3, 3, 3))]
    inputs, block = 32, 0
    for expansion, outputs, repeats, _ in STAGES:
        for _ in range(repeats):
            prefix, hidden = f"MobilenetV2/expanded_conv{f'_{block}' if block else ''}", inputs * expansion
            if expansion != 1:
                layers.append(("CONV_2D", f"{prefix}/expand", (hidden, 1, 1, inputs)))
            layers.append(("DEPTHWISE_CONV_2D", f"{prefix}/depthwise", (1, 3, 3, hidden)))
            layers.append(("CONV_2D", f"{prefix}/project", (outputs, 1, 1, hidden)))
            inputs, block = outputs, block + 1
    layers += [("CONV_2D", name, (256, 1, 1, 320)) for name in ("aspp0", "image_pooling")]
    return [*layers, ("CONV_2D", "concat_projection", (256, 1, 1, 512)), ("CONV_2D", "logits/semantic", (CLASSES, 1, 1, 256))]


def content() -> tuple[list[Stored], list[tuple[str, list[int]]]]:
    random = np.random.default_rng(5)
    tensors = [Stored("input", shape=(1, 513, 513, 3), scale=1 / 128, zero=128)]
    operators: list[tuple[str, list[int]]] = []
    for kind, name, shape in places():
        outputs = shape[3] if kind == "DEPTHWISE_CONV_2D" else shape[0]
        scale = 2.0 / (128 * np.sqrt(9 if kind == "DEPTHWISE_CONV_2D" else np.prod(shape[1:])))
        codes = random.integers(0, 256, shape, np.uint8)
        tensors.append(Stored(f"{name}/Conv2D_Fold;{name}/weights_quant", codes, scale=float(np.float32(scale)), zero=127))
        tensors.append(Stored(f"{name}/bias", random.integers(-900, 900, outputs).astype(np.int32), scale=1e-3))
        operators.append((kind, [0, len(tensors) - 2, len(tensors) - 1]))
    tensors.append(Stored("ResizeBilinear/size", np.array([513, 513], np.int32)))
    operators += [("ADD", [0, 0]), ("CONCATENATION", [0, 0]), ("RESIZE_BILINEAR", [0, len(tensors) - 1])]
    return tensors, operators


def decoded(tensors: list[Stored], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (O x I x kh x kw) and bias of a convolution, by the formula of the file format, in float64."""
    at = next(index for index, tensor in enumerate(tensors) if tensor.name.startswith(f"{name}/Conv2D"))
    weight, bias = tensors[at], tensors[at + 1]
    assert weight.values is not None and bias.values is not None
    values = torch.from_numpy((weight.values.astype(np.float64) - weight.zero) * weight.scale)
    order = (3, 0, 1, 2) if weight.values.shape[0] == 1 and "depthwise" in name else (0, 3, 1, 2)
    return values.permute(*order), torch.from_numpy(bias.values * float(np.float32(bias.scale)))


def by_formula(tensors: list[Stored], x: torch.Tensor) -> torch.Tensor:
    """The whole network in float64, one convolution after the other: stride 16, then rate 2."""

    def conv(name: str, x: torch.Tensor, stride: int = 1, rate: int = 1, groups: int = 1) -> torch.Tensor:
        weight, bias = decoded(tensors, name)
        return F.conv2d(x, weight, bias, stride, rate * (weight.shape[-1] // 2), rate, groups)

    x = conv("MobilenetV2/Conv", x, 2).clamp(0, 6)
    block, stride_so_far, rate = 0, 2, 1
    for expansion, _, repeats, first in STAGES:
        for index in range(repeats):
            prefix, stride, own_rate = f"MobilenetV2/expanded_conv{f'_{block}' if block else ''}", first if index == 0 else 1, rate
            if stride == 2 and stride_so_far == 16:
                stride, rate = 1, 2
            stride_so_far *= stride
            y = conv(f"{prefix}/expand", x).clamp(0, 6) if expansion != 1 else x
            y = conv(f"{prefix}/depthwise", y, stride, own_rate, y.shape[1]).clamp(0, 6)
            y = conv(f"{prefix}/project", y)
            x, block = (y + x if y.shape == x.shape and index else y), block + 1
    pooled = conv("image_pooling", x.mean((2, 3), keepdim=True)).relu().expand(-1, -1, *x.shape[2:])
    x = conv("concat_projection", torch.cat([pooled, conv("aspp0", x).relu()], 1)).relu()
    return conv("logits/semantic", x)


@pytest.fixture(scope="module")
def stored() -> tuple[list[Stored], list[tuple[str, list[int]]]]:
    return content()


@pytest.fixture(scope="module")
def file(stored: tuple[list[Stored], list[tuple[str, list[int]]]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tflite") / "net.tflite"
    path.write_bytes(write(*stored))
    return path


def test_scores_are_those_of_the_formula_in_float64(
    file: Path, stored: tuple[list[Stored], list[tuple[str, list[int]]]], tmp_path: Path
) -> None:
    imported = import_file(file, "tflite")
    assert (imported.architecture, imported.network.classes, imported.network.stride) == ("mobilenet-v2-image-pooling", CLASSES, 16)
    pixels = torch.randint(0, 256, (1, 3, 97, 129), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores = imported.network(imported.network.normalization.apply(pixels))
    expected = by_formula(stored[0], pixels.double() / 128 - 1)
    assert scores.shape == expected.shape == (1, CLASSES, 7, 9)
    assert float((scores - expected).abs().max() / expected.abs().max()) < 1e-4
    classes = [{"name": f"class {index}", "colour": [index, 0, 0]} for index in range(CLASSES)]
    card = {"name": "net", "architecture": {"name": imported.architecture, "options": imported.options}, "classes": classes}
    checkpoint.save(tmp_path / "net", imported.network, card)
    with torch.no_grad():
        again = checkpoint.load(tmp_path / "net").network(imported.network.normalization.apply(pixels))
    # A model folder holds half precision.
    assert float((again - scores).abs().max() / scores.abs().max()) < 3e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, o: ([*t, Stored("stray/weights", np.ones((2, 2), np.float32))], o), "tensor 'stray/weights' has no place"),
        (lambda t, o: (t, [*o, ("LSTM", [0, 1, 2])]), "operator LSTM with 3 inputs has no place"),
        (lambda t, o: ([replace(t[0], scale=1 / 255), *t[1:]], o), "scale 0.00392157 and zero point 128"),
        (lambda t, o: (t, o[1:]), "'MobilenetV2/Conv/Conv2D_Fold;MobilenetV2/Conv/weights_quant' has no place"),
        (lambda t, o: ([*t[:1], replace(t[1], name="resnet/conv1/weights"), *t[2:]], o), "'resnet/conv1/weights' has no place"),
        (lambda t, o: (t[:1], []), "no class scores"),
    ],
)
def test_another_network_is_refused_with_the_tensor_that_has_no_place(change, message, stored, tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(write(*change(*stored)))
    with pytest.raises(WeightsError, match=message.replace("(", r"\(")):
        import_file(tmp_path / "net.tflite", "tflite")


def test_what_is_no_tflite_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(WeightsError, match=r"no \.tflite file"):
        import_file(tmp_path / "net.tflite", "tflite")
    with pytest.raises(WeightsError, match="not readable"):
        import_file(tmp_path / "gone.tflite", "tflite")


def refusal(path: Path) -> str:
    """What the importer says against a file; nothing where it takes it."""
    try:
        import_file(path, "tflite")
    except WeightsError as error:
        return str(error)
    return ""


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), at=st.integers(8, 5000), value=st.integers(0, 255))
def test_a_damaged_file_is_refused_in_one_line_or_read(file: Path, tmp_path: Path, cut: float, at: int, value: int) -> None:
    data = bytearray(file.read_bytes())
    data = data[: int(len(data) * cut)] if value % 2 else data
    if at < len(data):
        data[at] = value
    (tmp_path / "net.tflite").write_bytes(bytes(data))
    assert "\n" not in refusal(tmp_path / "net.tflite")

"""Google's DeepLabv3 on MobileNetV2 as a .tflite file -> tensors under our keys.

Weights are 8-bit codes, `(code - zero point) * scale`, or plain floats; biases 32-bit codes; batch norm is folded into both. Every
stored tensor must have its place. The file is read by the `tflite` package (the extra of that name), which takes offsets and
lengths on trust, so whatever it trips over in a damaged file is a WeightsError; a shape must have as many values as are stored.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeplab.weights.strict_loading import Tensors, WeightsError

MAX_BYTES = 256 << 20
DAMAGED = (struct.error, IndexError, ValueError, TypeError, OverflowError, KeyError, AttributeError, UnicodeDecodeError)
PLACE = re.compile(r"(?:MobilenetV2/)?(Conv|expanded_conv(?:_\d+)?/\w+|aspp0|image_pooling|concat_projection|logits/semantic)/")
# Operators without weights, and the few that take a small constant (a size, an axis).
PLAIN = frozenset("ADD AVERAGE_POOL_2D MEAN CONCATENATION QUANTIZE DEQUANTIZE RESIZE_BILINEAR ARG_MAX RESHAPE SOFTMAX".split())
NUMBERS: dict[int, type[np.number[Any]]] = {0: np.float32, 2: np.int32, 3: np.uint8, 9: np.int8}  # TensorType of schema.fbs
BATCH_NORM_EPS = 1e-5
INPUT = (1 / 128, 128)  # scale and zero point: x / 128 - 1
STAGE = {"expand": "conv.0", "depthwise": "conv.{}", "project": "project"}


def read_tflite(path: str | Path) -> tuple[Tensors, int]:
    """Tensors of architecture `mobilenet-v2-image-pooling`, and the number of classes. Raises WeightsError."""
    try:
        import tflite
    except ImportError as error:
        raise WeightsError("family tflite needs the package tflite: pip install 'deeplab-pipelines[tflite]'") from error
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: not readable ({error.strerror})") from error
    if data[4:8] != b"TFL3" or len(data) > MAX_BYTES:
        raise WeightsError(f"{path}: no .tflite file of up to {MAX_BYTES >> 20} MB")
    try:
        return _tensors(tflite, tflite.Model.GetRootAsModel(data, 0))
    except DAMAGED as error:
        raise WeightsError(f"{path}: damaged, or of another kind ({type(error).__name__}: {error})") from error


def _tensors(tflite: Any, model: Any) -> tuple[Tensors, int]:
    if model.SubgraphsLength() != 1:
        raise WeightsError(f"{model.SubgraphsLength()} graphs; one is accepted")
    graph = model.Subgraphs(0)
    _check_input(graph)
    operators = {value: name for name, value in vars(tflite.BuiltinOperator).items() if isinstance(value, int)}
    tensors: Tensors = {}
    placed: set[int] = set()
    for name, inputs in _operators(graph, model, operators):
        if name in PLAIN:
            placed |= set(inputs[1:])
            continue
        if name not in ("CONV_2D", "DEPTHWISE_CONV_2D") or len(inputs) != 3:
            raise WeightsError(f"operator {name} with {len(inputs)} inputs has no place in DeepLabv3 on MobileNetV2")
        _, weight, bias = inputs
        label = graph.Tensors(weight).Name().decode()
        match = PLACE.match(label)
        if match is None:
            raise WeightsError(f"tensor {label!r} has no place in DeepLabv3 on MobileNetV2")
        order = (3, 0, 1, 2) if name == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2)
        values = _values(model, graph.Tensors(weight))
        if values.ndim != 4:
            raise WeightsError(f"tensor {label!r} has {values.ndim} dimensions, not 4")
        tensors |= _convolution(match[1], values.transpose(order), _values(model, graph.Tensors(bias)))
        placed |= {weight, bias}
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        if index not in placed and model.Buffers(tensor.Buffer()).DataLength():
            raise WeightsError(f"tensor {tensor.Name().decode()!r} has no place in DeepLabv3 on MobileNetV2")
    if "head.score.weight" not in tensors:
        raise WeightsError("no class scores (logits/semantic): not a DeepLabv3 on MobileNetV2")
    return tensors, len(tensors["head.score.weight"])


def _check_input(graph: Any) -> None:
    """The geometry of the one network that is read: pixels are x / 128 - 1."""
    tensor = graph.Tensors(int(graph.InputsAsNumpy()[0]))
    quantised = tensor.Quantization()
    if NUMBERS.get(tensor.Type()) is np.uint8 and quantised is not None:
        code = float(quantised.ScaleAsNumpy()[0]), int(quantised.ZeroPointAsNumpy()[0])
        if abs(code[0] - INPUT[0]) > 1e-6 or code[1] != INPUT[1]:
            raise WeightsError(f"input with scale {code[0]:g} and zero point {code[1]}; 1/128 and 128 are accepted")


def _operators(graph: Any, model: Any, names: dict[int, str]) -> Iterator[tuple[str, list[int]]]:
    """Each operator's name and the tensors that it takes, in the order of execution."""
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        yield names.get(number, f"number {number}"), [int(tensor) for tensor in operator.InputsAsNumpy()]


def _values(model: Any, tensor: Any) -> np.ndarray:
    """A stored tensor as float32, decoded by its scales (one, or one a channel) and zero points."""
    label = tensor.Name().decode()
    kind = NUMBERS.get(tensor.Type())
    if kind is None:
        raise WeightsError(f"tensor {label!r} is of type {tensor.Type()}; float32, int32, uint8 and int8 are accepted")
    shape = [int(side) for side in tensor.ShapeAsNumpy()]
    data = model.Buffers(tensor.Buffer()).DataAsNumpy()
    stored = len(data) // np.dtype(kind).itemsize if isinstance(data, np.ndarray) else 0
    if stored != np.prod(shape, dtype=np.int64) or min(shape, default=1) < 1:
        raise WeightsError(f"tensor {label!r} is {shape} and has {stored} values stored")
    codes = np.frombuffer(data.tobytes(), kind).reshape(shape)
    if kind is np.float32:
        return codes
    quantised = tensor.Quantization()
    scale, zero = np.asarray(quantised.ScaleAsNumpy(), np.float64), np.asarray(quantised.ZeroPointAsNumpy(), np.float64)
    if scale.size > 1:
        along = [-1 if axis == quantised.QuantizedDimension() else 1 for axis in range(len(shape))]
        scale, zero = scale.reshape(along), zero.reshape(along)
    return ((codes.astype(np.float64) - zero) * scale).astype(np.float32)


def _convolution(place: str, weight: np.ndarray, bias: np.ndarray) -> Tensors:
    """Convolution `place` of theirs under our keys; a folded batch norm becomes one that only adds the bias."""
    values = torch.from_numpy(np.ascontiguousarray(weight))
    shift = torch.from_numpy(np.ascontiguousarray(bias))
    if place == "logits/semantic":
        return {"head.score.weight": values, "head.score.bias": shift}
    conv, norm = _keys(place)
    plain = {"weight": torch.ones_like(shift), "bias": shift, "running_mean": torch.zeros_like(shift)}
    plain["running_var"] = torch.full_like(shift, 1.0 - BATCH_NORM_EPS)
    return {f"{conv}.weight": values, **{f"{norm}.{name}": value for name, value in plain.items()}}


def _keys(place: str) -> tuple[str, str]:
    """Our names of a convolution and of its batch norm."""
    if place == "image_pooling":
        return "head.pooling.1", "head.pooling.2"
    if place in ("aspp0", "concat_projection"):
        module = {"aspp0": "head.conv", "concat_projection": "head.project"}[place]
    elif place == "Conv":
        module = "backbone.features.0"
    else:
        block, layer = place.split("/")
        number = int(block.removeprefix("expanded_conv").lstrip("_") or 0)
        # The first block has no expansion, so its depthwise convolution comes first in it.
        module = f"backbone.features.{number + 1}.{STAGE[layer].format(min(number, 1))}"
    return f"{module}.0", f"{module}.1"

"""A small reader of .caffemodel files: as much of protobuf's wire format as layers and their blobs need.

No length or shape is trusted: every slice is checked against the file, blobs are views of the file until they are used,
and messages nest at most four deep, so a hostile file costs no more memory than its own size.
Field numbers are those of caffe.proto: NetParameter.layer = 100 and .layers = 2 (V1, before 2015).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deeplab.weights.strict_loading import WeightsError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_FIELDS = 100_000  # of one message; Caffe's largest nets have a few thousand layers
MAX_LAYERS, MAX_BLOBS = 10_000, 16  # an empty one costs two bytes of file and a hundred of memory
MAX_DIMENSIONS, MAX_SIDE = 32, 2**31 - 1  # Caffe's kMaxBlobAxes, and its int
NEW = {"layer": 100, "name": 1, "type": 2, "blobs": 7, "convolution": 106}
V1 = {"layer": 2, "name": 4, "type": 5, "blobs": 6, "convolution": 10}


@dataclass
class Layer:
    """A layer's name, type ("Convolution"; V1 files have a number), blobs in order, and its convolution's dilation."""

    name: str
    type: str
    blobs: list[np.ndarray] = field(default_factory=list)
    dilation: int = 1


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The value at `at` and where the next field starts."""
    value = 0
    for index in range(10):
        if at + index >= len(data):
            raise WeightsError(f"ends within a number at byte {at}")
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise WeightsError(f"no number at byte {at}")


def fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """(field number, wire type, value) of one message; WeightsError if it is truncated or not protobuf."""
    at, count = 0, 0
    while at < len(data):
        count += 1
        if count > MAX_FIELDS:
            raise WeightsError(f"a message of more than {MAX_FIELDS} fields")
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise WeightsError("field number 0")
        if kind == VARINT:
            value, at = _varint(data, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            length, at = _varint(data, at)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise WeightsError(f"wire type {kind}")
        if length > len(data) - at:
            raise WeightsError(f"field {number} has {length} bytes, {len(data) - at} are left")
        yield number, kind, data[at : at + length]
        at += length


def _numbers(kind: int, value: int | memoryview) -> Iterator[int]:
    """A repeated integer, packed or not."""
    if isinstance(value, int):
        yield value
        return
    if kind != BYTES:
        raise WeightsError("a dimension that is no integer")
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def _blob(data: memoryview) -> np.ndarray:
    """BlobProto -> float32, a view of the file."""
    legacy, shape, values = [0, 0, 0, 0], list[int](), np.empty(0, np.float32)
    for number, kind, value in fields(data):
        if number in (1, 2, 3, 4) and isinstance(value, int):
            legacy[number - 1] = value
        elif number == 7 and not isinstance(value, int):
            for inner, inner_kind, dimension in fields(value):
                if inner == 1:
                    for size in _numbers(inner_kind, dimension):
                        shape.append(size)
                        if len(shape) > MAX_DIMENSIONS:
                            raise WeightsError(f"a blob of more than {MAX_DIMENSIONS} dimensions")
        elif number in (5, 8):
            width = 4 if number == 5 else 8
            if kind != BYTES or isinstance(value, int) or len(value) % width or values.size:
                raise WeightsError("a blob whose numbers are not one packed run")
            values = np.frombuffer(value, "<f4" if number == 5 else "<f8")
    shape = shape or (legacy if any(legacy) else [values.size])
    count = 1
    for size in shape:  # in Python's integers, which do not wrap
        if size > MAX_SIDE:
            raise WeightsError(f"a blob with a side of {size}")
        count *= size
    if count != values.size:
        raise WeightsError(f"a blob of shape {tuple(shape[:8])} with {values.size} numbers")
    return values.reshape(shape).astype(np.float32, copy=False)


def _layer(data: memoryview, numbers: dict[str, int]) -> Layer:
    layer = Layer("", "")
    for number, kind, value in fields(data):
        if number == numbers["name"] and not isinstance(value, int):
            layer.name = bytes(value[:256]).decode("utf-8", "replace")
        elif number == numbers["type"]:
            layer.type = str(value) if isinstance(value, int) else bytes(value[:256]).decode("utf-8", "replace")
        elif number == numbers["blobs"] and not isinstance(value, int):
            layer.blobs.append(_blob(value))
            if len(layer.blobs) > MAX_BLOBS:
                raise WeightsError(f"layer {layer.name} has more than {MAX_BLOBS} blobs")
        elif number == numbers["convolution"] and not isinstance(value, int) and kind == BYTES:
            for inner, inner_kind, dilation in fields(value):
                if inner == 18:
                    layer.dilation = next(_numbers(inner_kind, dilation), 1)
    return layer


def parse(data: memoryview) -> list[Layer]:
    """All layers of a NetParameter, in order. Raises WeightsError if the data is not one."""
    layers = []
    for number, _, value in fields(data):
        if number in (NEW["layer"], V1["layer"]) and not isinstance(value, int):
            layers.append(_layer(value, NEW if number == NEW["layer"] else V1))
            if len(layers) > MAX_LAYERS:
                raise WeightsError(f"more than {MAX_LAYERS} layers")
    if not any(layer.blobs for layer in layers):
        raise WeightsError("no layers with weights")
    return layers


def read_caffemodel(path: str | Path) -> list[Layer]:
    """The layers of a .caffemodel; their blobs are views of the mapped file. Raises WeightsError, which names the file."""
    try:
        with Path(path).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    try:
        return parse(memoryview(mapped))
    except WeightsError as error:
        raise WeightsError(f"{path}: not a whole .caffemodel: {error}") from error

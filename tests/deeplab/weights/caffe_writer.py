"""Writes .caffemodel files, field by field from caffe.proto, in today's form and in that of 2014 (V1)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def blob(values: np.ndarray, legacy: bool = False) -> bytes:
    """BlobProto: shape (field 7) or num, channels, height, width (1 to 4); data (5), packed floats."""
    if legacy:
        sides = [1] * (4 - values.ndim) + list(values.shape)
        shape = b"".join(integer(i, side) for i, side in enumerate(sides, 1))
    else:
        shape = message(7, message(1, b"".join(varint(side) for side in values.shape)))
    return shape + message(5, values.astype("<f4").tobytes())


def layer(name: str, kind: str, blobs: Sequence[np.ndarray] = (), dilation: int = 0) -> bytes:
    """LayerParameter as NetParameter's field 100, with a bottom, a top and an lr_mult that a reader must step over."""
    data = message(1, name.encode()) + message(2, kind.encode()) + message(3, b"data") + message(4, name.encode())
    data += message(6, varint(3 << 3 | 5) + struct.pack("<f", 1.0))
    data += b"".join(message(7, blob(values)) for values in blobs)
    if dilation:
        data += message(106, integer(1, 64) + integer(18, dilation))
    return message(100, data)


def layer_v1(name: str, kind: int, blobs: Sequence[np.ndarray] = ()) -> bytes:
    """V1LayerParameter as NetParameter's field 2."""
    data = message(2, b"data") + message(3, name.encode()) + message(4, name.encode()) + integer(5, kind)
    return message(2, data + b"".join(message(6, blob(values, legacy=True)) for values in blobs))


def net(layers: Sequence[bytes]) -> bytes:
    return message(1, b"a net") + b"".join(layers)

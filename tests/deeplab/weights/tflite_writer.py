"""Writes .tflite files with flatbuffers' builder and the tables of schema.fbs: tensors, and operators that take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import flatbuffers
import numpy as np
import tflite

KINDS = {"float32": tflite.TensorType.FLOAT32, "int32": tflite.TensorType.INT32, "uint8": tflite.TensorType.UINT8}


@dataclass
class Stored:
    """A tensor: its name, values (None: computed at run time, of `shape`), scale and zero point of its code."""

    name: str
    values: np.ndarray | None = None
    shape: Sequence[int] = ()
    scale: float = 0.0
    zero: int = 0


def _vector(builder: flatbuffers.Builder, kind: str, values: Sequence[int]) -> int:
    return builder.CreateNumpyVector(np.array(values, kind))


def _tables(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _tensor(builder: flatbuffers.Builder, tensor: Stored, buffer: int) -> int:
    name = builder.CreateString(tensor.name)
    shape = _vector(builder, "<i4", tensor.shape if tensor.values is None else tensor.values.shape)
    code = 0
    if tensor.scale:
        scale, zero = _vector(builder, "<f4", [tensor.scale]), _vector(builder, "<i8", [tensor.zero])  # type: ignore[list-item]
        tflite.QuantizationParametersStart(builder)
        tflite.QuantizationParametersAddScale(builder, scale)
        tflite.QuantizationParametersAddZeroPoint(builder, zero)
        code = tflite.QuantizationParametersEnd(builder)
    tflite.TensorStart(builder)
    tflite.TensorAddName(builder, name)
    tflite.TensorAddShape(builder, shape)
    tflite.TensorAddType(builder, KINDS[str(tensor.values.dtype) if tensor.values is not None else "uint8"])
    tflite.TensorAddBuffer(builder, buffer)
    if code:
        tflite.TensorAddQuantization(builder, code)
    return int(tflite.TensorEnd(builder))


def write(tensors: Sequence[Stored], operators: Sequence[tuple[str, Sequence[int]]]) -> bytes:
    """A model of one graph. Tensor 0 is its input; operators name their kind and the tensors that they take."""
    builder = flatbuffers.Builder(1 << 20)
    tflite.BufferStart(builder)
    buffers, offsets = [tflite.BufferEnd(builder)], []
    for tensor in tensors:
        if tensor.values is not None:
            data = builder.CreateByteVector(tensor.values.tobytes())
            tflite.BufferStart(builder)
            tflite.BufferAddData(builder, data)
            buffers.append(tflite.BufferEnd(builder))
        offsets.append(_tensor(builder, tensor, len(buffers) - 1 if tensor.values is not None else 0))
    kinds = sorted({kind for kind, _ in operators})
    codes = []
    for kind in kinds:
        number = getattr(tflite.BuiltinOperator, kind)
        tflite.OperatorCodeStart(builder)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, number)
        tflite.OperatorCodeAddBuiltinCode(builder, number)
        codes.append(tflite.OperatorCodeEnd(builder))
    steps = []
    for kind, inputs in operators:
        inputs_at, outputs_at = _vector(builder, "<i4", inputs), _vector(builder, "<i4", [0])
        tflite.OperatorStart(builder)
        tflite.OperatorAddOpcodeIndex(builder, kinds.index(kind))
        tflite.OperatorAddInputs(builder, inputs_at)
        tflite.OperatorAddOutputs(builder, outputs_at)
        steps.append(tflite.OperatorEnd(builder))
    all_tensors, all_steps, entry = _tables(builder, offsets), _tables(builder, steps), _vector(builder, "<i4", [0])
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, all_tensors)
    tflite.SubGraphAddInputs(builder, entry)
    tflite.SubGraphAddOutputs(builder, entry)
    tflite.SubGraphAddOperators(builder, all_steps)
    graphs = _tables(builder, [tflite.SubGraphEnd(builder)])
    all_codes, all_buffers = _tables(builder, codes), _tables(builder, buffers)
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddOperatorCodes(builder, all_codes)
    tflite.ModelAddSubgraphs(builder, graphs)
    tflite.ModelAddBuffers(builder, all_buffers)
    builder.Finish(tflite.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())

"""An ONNX graph of one matrix product, written without the package onnx, which a device does not have.

An ONNX file is a message of protocol buffers: fields with a number, each a varint or a block with its length
(protobuf.dev/programming-guides/encoding). The numbers below are those of onnx.proto.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FLOAT = 1  # TensorProto.DataType
_IR_VERSION, _OPSET = 10, 20


def product_graph(rows: int, weights: NDArray[np.float32]) -> bytes:
    """Return a model that multiplies its input `x` with constant weights, as ONNX Runtime loads it.

    Args:
        rows: The rows of `x`, float32 [rows, inner].
        weights: The constant factor, float32 [inner, outer]. The output `y` is float32 [rows, outer].
    """
    inner, outer = weights.shape
    node = _text(1, "x") + _text(1, "w") + _text(2, "y") + _text(4, "MatMul")
    constant = b"".join(_number(1, size) for size in weights.shape)
    constant += _number(2, _FLOAT) + _text(8, "w") + _block(9, weights.astype("<f4").tobytes())
    graph = _block(1, node) + _text(2, "product") + _block(5, constant)
    graph += _block(11, _tensor("x", rows, inner)) + _block(12, _tensor("y", rows, outer))
    return _number(1, _IR_VERSION) + _block(7, graph) + _block(8, _text(1, "") + _number(2, _OPSET))


def _tensor(name: str, *shape: int) -> bytes:
    """A ValueInfoProto: the name, element type and shape of an input or output."""
    dimensions = b"".join(_block(1, _number(1, size)) for size in shape)
    return _text(1, name) + _block(2, _block(1, _number(1, _FLOAT) + _block(2, dimensions)))


def _text(field: int, text: str) -> bytes:
    return _block(field, text.encode())


def _block(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    """A whole number in groups of seven bits, the lowest first; all but the last have the highest bit set."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])

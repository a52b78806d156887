"""Weight-only quantization: weights in blocks of 8 or 4 bits, activations in float32.

It serves devices that are limited by memory bandwidth: every call reads all weights once, and the head's layers do
little else. It needs no statistics: each block has its own scale, from its largest weight.
"""

from __future__ import annotations

import pathlib
from collections.abc import Collection

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibration.quantization.graph_surgery import add_constant, replace_linear, save_graph
from calibration.quantization.quantizable_layers import LinearNode, quantizable_layers

BITS = {"w8": 8, "w4": 4}
"""The number of bits of a weight, by precision."""

_STORED = {"w8": np.dtype(np.int8), "w4": np.dtype(ml_dtypes.int4)}
_OPSET = 21  # the first whose DequantizeLinear has blocks and 4-bit types
_BLOCK_SIZES = (128, 64, 32, 16)  # TensorRT has fast kernels for the first two


def quantize_weights(graph: pathlib.Path, out: pathlib.Path, precision: str, layers: Collection[str]) -> None:
    """Write a copy of `graph` with the weights of some layers in low precision.

    Args:
        graph: An ONNX file in float32.
        out: The new file.
        precision: "w8" or "w4".
        layers: The names of the layers. A layer whose width has no block size stays as it is.
    """
    model = ir.load(graph)
    for layer in [layer for layer in quantizable_layers(model.graph) if layer.name in layers]:
        activation = layer.activation
        for linear in layer.linears:
            _quantize_linear(model.graph, linear, activation, precision)
    model.graph.opset_imports[""] = _OPSET
    save_graph(model, out)


def block_size(channels: int) -> int | None:
    """Return how many of the C = `channels` rows of weights [C, M] share a scale; None if no block size divides C."""
    return next((size for size in _BLOCK_SIZES if channels % size == 0), None)


def quantize_blocks(
    weights: NDArray[np.float32], precision: str, size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Quantize weights [C, M] symmetrically, in blocks of `size` rows.

    Returns:
        Integers as float32 [C, M], and scales [C / size, M]. Their product is close to the weights.
    """
    largest = 2 ** (BITS[precision] - 1) - 1
    blocks = weights.reshape(-1, size, weights.shape[1])  # [C / size, size, M]
    scales = np.maximum(np.abs(blocks).max(axis=1), 1e-12).astype(np.float32) / np.float32(largest)
    steps = np.clip(np.rint(blocks / scales[:, None]), -largest, largest)
    return steps.reshape(weights.shape), scales


def _quantize_linear(graph: ir.Graph, linear: LinearNode, activation: ir.Value, precision: str) -> None:
    weights = linear.weights
    size = block_size(len(weights))
    if size is None:
        return
    steps, scales = quantize_blocks(weights, precision, size)
    stored = add_constant(graph, f"{linear.name}.weight_quantized", steps.astype(_STORED[precision]))
    scale = add_constant(graph, f"{linear.name}.weight_scale", scales)
    attributes = {"axis": 0, "block_size": size}
    dequantize = ir.node("DequantizeLinear", [stored, scale], attributes, name=f"{linear.name}.dequantize_weight")
    graph.insert_before(linear.node, [dequantize])
    replace_linear(graph, linear, activation, dequantize.outputs[0])

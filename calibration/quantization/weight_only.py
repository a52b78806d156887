"""Weights in blocks of 8 or 4 bits, activations in floating point: for devices whose memory is what limits them.

A product reads its weights from memory once a call, and the head's products do little else. No statistics
are needed: every block has its own scale, and its largest weight decides it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Collection

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibration.quantization.graph_surgery import constant, replace_product, save_graph
from calibration.quantization.quantizable_layers import Product, layers

BITS = {"w8": 8, "w4": 4}  # by precision
_STORED = {"w8": np.dtype(np.int8), "w4": np.dtype(ml_dtypes.int4)}
_OPSET = 21  # the first whose DequantizeLinear knows blocks, and 4 bits
_BLOCKS = (128, 64, 32, 16)  # TensorRT has its fast products for the first two


def quantize_weights(graph: pathlib.Path, out: pathlib.Path, precision: str, chosen: Collection[str]) -> None:
    """Write `graph` to `out` with the weights of the layers in `chosen` in blocks of low precision."""
    model = ir.load(graph)
    for layer in [layer for layer in layers(model.graph) if layer.name in chosen]:
        activation = layer.activation
        for product in layer.products:
            _quantize(model.graph, product, activation, precision)
    model.graph.opset_imports[""] = _OPSET
    save_graph(model, graph, out)


def block_size(channels: int) -> int | None:
    """The rows of weights [C, M] that share a scale, or None where C has no such divisor."""
    return next((size for size in _BLOCKS if channels % size == 0), None)


def quantized_blocks(
    weights: NDArray[np.float32], precision: str, size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Whole numbers [C, M] and scales [C / size, M] whose product is nearly weights [C, M]; symmetric."""
    largest = 2 ** (BITS[precision] - 1) - 1
    blocks = weights.reshape(-1, size, weights.shape[1])  # [C / size, size, M]
    scales = np.maximum(np.abs(blocks).max(axis=1), 1e-12).astype(np.float32) / np.float32(largest)
    low = np.clip(np.rint(blocks / scales[:, None]), -largest, largest)
    return low.reshape(weights.shape), scales


def _quantize(graph: ir.Graph, product: Product, activation: ir.Value, precision: str) -> None:
    weights = product.weights
    size = block_size(len(weights))
    if size is None:
        return
    low, scales = quantized_blocks(weights, precision, size)
    stored = constant(graph, f"{product.name}.weight_quantized", low.astype(_STORED[precision]))
    scale = constant(graph, f"{product.name}.weight_scale", scales)
    attributes = {"axis": 0, "block_size": size}
    dq = ir.node("DequantizeLinear", [stored, scale], attributes, name=f"{product.name}.dequantize_weight")
    graph.insert_before(product.node, [dq])
    replace_product(graph, product, activation, dq.outputs[0])

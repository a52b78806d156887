"""Q/DQ pairs around the products of a graph: the one form that TensorRT 10 and 11 and ONNX Runtime all know.

A `Gemm` becomes a product and an addition. ONNX Runtime computes a product of int8 with a float bias only in
that form, and TensorRT knows no bias in int32. Products that share an activation share its scale.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from calibration.quantization.graph_surgery import constant, replace_product, save_graph
from calibration.quantization.quantizable_layers import Layer, Product, layers
from calibration.quantization.scales import Scale, quantized, weight_scales
from calibration.quantization.smoothing import divide_norm, divide_projection

_TYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}


def quantize_graph(
    graph: pathlib.Path,
    out: pathlib.Path,
    precision: str,
    scales: Mapping[str, Scale],
    projection: np.ndarray | None = None,
) -> None:
    """Write `graph` to `out` with the layers in `scales` in `precision`.

    `scales` are those of activations, by layer; weights have their own, one a column in int8, one in fp8.
    What smoothing divides by goes into the normalisation before; where that is another engine's modulation,
    `projection` [M] is what the columns of this one's last product are divided by.
    """
    model = ir.load(graph)
    if projection is not None:
        divide_projection(model.graph, projection)
    for layer in layers(model.graph):
        if layer.name in scales:
            _quantize(model.graph, layer, precision, scales[layer.name])
    save_graph(model, graph, out)


def _quantize(graph: ir.Graph, layer: Layer, precision: str, scale: Scale) -> None:
    factors, activation = scale.smoothing, layer.activation
    if factors is not None:
        divide_norm(graph, layer, factors)
    for product in layer.products:
        # Each has a pair of its own: ONNX Runtime has no product of int8 for an activation that another shares.
        pair, rounded = _rounded(graph, product, activation, scale.scale, precision)
        weights = product.weights if factors is None else product.weights * factors[:, None]
        replaced = _dequantized(graph, product.name, weights, precision)
        graph.insert_before(product.node, [*pair, replaced])
        replace_product(graph, product, rounded, replaced.outputs[0])


def _rounded(
    graph: ir.Graph, product: Product, activation: ir.Value, scale: float, precision: str
) -> tuple[list[ir.Node], ir.Value]:
    """A pair of nodes that round `activation`, and what comes out of it."""
    inputs = [
        constant(graph, f"{product.name}.activation_scale", np.array(scale, np.float32)),
        constant(graph, f"{product.name}.activation_zero", np.zeros((), _TYPES[precision].numpy())),
    ]
    q = ir.node("QuantizeLinear", [activation, *inputs], name=f"{product.name}.quantize")
    dq = ir.node("DequantizeLinear", [q.outputs[0], *inputs], name=f"{product.name}.dequantize")
    return [q, dq], dq.outputs[0]


def _dequantized(graph: ir.Graph, name: str, weights: np.ndarray, precision: str) -> ir.Node:
    """A node that gives weights [C, M] from what they are stored as."""
    dtype, per_column = _TYPES[precision], precision == "int8"
    steps = weight_scales(weights, precision)
    kept = steps if per_column else steps[:1].reshape(())
    low = quantized(weights, steps, precision) / steps
    stored = np.rint(low).astype(np.int8) if per_column else low.astype(dtype.numpy())
    inputs = [
        constant(graph, f"{name}.weight_quantized", stored),
        constant(graph, f"{name}.weight_scale", kept),
        constant(graph, f"{name}.weight_zero", np.zeros(kept.shape, dtype.numpy())),
    ]
    return ir.node("DequantizeLinear", inputs, {"axis": 1} if per_column else {}, name=f"{name}.dequantize_weight")

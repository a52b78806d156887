"""Adds pairs of QuantizeLinear and DequantizeLinear (Q/DQ) around the layers of a graph.

TensorRT 10 and 11 and ONNX Runtime all read this form. A `Gemm` becomes a `MatMul` and an `Add`: ONNX Runtime
computes an int8 product with a float bias only so, and TensorRT supports no int32 bias. Nodes that share an
activation share its scale.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from calibration.quantization.graph_surgery import add_constant, replace_linear, save_graph
from calibration.quantization.quantizable_layers import LinearNode, QuantizableLayer, quantizable_layers
from calibration.quantization.scales import Scale, fake_quantize, weight_scales
from calibration.quantization.smoothing import divide_normalization, divide_projection

_TYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}


def quantize_graph(
    graph: pathlib.Path,
    out: pathlib.Path,
    precision: str,
    scales: Mapping[str, Scale],
    modulation_divisors: np.ndarray | None = None,
) -> None:
    """Write a copy of `graph` in which some layers compute in low precision.

    Args:
        graph: An ONNX file in float32.
        out: The new file.
        precision: "int8", with one weight scale for each output channel, or "fp8", with one for all.
        scales: The scale of the activation of each layer to quantize, by the layer's name.
        modulation_divisors: What the modulation that this graph computes is divided by, [M], because smoothed layers
            of another engine multiply by it again. None for other graphs.
    """
    model = ir.load(graph)
    if modulation_divisors is not None:
        divide_projection(model.graph, modulation_divisors)
    for layer in quantizable_layers(model.graph):
        if layer.name in scales:
            _quantize_layer(model.graph, layer, precision, scales[layer.name])
    save_graph(model, out)


def _quantize_layer(graph: ir.Graph, layer: QuantizableLayer, precision: str, scale: Scale) -> None:
    factors, activation = scale.smoothing, layer.activation
    if factors is not None:
        divide_normalization(graph, layer, factors)
    for linear in layer.linears:
        # Each node gets its own pair: ONNX Runtime fuses no int8 product whose quantized activation has other readers.
        pair, quantized = _quantize_activation(graph, linear, activation, scale.scale, precision)
        weights = linear.weights if factors is None else linear.weights * factors[:, None]
        dequantize = _dequantize_weights(graph, linear.name, weights, precision)
        graph.insert_before(linear.node, [*pair, dequantize])
        replace_linear(graph, linear, quantized, dequantize.outputs[0])


def _quantize_activation(
    graph: ir.Graph, linear: LinearNode, activation: ir.Value, scale: float, precision: str
) -> tuple[list[ir.Node], ir.Value]:
    """Return a Q/DQ pair that reads `activation`, and its output."""
    inputs = [
        add_constant(graph, f"{linear.name}.activation_scale", np.array(scale, np.float32)),
        add_constant(graph, f"{linear.name}.activation_zero", np.zeros((), _TYPES[precision].numpy())),
    ]
    quantize = ir.node("QuantizeLinear", [activation, *inputs], name=f"{linear.name}.quantize")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *inputs], name=f"{linear.name}.dequantize")
    return [quantize, dequantize], dequantize.outputs[0]


def _dequantize_weights(graph: ir.Graph, name: str, weights: np.ndarray, precision: str) -> ir.Node:
    """Store weights [C, M] in low precision; return the node that dequantizes them."""
    dtype, per_channel = _TYPES[precision], precision == "int8"
    scales = weight_scales(weights, precision)
    stored_scale = scales if per_channel else scales[:1].reshape(())
    steps = fake_quantize(weights, scales, precision) / scales
    stored = np.rint(steps).astype(np.int8) if per_channel else steps.astype(dtype.numpy())
    inputs = [
        add_constant(graph, f"{name}.weight_quantized", stored),
        add_constant(graph, f"{name}.weight_scale", stored_scale),
        add_constant(graph, f"{name}.weight_zero", np.zeros(stored_scale.shape, dtype.numpy())),
    ]
    return ir.node("DequantizeLinear", inputs, {"axis": 1} if per_channel else {}, name=f"{name}.dequantize_weight")

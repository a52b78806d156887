"""Q/DQ pairs around the products of a graph: the one form that TensorRT 10 and 11 and ONNX Runtime all know.

A `Gemm` becomes a product and an addition. ONNX Runtime computes a product of int8 with a float bias only in
that form, and TensorRT knows no bias in int32.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from calibration.products import Product, products
from calibration.scales import quantized, weight_scales

_TYPES = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}


def quantize_graph(graph: pathlib.Path, out: pathlib.Path, precision: str, scales: Mapping[str, float]) -> None:
    """Write `graph` to `out` with the products of the layers in `scales` in `precision`.

    `scales` are those of activations, by layer; weights have their own, one a column in int8, one in fp8.
    """
    model = ir.load(graph)
    for product in products(model.graph):
        if product.name in scales:
            _quantize(model.graph, product, precision, scales[product.name])
    _drop_unused(model.graph)
    large = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, out, external_data=f"{out.name}.data" if large > 16 * 2**20 else None)


def _quantize(graph: ir.Graph, product: Product, precision: str, scale: float) -> None:
    node, name, dtype = product.node, product.name, _TYPES[precision]
    weights = np.ascontiguousarray(product.weights)
    steps = weight_scales(weights, precision)
    per_column = precision == "int8"
    kept = steps if per_column else steps[:1].reshape(())
    low = quantized(weights, steps, precision) / steps
    stored = np.rint(low).astype(np.int8) if per_column else low.astype(ir.DataType.FLOAT8E4M3FN.numpy())

    def constant(what: str, array: np.ndarray) -> ir.Value:
        value = ir.Value(
            name=f"{name}.{what}",
            const_value=ir.tensor(array, name=f"{name}.{what}"),
            type=ir.TensorType(ir.tensor(array).dtype),
            shape=ir.Shape(array.shape),
        )
        graph.initializers[str(value.name)] = value
        return value

    zero = np.zeros((), dtype.numpy())
    step = constant("activation_scale", np.array(scale, np.float32))
    point = constant("activation_zero", zero)
    q = ir.node("QuantizeLinear", [product.activation, step, point], name=f"{name}.quantize")
    dq = ir.node("DequantizeLinear", [q.outputs[0], step, point], name=f"{name}.dequantize")
    weight = constant("weight_quantized", stored)
    weight_point = constant("weight_zero", np.zeros(kept.shape, dtype.numpy()))
    weight_inputs = [weight, constant("weight_scale", kept), weight_point]
    axis = {"axis": 1} if per_column else {}
    weight_dq = ir.node("DequantizeLinear", weight_inputs, axis, name=f"{name}.dequantize_weight")
    product_node = ir.node("MatMul", [dq.outputs[0], weight_dq.outputs[0]], name=f"{name}.MatMul")
    made = [q, dq, weight_dq, product_node]
    if product.bias is not None:
        made.append(ir.node("Add", [product_node.outputs[0], product.bias], name=f"{name}.Add"))
    result, old = made[-1].outputs[0], node.outputs[0]
    result.type, result.shape, result.name = old.type, old.shape, old.name
    old.name = f"{name}.replaced"
    graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _drop_unused(graph: ir.Graph) -> None:
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]

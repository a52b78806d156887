"""Small changes to graphs that the quantized forms share."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx_ir as ir

from calibration.quantization.quantizable_layers import Product


def save_graph(model: ir.Model, source: pathlib.Path, out: pathlib.Path) -> None:
    """Write `model`, read from `source` and changed, without the weights that nothing uses any more."""
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]
    beside = source.with_name(f"{source.name}.data").exists()  # what is left as it was is still read from there
    ir.save(model, out, external_data=f"{out.name}.data" if beside else None)


def constant(graph: ir.Graph, name: str, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """A new initializer of `graph`."""
    tensor = ir.tensor(array, name=name)
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=shape)
    graph.initializers[name] = value
    return value


def replace_product(graph: ir.Graph, product: Product, activation: ir.Value, weights: ir.Value) -> list[ir.Node]:
    """Compute `product` by a `MatMul` of other factors, its bias added after it; the nodes before which more may go."""
    node, name = product.node, product.name
    made = [ir.node("MatMul", [activation, weights], name=f"{name}.MatMul")]
    if product.bias is not None:
        made.append(ir.node("Add", [made[-1].outputs[0], product.bias], name=f"{name}.Add"))
    result, old = made[-1].outputs[0], node.outputs[0]
    result.type, result.shape, result.name = old.type, old.shape, old.name
    old.name = f"{name}.replaced"
    graph.insert_before(node, made)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return made

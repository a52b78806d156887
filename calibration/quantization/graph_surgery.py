"""Changes to an ONNX graph that all quantized variants share."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx_ir as ir

from calibration.quantization.quantizable_layers import LinearNode


def save_graph(model: ir.Model, out: pathlib.Path) -> None:
    """Write a changed model to `out`, without the initializers that no node uses any more.

    Args:
        model: The changed model. Unchanged weights are still read from the external data that it was loaded from.
        out: The new file. It gets external data, in `out`.data, if the model was loaded from some.
    """
    external = any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values())
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]
    ir.save(model, out, external_data=f"{out.name}.data" if external else None)


def add_constant(graph: ir.Graph, name: str, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """Add an initializer to `graph` and return it."""
    tensor = ir.tensor(array, name=name)
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=shape)
    graph.initializers[name] = value
    return value


def replace_linear(graph: ir.Graph, linear: LinearNode, activation: ir.Value, weights: ir.Value) -> None:
    """Replace a linear node by a `MatMul` of `activation` and `weights` [C, M], and an `Add` if it had a bias."""
    node, name = linear.node, linear.name
    nodes = [ir.node("MatMul", [activation, weights], name=f"{name}.MatMul")]
    if linear.bias is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], linear.bias], name=f"{name}.Add"))
    result, old = nodes[-1].outputs[0], node.outputs[0]
    result.type, result.shape, result.name = old.type, old.shape, old.name
    old.name = f"{name}.replaced"
    graph.insert_before(node, nodes)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)

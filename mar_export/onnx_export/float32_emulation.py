"""Emulation of a low-precision graph: a graph in float32 that rounds its values as the other graph does.

On a CPU, ONNX Runtime has no bfloat16 products, and it runs chains of fp16 operators in float32 without rounding in
between, so its results would be more exact than those of a device. Devices sum products of low-precision numbers in
float32 and round the sum, which is what the emulation computes.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

import onnx_ir as ir
import torch
from onnx_ir.passes.common.shape_inference import infer_shapes

_TYPES = {torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}


def save_emulation(path: pathlib.Path, out: pathlib.Path, precision: torch.dtype) -> None:
    """Write the emulation of a graph in float32.

    Weights keep their low precision, and become float32 where they are used: where the runtime folds no constants, only
    one of them is in float32 at a time.

    Args:
        path: The ONNX file to emulate.
        out: The ONNX file to write; its weights go to `<out>.data`.
        precision: The low precision in the graph: `torch.float16` or `torch.bfloat16`.
    """
    dtype = _TYPES[precision]
    model = infer_shapes(ir.load(path))  # and dtypes
    graph = model.graph
    for value in list(graph.initializers.values()):
        if value.dtype == dtype:
            _widen(graph, value)
    for node in list(graph):
        for output in node.outputs:
            if output.dtype == dtype:
                _round(graph, node, output, dtype)
    ir.save(model, out, external_data=f"{out.name}.data")


def _widen(graph: ir.Graph, weight: ir.Value) -> None:
    """Give all users of a weight its values in float32."""
    users = list(weight.uses())
    up = _to_float32(weight)
    # ONNX Runtime visits the inputs of a node from the last to the first place in the graph. So the cast that stands in
    # front of everything is computed after the other factor of a product, and its result lives for that product only.
    graph.insert_before(graph[0], up)
    _replace(users, up)


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value, dtype: ir.DataType) -> None:
    """Replace an output of a node, for all its users, with its value rounded to `dtype` and stored in float32."""
    is_cast = node.op_type == "Cast"
    users = list(output.uses())
    if not is_cast:
        output.dtype = ir.DataType.FLOAT
        down = ir.node("Cast", [output], {"to": dtype.value})
        graph.insert_after(node, down)
        node, output = down, down.outputs[0]
    output.dtype = dtype
    up = _to_float32(output)
    graph.insert_after(node, up)
    _replace(users, up)


def _to_float32(value: ir.Value) -> ir.Node:
    up = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value})
    up.outputs[0].dtype = ir.DataType.FLOAT
    return up


def _replace(users: Iterable[tuple[ir.Node, int]], node: ir.Node) -> None:
    """Let users of another value use the output of a node."""
    for user, index in users:
        user.replace_input_with(index, node.outputs[0])

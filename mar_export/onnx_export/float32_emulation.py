"""Emulation of a low-precision graph: a graph in float32 that rounds its values as the other graph does.

On a CPU, ONNX Runtime has no bfloat16 products, and it runs chains of fp16 operators in float32 without rounding in
between, so its results would be more exact than those of a device. Devices sum products of low-precision numbers in
float32 and round the sum, which is what the emulation computes.
"""

from __future__ import annotations

import pathlib

import onnx_ir as ir
import torch
from onnx_ir.passes.common.shape_inference import infer_shapes

_TYPES = {torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}


def save_emulation(path: pathlib.Path, out: pathlib.Path, precision: torch.dtype) -> None:
    """Write the emulation of a graph in float32.

    Only one weight is in memory at a time.

    Args:
        path: The ONNX file to emulate.
        out: The ONNX file to write; its weights go to `<out>.data`.
        precision: The low precision in the graph: `torch.float16` or `torch.bfloat16`.
    """
    dtype = _TYPES[precision]
    model = infer_shapes(ir.load(path))  # and dtypes
    graph = model.graph
    for value in list(graph.initializers.values()):
        if value.dtype == dtype and value.const_value is not None:
            value.const_value = _in_float32(value.const_value)
            value.dtype = ir.DataType.FLOAT
    for node in list(graph):
        for output in node.outputs:
            if output.dtype == dtype:
                _round(graph, node, output, dtype)
    ir.save(model, out, external_data=f"{out.name}.data")


def _in_float32(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    def convert() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype("float32"), name=tensor.name)

    return ir.LazyTensor(convert, dtype=ir.DataType.FLOAT, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)


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
    up = ir.node("Cast", [output], {"to": ir.DataType.FLOAT.value})
    up.outputs[0].dtype = ir.DataType.FLOAT
    graph.insert_after(node, up)
    for user, index in users:
        user.replace_input_with(index, up.outputs[0])

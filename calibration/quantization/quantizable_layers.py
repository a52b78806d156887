"""The layers of an ONNX graph that can be quantized: products of an activation and constant weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class LinearNode:
    """A `MatMul` or `Gemm` node that multiplies an activation [..., C] by constant weights [C, M].

    Attributes:
        name: The layer's name in the model, such as "model.encoder_blocks.0.attn.q", from the exporter's node name.
        node: The node of the graph.
    """

    name: str
    node: ir.Node

    @property
    def bias(self) -> ir.Value | None:
        """The bias [M] of a `Gemm`. None for a `MatMul`, whose bias is added by another node."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    @property
    def weights(self) -> NDArray[np.float32]:
        """The weights, [C, M]. Those of a `Gemm`, which stores [M, C], are transposed."""
        value = self.node.inputs[1]
        assert value is not None
        assert value.const_value is not None
        array: NDArray[np.float32] = value.const_value.numpy()
        return np.ascontiguousarray(array.T) if self.node.op_type == "Gemm" else array


@dataclasses.dataclass(frozen=True)
class QuantizableLayer:
    """Linear nodes that share one activation [..., C], and so its scale: the projections to q, k and v, for example.

    Attributes:
        linears: The nodes, in the order of execution; usually one.
    """

    linears: tuple[LinearNode, ...]

    @property
    def name(self) -> str:
        """The name of the first node with the last parts of the others: "model.encoder_blocks.0.attn.q+k+v"."""
        first, *others = (linear.name for linear in self.linears)
        return "+".join([first, *(name.rpartition(".")[2] for name in others)])

    @property
    def activation(self) -> ir.Value:
        """The activation [..., C] that all nodes multiply."""
        value = self.linears[0].node.inputs[0]
        assert value is not None
        return value

    @property
    def weights(self) -> NDArray[np.float32]:
        """The weights of all nodes, side by side: [C, the sum of their M]."""
        return np.concatenate([linear.weights for linear in self.linears], axis=1)


def quantizable_layers(graph: ir.Graph) -> list[QuantizableLayer]:
    """Return every layer of `graph` with constant weights, in the order of execution."""
    by_activation: dict[ir.Value, list[LinearNode]] = {}
    for node in graph:
        activation = node.inputs[0] if node.inputs else None
        if activation is not None and _has_constant_weights(node):
            by_activation.setdefault(activation, []).append(LinearNode(_layer_name(node), node))
    return [QuantizableLayer(tuple(linears)) for linears in by_activation.values()]


def _layer_name(node: ir.Node) -> str:
    return (node.name or "").removesuffix(f".{node.op_type}").replace(f".{node.op_type}_", "_")


def _has_constant_weights(node: ir.Node) -> bool:
    if node.op_type not in ("MatMul", "Gemm"):
        return False
    weights = node.inputs[1]
    if weights is None or not weights.is_initializer() or weights.shape is None or len(weights.shape) != 2:
        return False
    if node.op_type == "MatMul":
        return True
    linear_layer = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    return all(node.attributes[name].value == value for name, value in linear_layer.items() if name in node.attributes)

"""The matrix products of a graph that quantization is about: those of an activation with weights."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class Product:
    """An activation [..., C] times weights [C, M]; `name` is that of its layer, as the exporter named the node."""

    name: str
    node: ir.Node

    @property
    def bias(self) -> ir.Value | None:
        """What the node itself adds, [M]; a `MatMul` leaves that to others."""
        return self.node.inputs[2] if len(self.node.inputs) > 2 else None

    @property
    def weights(self) -> NDArray[np.float32]:
        """[C, M], whichever way the node holds them."""
        value = self.node.inputs[1]
        assert value is not None
        assert value.const_value is not None
        array: NDArray[np.float32] = value.const_value.numpy()
        return np.ascontiguousarray(array.T) if self.node.op_type == "Gemm" else array


@dataclasses.dataclass(frozen=True)
class Layer:
    """Products that share their activation [..., C], so its scale too: queries, keys and values."""

    products: tuple[Product, ...]

    @property
    def name(self) -> str:
        """Such as "model.encoder_blocks.0.attn.q+k+v"."""
        first, *others = (product.name for product in self.products)
        return "+".join([first, *(name.rpartition(".")[2] for name in others)])

    @property
    def activation(self) -> ir.Value:
        value = self.products[0].node.inputs[0]
        assert value is not None
        return value

    @property
    def weights(self) -> NDArray[np.float32]:
        """[C, M], those of all its products side by side."""
        return np.concatenate([product.weights for product in self.products], axis=1)


def layers(graph: ir.Graph) -> list[Layer]:
    """Every layer with weights, in the order of execution."""
    by_activation: dict[ir.Value, list[Product]] = {}
    for node in graph:
        activation = node.inputs[0] if node.inputs else None
        if activation is not None and _has_weights(node):
            by_activation.setdefault(activation, []).append(Product(_name(node), node))
    return [Layer(tuple(products)) for products in by_activation.values()]


def _name(node: ir.Node) -> str:
    return (node.name or "").removesuffix(f".{node.op_type}").replace(f".{node.op_type}_", "_")


def _has_weights(node: ir.Node) -> bool:
    if node.op_type not in ("MatMul", "Gemm"):
        return False
    weights = node.inputs[1]
    if weights is None or not weights.is_initializer() or weights.shape is None or len(weights.shape) != 2:
        return False
    if node.op_type == "MatMul":
        return True
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    return all(node.attributes[name].value == value for name, value in plain.items() if name in node.attributes)

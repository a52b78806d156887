"""Where an activation is divided channel by channel at no cost: in the normalisation or modulation before it."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibration.quantization.graph_surgery import constant
from calibration.quantization.quantizable_layers import Layer, layers
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import DENOISE

_MODULATED = re.compile(r"res_blocks\.(\d+)\.mlp\.0")
_PROJECTION = "projection"


def smooths(engine: str, layer: Layer) -> bool:
    """Whether something before `layer` can divide its activation, and divides nothing else by that."""
    return _norm(layer) is not None or modulated_block(engine, layer.name) is not None


def modulated_block(engine: str, layer: str) -> int | None:
    """The block of the head whose modulation makes the activation of `layer`, if one does."""
    found = _MODULATED.fullmatch(layer) if engine == DENOISE else None
    return int(found[1]) if found else None


def divide_modulation(
    columns: NDArray[np.float32], config: ModelConfig, block: int, factors: NDArray[np.float32]
) -> None:
    """Divide shift and scale of `block` in `columns` [M] of the modulation by `factors` [W], in place."""
    width = config.diffloss_w
    start = 3 * width * block  # shift, scale, and gate, which comes after the product
    columns[start : start + 2 * width] *= np.tile(factors, 2)


def divide_norm(graph: ir.Graph, layer: Layer, factors: NDArray[np.float32]) -> None:
    """Give the normalisation before `layer` a gain and bias divided by `factors` [C], if there is one."""
    norm = _norm(layer)
    if norm is None:
        return  # the modulation's own engine divides it
    for number, what in ((1, "gain"), (2, "bias")):
        value = norm.inputs[number]
        assert value is not None
        assert value.const_value is not None
        divided = (value.const_value.numpy() / factors).astype(np.float32)
        norm.replace_input_with(number, constant(graph, f"{layer.name}.smoothed_{what}", divided))


def divide_projection(graph: ir.Graph, columns: NDArray[np.float32]) -> None:
    """Divide the columns of the product that makes the modulation by `columns` [M], and its bias."""
    (layer,) = (layer for layer in layers(graph) if layer.name == _PROJECTION)
    (product,) = layer.products
    bias = product.bias
    assert bias is not None
    assert bias.const_value is not None
    transposed = product.node.op_type == "Gemm"
    weights = product.weights / columns
    for number, array in ((1, weights.T if transposed else weights), (2, bias.const_value.numpy() / columns)):
        divided = np.ascontiguousarray(array, np.float32)
        product.node.replace_input_with(number, constant(graph, f"{_PROJECTION}.smoothed_{number}", divided))


def _norm(layer: Layer) -> ir.Node | None:
    """The normalisation that `layer` reads, where nobody else does."""
    node, readers = layer.activation.producer(), {product.node for product in layer.products}
    if node is None or node.op_type != "LayerNormalization" or len(node.inputs) < 3:
        return None
    return node if {use.node for use in layer.activation.uses()} == readers else None

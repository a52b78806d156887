"""Where a graph can divide an activation channel by channel without a new node.

The normalisation or the modulation before a layer takes the factors into its own parameters.
"""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibration.quantization.graph_surgery import add_constant
from calibration.quantization.quantizable_layers import QuantizableLayer, quantizable_layers
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import DENOISE

_MODULATED = re.compile(r"res_blocks\.(\d+)\.mlp\.0")
_PROJECTION = "projection"


def can_smooth(engine: str, layer: QuantizableLayer) -> bool:
    """Return whether the activation of `layer` can be divided without an effect on any other layer."""
    return _normalization(layer) is not None or modulated_block(engine, layer.name) is not None


def modulated_block(engine: str, layer: str) -> int | None:
    """Return the number of the head's block whose modulation gives the activation of `layer`; None if none does."""
    match = _MODULATED.fullmatch(layer) if engine == DENOISE else None
    return int(match[1]) if match else None


def divide_modulation(
    divisors: NDArray[np.float32], config: ModelConfig, block: int, factors: NDArray[np.float32]
) -> None:
    """Multiply the divisors of one block's shift and scale by `factors`, in place.

    Args:
        divisors: What each channel of the modulation is to be divided by, [M]; see `divide_projection`.
        config: The model.
        block: The number of the head's block.
        factors: What the block's activation is to be divided by, [W].
    """
    width = config.diffloss_w
    start = 3 * width * block  # shift, scale, then gate, which is applied after the layer
    divisors[start : start + 2 * width] *= np.tile(factors, 2)


def divide_normalization(graph: ir.Graph, layer: QuantizableLayer, factors: NDArray[np.float32]) -> None:
    """Divide the gain and the bias of the normalisation before `layer` by `factors` [C].

    Does nothing without such a normalisation: then the modulation, in another engine, is divided.
    """
    normalization = _normalization(layer)
    if normalization is None:
        return
    for number, parameter in ((1, "gain"), (2, "bias")):
        value = normalization.inputs[number]
        assert value is not None
        assert value.const_value is not None
        divided = (value.const_value.numpy() / factors).astype(np.float32)
        normalization.replace_input_with(number, add_constant(graph, f"{layer.name}.smoothed_{parameter}", divided))


def divide_projection(graph: ir.Graph, divisors: NDArray[np.float32]) -> None:
    """Divide the columns and the bias of the layer that computes the modulation by `divisors` [M]."""
    (layer,) = (layer for layer in quantizable_layers(graph) if layer.name == _PROJECTION)
    (linear,) = layer.linears
    bias = linear.bias
    assert bias is not None
    assert bias.const_value is not None
    transposed = linear.node.op_type == "Gemm"
    weights = linear.weights / divisors
    for number, array in ((1, weights.T if transposed else weights), (2, bias.const_value.numpy() / divisors)):
        divided = np.ascontiguousarray(array, np.float32)
        linear.node.replace_input_with(number, add_constant(graph, f"{_PROJECTION}.smoothed_{number}", divided))


def _normalization(layer: QuantizableLayer) -> ir.Node | None:
    """The LayerNormalization that `layer` alone reads, or None."""
    node, readers = layer.activation.producer(), {linear.node for linear in layer.linears}
    if node is None or node.op_type != "LayerNormalization" or len(node.inputs) < 3:
        return None
    return node if {use.node for use in layer.activation.uses()} == readers else None

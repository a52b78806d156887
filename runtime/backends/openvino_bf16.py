"""Rounding of float32 to bf16 in a graph of OpenVINO, whose own conversion rounds a quarter of all numbers wrongly."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

_SPLITTER = np.float32(2**16 + 1)  # float32 has 16 bits more than bf16


def round_before_conversion(library: Any, model: Any) -> None:
    """Round every float32 that a graph converts to bf16, so that the conversion is exact.

    Where shapes are dynamic OpenVINO 2026.4 cuts off a number instead of rounding it up whenever the last bit that it
    keeps is 0. This makes numbers smaller on average. With c = (2^16 + 1) x in float32, c - (c - x) is x rounded to the
    precision of bf16 (Veltkamp's splitting). Numbers above 2^111 overflow, and -0 becomes 0.

    Args:
        library: The module openvino.
        model: The graph, which is changed.
    """
    operators = importlib.import_module(f"{library.__name__}.opset13")
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convert" or node.get_output_element_type(0) != library.Type.bf16:
            continue
        x = node.input_value(0)
        if x.get_element_type() == library.Type.f32:
            scaled = operators.multiply(x, operators.constant(_SPLITTER))
            rounded = operators.subtract(scaled, operators.subtract(scaled, x))
            node.input(0).replace_source_output(rounded.output(0))
    model.validate_nodes_and_infer_types()

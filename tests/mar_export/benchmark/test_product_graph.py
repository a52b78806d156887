"""The graph of one matrix product, which is written without the package onnx."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mar_export.benchmark.product_graph import product_graph


@pytest.mark.parametrize(("rows", "inner", "outer"), [(1, 1, 3), (200, 5, 300)])
def test_the_bytes_are_those_that_onnx_writes(rows: int, inner: int, outer: int) -> None:
    weights = np.random.default_rng(0).random((inner, outer), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, outer])],
        [numpy_helper.from_array(weights, "w")],
    )
    expected = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    written = product_graph(rows, weights)
    assert written == expected.SerializeToString()
    onnx.checker.check_model(onnx.load_from_string(written), full_check=True)

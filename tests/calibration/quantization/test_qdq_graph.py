"""Graphs with Q/DQ pairs."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from calibration.quantization.qdq_graph import quantize_graph
from calibration.quantization.quantizable_layers import quantizable_layers
from calibration.quantization.scales import Scale, fake_quantize, weight_scales
from runtime.model.engine_spec import ENGINES
from tests.helpers.distance import relative_l2
from tests.helpers.quantized_artifacts import FLOAT32_LAYERS


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_quantized_graph_multiplies_rounded_activations_and_weights(tmp_path: pathlib.Path, precision: str) -> None:
    """A graph of one Gemm with a bias."""
    random = np.random.default_rng(1)
    weights, bias = random.standard_normal((6, 4)).astype(np.float32), random.standard_normal(4).astype(np.float32)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", 6]))
    parameters = [ir.Value(name=n, const_value=ir.tensor(a, name=n)) for n, a in (("w", weights.T.copy()), ("b", bias))]
    for value, array in zip(parameters, (weights.T, bias), strict=True):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
    gemm = ir.node("Gemm", [x, *parameters], {"transB": 1}, name="layer.Gemm")
    y = gemm.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 4])
    graph = ir.Graph([x], [y], nodes=[gemm], initializers=parameters, opset_imports={"": 20}, name="one")
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "one.onnx")
    quantize_graph(tmp_path / "one.onnx", tmp_path / "low.onnx", precision, {"layer": Scale(0.03, "chosen here", 0.0)})
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", str(int(precision == "fp8")))
    session = onnxruntime.InferenceSession(
        tmp_path / "low.onnx", options, providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulAddFusion"]
    )
    rows = random.standard_normal((5, 6)).astype(np.float32)
    low_weights = fake_quantize(weights, weight_scales(weights, precision), precision)
    expected = fake_quantize(rows, 0.03, precision) @ low_weights + bias
    assert relative_l2(session.run(["y"], {"x": rows})[0], expected) < 1e-6
    assert relative_l2(expected, rows @ weights + bias) > 1e-3


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_all_layers_are_quantized_except_those_that_stay_in_float32(
    quantized_artifacts: dict[str, pathlib.Path], precision: str
) -> None:
    dtype = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}[precision]
    for engine in ENGINES:
        graph = ir.load(quantized_artifacts[precision] / f"{engine}.onnx").graph
        assert [layer.name for layer in quantizable_layers(graph)] == FLOAT32_LAYERS[engine]
        quantized_weights = [value for name, value in graph.initializers.items() if name.endswith("weight_quantized")]
        assert quantized_weights
        assert {value.dtype for value in quantized_weights} == {dtype}
        assert all(value.uses() for value in graph.initializers.values())

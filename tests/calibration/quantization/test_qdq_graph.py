"""Graphs with Q/DQ pairs."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx_ir as ir
import onnxruntime
import openvino
import pytest

from calibration.quantization.qdq_graph import quantize_graph
from calibration.quantization.quantizable_layers import quantizable_layers
from calibration.quantization.scales import Scale, fake_quantize, weight_scales
from runtime.model.engine_spec import ENGINES
from tests.helpers.distance import relative_l2
from tests.helpers.quantized_artifacts import FLOAT32_LAYERS


def quantized_gemm(folder: pathlib.Path, weights: np.ndarray, bias: np.ndarray, precision: str) -> pathlib.Path:
    """A graph of one Gemm with a bias, `layer`, whose activation has the scale 0.03."""
    inner, outer = weights.shape
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", inner]))
    parameters = [ir.Value(name=n, const_value=ir.tensor(a, name=n)) for n, a in (("w", weights.T.copy()), ("b", bias))]
    for value, array in zip(parameters, (weights.T, bias), strict=True):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
    gemm = ir.node("Gemm", [x, *parameters], {"transB": 1}, name="layer.Gemm")
    y = gemm.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", outer])
    graph = ir.Graph([x], [y], nodes=[gemm], initializers=parameters, opset_imports={"": 20}, name="one")
    ir.save(ir.Model(graph, ir_version=10), folder / "one.onnx")
    quantize_graph(folder / "one.onnx", folder / "low.onnx", precision, {"layer": Scale(0.03, "chosen here", 0.0)})
    return folder / "low.onnx"


def on_onnxruntime(graph: pathlib.Path, rows: np.ndarray, precision: str) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", str(int(precision == "fp8")))
    session = onnxruntime.InferenceSession(
        graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulAddFusion"]
    )
    return np.asarray(session.run(["y"], {"x": rows})[0])


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_quantized_graph_multiplies_rounded_activations_and_weights(tmp_path: pathlib.Path, precision: str) -> None:
    random = np.random.default_rng(1)
    weights, bias = random.standard_normal((6, 4)).astype(np.float32), random.standard_normal(4).astype(np.float32)
    rows = random.standard_normal((5, 6)).astype(np.float32)
    found = on_onnxruntime(quantized_gemm(tmp_path, weights, bias, precision), rows, precision)
    low_weights = fake_quantize(weights, weight_scales(weights, precision), precision)
    expected = fake_quantize(rows, 0.03, precision) @ low_weights + bias
    assert relative_l2(found, expected) < 1e-6
    assert relative_l2(expected, rows @ weights + bias) > 1e-3


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_int8_products_are_exact_on_every_processor(tmp_path: pathlib.Path, sign: int) -> None:
    """Two of them fit 16 bits, in which processors without VNNI add them; with weights of 8 bits they do not."""
    weights = np.full((64, 16), sign, np.float32)
    graph = quantized_gemm(tmp_path, weights, np.zeros(16, np.float32), "int8")
    rows = np.full((8, 64), 127 * 0.03, np.float32)
    expected = rows @ weights
    assert relative_l2(on_onnxruntime(graph, rows, "int8"), expected) < 1e-6
    model = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert relative_l2(model([rows])[0], expected) < 1e-6


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

"""OpenVINO rounds float32 to bf16 to nearest, and ties to even, in a graph that the backend has prepared."""

from __future__ import annotations

import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from runtime.artifact.artifact_folder import Artifact
from runtime.backends.openvino import OpenVino, open_openvino
from runtime.backends.openvino_bf16 import round_before_conversion
from runtime.model.engine_spec import DENOISE

WIDTH = 64


def many_numbers() -> NDArray[np.float32]:
    """Numbers of many sizes, some with values between two of bf16, some exact, and zeros."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, WIDTH)).astype(np.float32)
    x *= np.exp2(rng.integers(-60, 60, x.shape)).astype(np.float32)
    bits = x.view(np.uint32)
    bits[:32] = bits[:32] & 0xFFFF0000 | 0x8000
    bits[32:64] &= 0xFFFF0000
    x[-1] = 0
    return x


def converted(tmp_path: pathlib.Path, rows: int | str, x: NDArray[np.float32], *, prepare: bool) -> NDArray[Any]:
    """The bits of x in bf16, converted by OpenVINO in a graph with a fixed or a dynamic number of rows."""
    ends = [
        helper.make_tensor_value_info(name, kind, [rows, WIDTH])
        for name, kind in (("x", TensorProto.FLOAT), ("y", TensorProto.BFLOAT16))
    ]
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)
    graph = helper.make_graph([node], "cast", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "cast.onnx")
    library, core = open_openvino("openvino")
    model = core.read_model(tmp_path / "cast.onnx")
    if prepare:
        round_before_conversion(library, model)
    request = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    request.infer([x])
    bits: NDArray[Any] = np.array(request.get_output_tensor(0).data).view(np.uint16)
    return bits


@pytest.mark.parametrize("rows", ["N", 256])
def test_every_conversion_is_rounded_to_nearest(tmp_path: pathlib.Path, rows: int | str) -> None:
    x = many_numbers()
    expected = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(converted(tmp_path, rows, x, prepare=True), expected)


def test_openvino_itself_still_rounds_a_quarter_wrongly(tmp_path: pathlib.Path) -> None:
    """If this fails, OpenVINO was mended and `round_before_conversion` can go."""
    x = many_numbers()[64:]
    wrong = converted(tmp_path, "N", x, prepare=False) != x.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert 0.2 < wrong.mean() < 0.3


@pytest.mark.parametrize("has_bf16", [True, False])
def test_graphs_are_prepared_on_processors_with_bf16(
    lowered_artifacts: dict[str, pathlib.Path], has_bf16: bool
) -> None:
    """Other processors compute bf16 graphs in float32, and round nothing that they could round wrongly."""
    artifact = Artifact(lowered_artifacts["bf16"])
    loaded = []

    class Recording(OpenVino):
        def __init__(self) -> None:
            super().__init__("openvino", 1)
            self.has_bf16 = has_bf16
            core = self._core
            compiled = core.compile_model

            class Core:
                read_model = core.read_model

                @staticmethod
                def compile_model(model: Any, *rest: Any) -> Any:
                    loaded.append(sum(node.get_type_name() == "Subtract" for node in model.get_ops()))
                    return compiled(model, *rest)

            self._core = Core

    Recording().load(artifact, DENOISE)
    library, core = open_openvino("openvino")
    plain = core.read_model(artifact.engine_file(DENOISE))
    before = sum(node.get_type_name() == "Subtract" for node in plain.get_ops())
    conversions = sum(
        node.get_type_name() == "Convert"
        and node.get_output_element_type(0) == library.Type.bf16
        and node.get_input_element_type(0) == library.Type.f32
        for node in plain.get_ops()
    )
    assert conversions > 0
    assert loaded == [before + 2 * conversions * has_bf16]

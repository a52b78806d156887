"""Weight-only quantization."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.quantization.quantizable_layers import quantizable_layers
from calibration.quantization.weight_only import BITS, block_size, quantize_blocks
from mar_export.onnx_export.example_inputs import example_inputs, parity_sizes
from runtime.artifact.artifact_folder import Artifact
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.generator import Generator
from runtime.model.engine_spec import ENGINES
from tests.helpers.distance import relative_l2
from tests.helpers.quantized_artifacts import FLOAT32_LAYERS, REQUEST


@pytest.mark.parametrize(("precision", "most"), [("w8", 0.05), ("w4", 0.5)])
def test_weights_are_stored_in_blocks_of_few_bits(
    small: Artifact, quantized_artifacts: dict[str, pathlib.Path], precision: str, most: float
) -> None:
    low = quantized_artifacts[precision]
    assert 0 < Artifact(low).manifest.parity["generation"]["relative_l2"] < most
    dtype = {"w8": ir.DataType.INT8, "w4": ir.DataType.INT4}[precision]
    for engine in ENGINES:
        graph = ir.load(low / f"{engine}.onnx").graph
        assert [layer.name for layer in quantizable_layers(graph)] == FLOAT32_LAYERS[engine]
        weights = [value for name, value in graph.initializers.items() if name.endswith("weight_quantized")]
        assert weights
        assert {value.dtype for value in weights} == {dtype}
        assert not any(node.op_type == "QuantizeLinear" for node in graph)
    with Generator.load(low, threads=1) as quantized, Generator.load(small.path, threads=1) as exact:
        distance = relative_l2(quantized.generate([0, 1], **REQUEST).latents, exact.generate([0, 1], **REQUEST).latents)
    assert 0 < distance < most


def with_float32_weights(graph: pathlib.Path, out: pathlib.Path) -> None:
    """Write a graph with its quantized weights multiplied out, as float32."""
    model = ir.load(graph)
    for node in [node for node in model.graph if node.op_type == "DequantizeLinear"]:
        stored, scale = (ir.convenience.get_const_tensor(value).numpy() for value in node.inputs)
        rows = node.attributes["block_size"].as_int()
        weights = (stored.astype(np.float64) * np.repeat(scale.astype(np.float64), rows, axis=0)).astype(np.float32)
        constant = ir.Value(name=f"{node.name}.float32", const_value=ir.tensor(weights))
        model.graph.register_initializer(constant)
        ir.convenience.replace_all_uses_with(node.outputs[0], constant)
        model.graph.remove(node, safe=True)
    ir.save(model, out)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["w8", "w4"])
def test_activations_are_left_alone(
    quantized_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path, backend: str, precision: str
) -> None:
    """Both libraries would round them to 8 bits, a relative error of 1e-3 and more, unless they are told not to."""
    low = Artifact(quantized_artifacts[precision])
    model = low.manifest.model
    with Generator.load(low.path, backend=backend, threads=1) as generator:
        for name in ENGINES:
            graph, spec = low.engine_file(name), low.manifest.specs[name]
            with_float32_weights(graph, tmp_path / graph.name)
            exact = OnnxRuntime("onnxruntime", 1).load_graph(tmp_path / graph.name, spec)
            for sizes in parity_sizes(spec, model):
                inputs = example_inputs(spec, model, sizes, seed=0)
                for output, reference in zip(getattr(generator.engines, name)(**inputs), exact(**inputs), strict=True):
                    assert relative_l2(output, reference) <= 1e-5


@given(st.integers(0, 2**32 - 1), st.sampled_from(["w8", "w4"]), st.sampled_from([16, 32]))
def test_the_error_of_a_weight_is_at_most_half_a_step(seed: int, precision: str, size: int) -> None:
    weights = np.random.default_rng(seed).standard_normal((64, 3)).astype(np.float32)
    low, scales = quantize_blocks(weights, precision, size)
    steps = np.repeat(scales, size, axis=0)
    assert (np.abs(low * steps - weights) <= steps / 2 * 1.0001).all()
    assert np.abs(low).max() == 2 ** (BITS[precision] - 1) - 1


def test_a_layer_whose_width_no_block_size_divides_has_none() -> None:
    assert [block_size(channels) for channels in (768, 160, 224, 48, 20)] == [128, 32, 32, 16, None]

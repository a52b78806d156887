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
from runtime.artifact.artifact_folder import Artifact
from runtime.generator import Generator
from runtime.model.engine_spec import ENGINES
from tests.helpers.distance import relative_l2
from tests.helpers.quantized_artifacts import FLOAT32_LAYERS, REQUEST


@pytest.mark.parametrize(("precision", "most"), [("w8", 0.05), ("w4", 0.5)])
def test_weights_are_stored_in_blocks_of_few_bits(
    small: Artifact, quantized_artifacts: dict[str, pathlib.Path], precision: str, most: float
) -> None:
    """ONNX Runtime also rounds the activations of such layers to 8 bits, row by row, and the head amplifies that."""
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


@given(st.integers(0, 2**32 - 1), st.sampled_from(["w8", "w4"]), st.sampled_from([16, 32]))
def test_the_error_of_a_weight_is_at_most_half_a_step(seed: int, precision: str, size: int) -> None:
    weights = np.random.default_rng(seed).standard_normal((64, 3)).astype(np.float32)
    low, scales = quantize_blocks(weights, precision, size)
    steps = np.repeat(scales, size, axis=0)
    assert (np.abs(low * steps - weights) <= steps / 2 * 1.0001).all()
    assert np.abs(low).max() == 2 ** (BITS[precision] - 1) - 1


def test_a_layer_whose_width_no_block_size_divides_has_none() -> None:
    assert [block_size(channels) for channels in (768, 160, 224, 48, 20)] == [128, 32, 32, 16, None]

"""Calls without known tokens (V = 0), without remaining tokens (R = 0) and without both, after calls of other sizes.

OpenVINO 2026.4.1 computes attention over no keys from what an earlier call left in its memory, and ONNX Runtime 1.31.1
does so in int8 products whose inner size is 0. No engine has such a product: the class buffer of at least one slot is
among the keys of every attention, and only products with weights are quantized.
"""

from __future__ import annotations

import pathlib

import onnx_ir as ir
import pytest

from mar_export.onnx_export.example_inputs import Sizes, example_inputs
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import FLOAT_PRECISIONS, QUANTIZED_PRECISIONS
from runtime.backends import open_backend
from runtime.errors import ConfigError
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import BACKBONE, ENGINES
from tests.helpers.distance import relative_l2
from tests.helpers.variant_models import variant_artifact

PRECISIONS = (*FLOAT_PRECISIONS, *QUANTIZED_PRECISIONS)
BACKENDS = ("onnxruntime", "openvino")
# How far an engine may be from the same engine in float32.
TOLERANCES = {"fp32": 1e-5, "fp16": 3e-3, "bf16": 3e-2, "int8": 0.1, "fp8": 0.1, "w8": 0.02, "w4": 0.3}


@pytest.fixture(scope="module")
def artifacts(
    golden_artifacts: dict[str, pathlib.Path],
    lowered_artifacts: dict[str, pathlib.Path],
    quantized_artifacts: dict[str, pathlib.Path],
) -> dict[str, Artifact]:
    """A model of 16 tokens in every precision."""
    paths = {"fp32": golden_artifacts["small"], **lowered_artifacts, **quantized_artifacts}
    return {precision: Artifact(path) for precision, path in paths.items()}


def masked_sizes(length: int) -> list[Sizes]:
    """No known tokens, no remaining ones, and neither, for two images with guidance."""
    lengths = [(0, 3), (length - 5, 5), (0, length)]
    return [{"B": 2, "GB": 4, "V": known, "K": count, "R": length - known - count} for known, count in lengths]


@pytest.mark.parametrize(
    ("precision", "backend"),
    [
        (precision, backend)
        for precision in PRECISIONS
        for backend in BACKENDS
        if (precision, backend) != ("bf16", "onnxruntime")  # which it does not run
    ],
)
def test_empty_lengths_do_not_depend_on_earlier_calls(
    artifacts: dict[str, Artifact], precision: str, backend: str
) -> None:
    low, exact = artifacts[precision], artifacts["fp32"]
    spec, config = exact.manifest.specs[BACKBONE], exact.manifest.model
    length = config.tokens
    used, reference = open_backend(backend, None, 1).load(low, BACKBONE), open_backend("onnxruntime", None, 1)
    in_float32 = reference.load(exact, BACKBONE)
    others: list[Sizes] = [
        {"B": 3, "GB": 6, "V": length - 7, "K": 4, "R": 3},
        {"B": 1, "GB": 1, "V": 2, "K": 1, "R": length - 3},
    ]
    for number, sizes in enumerate(masked_sizes(length)):
        inputs = example_inputs(spec, config, sizes, number)
        (expected,) = open_backend(backend, None, 1).load(low, BACKBONE)(**inputs)
        for other in others:
            used(**example_inputs(spec, config, other, 99))
            (found,) = used(**inputs)
            assert found.tobytes() == expected.tobytes()
        assert relative_l2(expected, in_float32(**inputs)[0]) <= TOLERANCES[precision]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_cache_depends_on_no_earlier_call(backend: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    artifact = Artifact(variant_artifact("causal", tmp_path_factory))
    spec, config = artifact.manifest.specs[BACKBONE], artifact.manifest.model
    used = open_backend(backend, None, 1).load(artifact, BACKBONE)
    for number, slots in enumerate((1, config.buffer_size)):
        inputs = example_inputs(spec, config, {"B": 2, "GB": 4, "S": slots, "P": 0}, number)
        expected = open_backend(backend, None, 1).load(artifact, BACKBONE)(**inputs)
        used(**example_inputs(spec, config, {"B": 3, "GB": 6, "S": 2, "P": 7}, 99))
        for found, output in zip(used(**inputs), expected, strict=True):
            assert found.tobytes() == output.tobytes()


@pytest.mark.parametrize("precision", QUANTIZED_PRECISIONS)
def test_only_products_with_weights_are_quantized(artifacts: dict[str, Artifact], precision: str) -> None:
    """Their inner size is that of the weights, which is never 0."""
    quantized = 0
    for name in ENGINES:
        for node in ir.load(artifacts[precision].engine_file(name)).graph:
            sources = [value.producer() for value in node.inputs if value is not None]
            if not any(source is not None and source.op_type == "DequantizeLinear" for source in sources):
                continue
            assert node.op_type == "MatMul", node.name
            _, weights = sources
            assert weights is not None
            stored = ir.convenience.get_const_tensor(weights.inputs[0])
            assert stored is not None
            assert min(stored.shape.numpy()) > 0
            quantized += 1
    assert quantized > 0


def test_a_model_without_a_class_buffer_is_refused() -> None:
    """Its attention would have no keys where nothing is known."""
    with pytest.raises(ConfigError, match="buffer_size"):
        ModelConfig(buffer_size=0)

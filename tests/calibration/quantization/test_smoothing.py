"""Graphs whose activations are divided by factors, and whose weights are multiplied by them."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from calibration.quantization.graph_surgery import add_constant
from calibration.quantization.sqnr import SqnrEvaluator
from calibration.quantization.statistics import ActivationStatistics
from calibration.quantization.variants import QdqVariant
from runtime.artifact.artifact_folder import Artifact
from runtime.model.engine_spec import BACKBONE, DENOISE, ENGINES
from tests.helpers.quantized_artifacts import SAMPLING


def test_smoothing_without_rounding_changes_no_image(
    small: Artifact, statistics: ActivationStatistics, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Normalisations, weights and the modulation of another engine take the factors."""
    variant = QdqVariant(small, ENGINES, "int8", statistics)
    smoothed = [layer for layer, scale in variant.scales.items() if scale.smoothing is not None]
    assert {layer.split("/")[0] for layer in smoothed} == {BACKBONE, DENOISE}
    random = np.random.default_rng(0)
    for layer in smoothed:
        channels = statistics.layers[layer].channel_max.size
        uneven = random.uniform(0.5, 2, channels).astype(np.float32)
        variant.scales[layer] = dataclasses.replace(variant.scales[layer], smoothing=uneven)
    module = "calibration.quantization.qdq_graph"
    monkeypatch.setattr(f"{module}._dequantize_weights", _identity)
    monkeypatch.setattr(f"{module}._quantize_activation", lambda graph, linear, activation, *_: ([], activation))
    changed = variant.write(tmp_path, smoothed)
    assert set(changed) == set(ENGINES)
    with SqnrEvaluator(small, SAMPLING, 2, 1) as evaluator:
        exact = {engine: (graph, "fp32") for engine, (graph, _) in changed.items()}
        assert evaluator.relative_l2(exact) < 1e-4
        assert evaluator.relative_l2({DENOISE: exact[DENOISE]}) > 1e-2  # one engine without the other is wrong


def _identity(graph: ir.Graph, name: str, weights: Any, precision: str) -> ir.Node:
    return ir.node("Identity", [add_constant(graph, f"{name}.same", weights)], name=f"{name}.same")

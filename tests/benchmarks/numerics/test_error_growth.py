"""Errors of low precision through a generation, on a small model."""

from __future__ import annotations

import contextlib
import itertools
import pathlib

import numpy as np
import pytest
import torch

from benchmarks.numerics.error_growth import (
    by_iteration,
    by_step,
    emulated_precision,
    measure_growth,
    rank,
    ranking_entry,
)
from benchmarks.numerics.recording import Recording, record
from calibration.quantization.sensitivity import LayerSensitivity
from mar_export.graphs.engine_modules import loop_modules
from mar_export.onnx_export.example_inputs import example_inputs, parity_sizes
from mar_export.onnx_export.float32_emulation import save_emulation
from mar_export.onnx_export.mixed_precision import DTYPES
from runtime.artifact.artifact_folder import Artifact
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.distance import relative_l2
from runtime.model.engine_spec import ENGINES
from training.checkpoints.checkpoint import Checkpoint

SETTINGS = {"preset": "exact", "iterations": 4, "cfg_scale": 2.0, "sampler": "ddim", "diffusion_steps": 5}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_rounded_modules_are_the_emulation_of_the_exported_graphs(
    small_checkpoint: Checkpoint, lowered_artifacts: dict[str, pathlib.Path], precision: str, tmp_path: pathlib.Path
) -> None:
    artifact, modules = Artifact(lowered_artifacts[precision]), loop_modules(small_checkpoint.model)
    low = emulated_precision(precision, modules, artifact.manifest.specs)
    with low.open(low.layers) as engines, contextlib.closing(OnnxRuntime("onnxruntime", 1)) as backend:
        for name in ENGINES:
            spec, config = artifact.manifest.specs[name], artifact.manifest.model
            save_emulation(artifact.engine_file(name), tmp_path / f"{name}.onnx", DTYPES[precision])
            emulation = backend.load_graph(tmp_path / f"{name}.onnx", spec)
            inputs = example_inputs(spec, config, parity_sizes(spec, config)[-1], seed=0)
            exact = modules[name](**{key: torch.from_numpy(value) for key, value in inputs.items()})
            expected = (exact if isinstance(exact, tuple) else (exact,))[0].detach().numpy()
            found, emulated = getattr(engines, name)(**inputs)[0], emulation(**inputs)[0]
            # Sums in another order fall to the other neighbour now and then.
            assert relative_l2(found, emulated) < 0.3 * relative_l2(emulated, expected)


def test_the_growth_of_a_precision(small_checkpoint: Checkpoint, lowered_artifacts: dict[str, pathlib.Path]) -> None:
    manifest = Artifact(lowered_artifacts["bf16"]).manifest
    precision = emulated_precision("bf16", loop_modules(small_checkpoint.model), manifest.specs)
    found = measure_growth(precision, manifest, SETTINGS, 3)
    assert set(found) == {*ENGINES, "all"}
    for errors in found.values():
        assert [len(errors[name]) for name in ("accumulated", "own", "chain")] == [4, 4, 5]
        assert errors["accumulated"][0] == errors["own"][0]  # there is nothing to accumulate yet
        assert 1e-5 < errors["latents"] < 0.1
    assert found["all"]["latents"] > found["denoise"]["latents"] / 2
    # Most tokens of the last iteration depend on tokens that are wrong already.
    assert found["all"]["accumulated"][-1] > 0


def test_a_recording_with_its_own_tokens_is_the_same(
    small_checkpoint: Checkpoint, lowered_artifacts: dict[str, pathlib.Path]
) -> None:
    manifest = Artifact(lowered_artifacts["bf16"]).manifest
    with emulated_precision("bf16", loop_modules(small_checkpoint.model), manifest.specs).open([]) as engines:
        free = record(engines, manifest, SETTINGS, 2)
        forced = record(engines, manifest, SETTINGS, 2, np.concatenate(free.tokens))
        other = record(engines, manifest, SETTINGS, 2, 0 * np.concatenate(free.tokens))
    assert by_iteration(forced, free) == [0, 0, 0, 0]
    assert by_step(forced, free) == [0, 0, 0, 0, 0]
    assert by_iteration(other, free)[0] == 0 < by_iteration(other, free)[1]


def test_errors_by_iteration_and_by_step() -> None:
    one = Recording((), (np.ones((2, 3, 4), np.float32), np.ones((2, 6, 4), np.float32)), 3)
    states = [array.copy() for array in one.states]
    states[0][0] += 0.1
    states[1][1] -= 0.2
    other = Recording((), tuple(states), 3)
    assert [each.shape for each in one.tokens] == [(1, 3, 4), (2, 3, 4)]
    assert by_iteration(other, one) == pytest.approx([0, 0.2])
    assert by_step(other, one) == pytest.approx([0.1 * (3 / 9) ** 0.5, 0.2 * (6 / 9) ** 0.5])


def test_layers_are_ranked_by_what_each_does_alone(
    small_checkpoint: Checkpoint, lowered_artifacts: dict[str, pathlib.Path]
) -> None:
    manifest = Artifact(lowered_artifacts["bf16"]).manifest
    precision = emulated_precision("bf16", loop_modules(small_checkpoint.model), manifest.specs)
    ranking = rank(precision, manifest, SETTINGS, 1)
    assert {each.layer for each in ranking} == set(precision.layers)
    assert all(one.relative_l2 >= other.relative_l2 for one, other in itertools.pairwise(ranking))
    assert ranking[0].relative_l2 > 0


def test_the_share_of_a_layer_is_that_of_its_squared_error() -> None:
    entry = ranking_entry([LayerSensitivity("a", 3.0), LayerSensitivity("b", 4.0), *[LayerSensitivity("c", 0.0)] * 5])
    assert [each["share"] for each in entry["layers"]] == [0.36, 0.64, 0, 0, 0]
    assert entry["count"] == 7

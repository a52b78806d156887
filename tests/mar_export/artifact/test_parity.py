"""The distance of an export from eager PyTorch: of each engine, of a complete image, and over its iterations."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mar_export.artifact import parity
from mar_export.artifact.float64 import InFloat64
from mar_export.artifact.parity import (
    Trajectory,
    eager_outputs,
    eager_trajectory,
    engine_parity,
    generation_parity,
)
from mar_export.graphs.engine_modules import graph_modules
from mar_export.onnx_export.example_inputs import example_inputs, parity_sizes
from mar_export.torch_backends.torch_cpu import eager_generator, torch_engine
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.distance import tolerance_text
from runtime.errors import ParityError
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import BACKBONE, DECODER, ENGINES, TOKENIZER_ENGINES, tokenizer_specs
from runtime.model.families import engine_specs
from training.checkpoints.checkpoint import Checkpoint
from training.models.autoencoder import Decoder, VAEConfig


@pytest.fixture(scope="module")
def manifest(golden_artifacts: dict[str, pathlib.Path]) -> Manifest:
    return Artifact(golden_artifacts["small"]).manifest


@pytest.fixture(scope="module")
def trajectory(small_checkpoint: Checkpoint) -> Trajectory:
    """Sixteen iterations, of one token each."""
    return eager_trajectory(small_checkpoint.model, "bf16")


@pytest.fixture(scope="module")
def exact(manifest: Manifest, small_checkpoint: Checkpoint) -> Engines:
    return eager_generator(manifest, small_checkpoint.model).engines


def wrong_in(engines: Engines, first: int, last: int, error: float) -> Engines:
    """Engines whose image is wrong by a share of `error` in iterations first..last, counted from 0."""
    iteration = -1

    def backbone(**inputs: Any) -> tuple[NDArray[Any], ...]:
        nonlocal iteration
        iteration += 1
        return engines.backbone(**inputs)

    def denoise(**inputs: Any) -> tuple[NDArray[Any], ...]:
        x, x0 = engines.denoise(**inputs)
        return (x * np.float32(1 + error) if first <= iteration <= last else x), x0

    return dataclasses.replace(engines, backbone=backbone, denoise=denoise)


def evaluated(manifest: Manifest, engines: Engines, trajectory: Trajectory) -> dict[str, Any]:
    return generation_parity(Generator(manifest, engines, "test"), trajectory, "bf16")


def test_exact_image_has_no_drift(manifest: Manifest, exact: Engines, trajectory: Trajectory) -> None:
    reported = evaluated(manifest, exact, trajectory)
    assert [entry["iteration"] for entry in reported["drift"]] == [8, 16]
    for entry in (reported, *reported["drift"]):
        assert entry["relative_l2"] < 1e-5
        assert entry["sqnr_db"] == pytest.approx(-20 * math.log10(entry["relative_l2"]))
    assert reported["sqnr_db"] > 100


def test_an_error_of_late_iterations_shows_in_the_late_entries_only(
    manifest: Manifest, exact: Engines, trajectory: Trajectory
) -> None:
    drift = evaluated(manifest, wrong_in(exact, 8, 15, 0.01), trajectory)["drift"]
    assert drift[0]["relative_l2"] < 1e-5
    assert drift[1]["relative_l2"] > 5e-3


def test_an_error_of_early_iterations_shows_in_all_entries(
    manifest: Manifest, exact: Engines, trajectory: Trajectory
) -> None:
    """What is drawn later depends on it."""
    drift = evaluated(manifest, wrong_in(exact, 0, 7, 0.01), trajectory)["drift"]
    assert drift[0]["relative_l2"] > 5e-3
    assert drift[1]["relative_l2"] > 1e-4


def test_drift_is_that_of_the_tokens_of_its_iterations(
    manifest: Manifest, exact: Engines, trajectory: Trajectory
) -> None:
    """The last iteration alone: one token of the eight of its entry, and of the sixteen of the image."""
    reported = evaluated(manifest, wrong_in(exact, 15, 15, 0.01), trajectory)
    late = reported["drift"][1]["relative_l2"]
    tokens = trajectory.latents.reshape(1, 8, 16)[:, :, trajectory.order[0]]  # [1, D, L] in generation order
    assert reported["drift"][0]["relative_l2"] < 1e-5
    share = np.linalg.norm(tokens[:, :, 8:]) / np.linalg.norm(tokens)
    assert reported["relative_l2"] == pytest.approx(late * share, rel=1e-3)


def test_image_beyond_the_tolerance_is_refused(
    manifest: Manifest, exact: Engines, trajectory: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = wrong_in(exact, 0, 15, 0.01)
    distance = evaluated(manifest, engines, trajectory)["relative_l2"]
    monkeypatch.setitem(parity.GENERATION_TOLERANCES, "bf16", distance * 0.99)
    with pytest.raises(ParityError, match="complete generation on test: relative L2 distance") as refusal:
        evaluated(manifest, wrong_in(exact, 0, 15, 0.01), trajectory)
    assert f"{distance:.2e}" in str(refusal.value)
    monkeypatch.setitem(parity.GENERATION_TOLERANCES, "bf16", distance * 1.01)
    evaluated(manifest, wrong_in(exact, 0, 15, 0.01), trajectory)


@pytest.mark.parametrize(("precision", "iterations"), [("fp32", 4), ("fp16", 16), ("bf16", 16)])
def test_low_precision_is_compared_over_more_iterations(
    small_checkpoint: Checkpoint, precision: str, iterations: int
) -> None:
    assert len(eager_trajectory(small_checkpoint.model, precision).plan.iterations) == iterations


class _Cancelling(nn.Module):
    """A module whose output has lost digits: it adds a large number and subtracts it again."""

    def __init__(self, module: nn.Module, large: float) -> None:
        super().__init__()
        self._module, self._large = module, large

    def forward(self, **inputs: Tensor) -> Tensor:
        output: Tensor = self._module(**inputs)
        return (output + self._large) - self._large


@pytest.mark.parametrize(("large", "least", "most"), [(0.0, 1, 1), (400.0, 1.1, 9.9), (1e4, 10, 10)])
def test_the_tolerance_grows_with_round_off_within_bounds(
    small_checkpoint: Checkpoint, large: float, least: float, most: float
) -> None:
    config = small_checkpoint.model.config
    spec, module = engine_specs(config)[BACKBONE], graph_modules(small_checkpoint.model, None, False)[BACKBONE]
    expected = eager_outputs(_Cancelling(module, large), spec, config)
    assert least <= expected.widening() <= most
    tolerance = parity.ENGINE_TOLERANCES["fp32"] * expected.widening()
    outputs = iter([*expected.cases, *expected.cases])

    def off(share: float, **_: Any) -> tuple[NDArray[Any], ...]:
        return tuple(output * np.float32(1 + share * tolerance) for output in next(outputs))

    reported = engine_parity(functools.partial(off, 0.95), expected, spec, config, "fp32")
    assert reported["tolerance"] == (pytest.approx(tolerance) if large else 1e-5)
    with pytest.raises(ParityError, match=f"at most {tolerance_text(tolerance)} is allowed"):
        engine_parity(functools.partial(off, 1.1), expected, spec, config, "fp32")


@pytest.mark.parametrize("name", [*ENGINES, DECODER])
def test_float64_is_that_of_a_module_with_weights_in_float64(small_checkpoint: Checkpoint, name: str) -> None:
    config = small_checkpoint.model.config
    if name == DECODER:
        module: nn.Module = Decoder(VAEConfig(latent_channels=4, width=32, multipliers=(1, 2), attention_levels=()))
        inputs = {"latents": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    else:
        spec, module = engine_specs(config)[name], graph_modules(small_checkpoint.model, None, False)[name]
        values = example_inputs(spec, config, parity_sizes(spec, config)[1], 0)
        inputs = {key: torch.from_numpy(array) for key, array in values.items()}
    wide = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in inputs.items()}
    with torch.no_grad():
        with InFloat64():
            found = module(**inputs)
        right = copy.deepcopy(module).double()(**wide)
    for ours, theirs in zip(tree_leaves(found), tree_leaves(right), strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)
    assert all(weight.dtype == torch.float32 for weight in module.parameters())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ENGINES)
def test_engine_is_compared_with_the_tolerance_of_its_precision(
    small_checkpoint: Checkpoint, name: str, precision: str
) -> None:
    config = small_checkpoint.model.config
    spec, module = engine_specs(config)[name], graph_modules(small_checkpoint.model, None, False)[name]
    expected, exact = eager_outputs(module, spec, config), torch_engine(module, spec)
    tolerance = parity.ENGINE_TOLERANCES[precision]
    for share in (0.9, 1.1):

        def off(share: float = share, **inputs: Any) -> tuple[NDArray[Any], ...]:
            return tuple(output * np.float32(1 + share * tolerance) for output in exact(**inputs))

        if share > 1:
            with pytest.raises(ParityError, match=f"engine {name}: relative L2 distance .* {tolerance:.0e} is allowed"):
                engine_parity(off, expected, spec, config, precision)
        else:
            reported = engine_parity(off, expected, spec, config, precision)
            assert reported["tolerance"] == tolerance
            assert reported["cases"] == len(expected.cases) == len(parity_sizes(spec, config)) == 5
            assert reported["relative_l2"] == pytest.approx(0.9 * tolerance, rel=0.05)
            assert reported["sqnr_db"] == pytest.approx(-20 * math.log10(reported["relative_l2"]))


def test_tokenizer_engines_are_compared_with_one_image_and_with_three(kl_checkpoint: Checkpoint) -> None:
    config = kl_checkpoint.model.config
    for name, spec in tokenizer_specs(config).items():
        assert name in TOKENIZER_ENGINES
        assert [sizes["B"] for sizes in parity_sizes(spec, config)] == [1, 3]

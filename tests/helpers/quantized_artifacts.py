"""Activation statistics of a small golden model, and the model in every quantized precision."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from calibration.quantization.collect import collect
from calibration.quantization.quantize import QuantizationConfig, quantize
from calibration.quantization.statistics import ActivationStatistics
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import QUANTIZED_PRECISIONS
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE, ENGINES
from runtime.sampling.settings import Sampling
from tests.helpers.artifacts import made_once

SAMPLING = Sampling(iterations=4, diffusion_steps=5, cfg_scale=2.0)

# Arguments of `Generator.generate`: the same settings, with a seed that calibration does not use.
REQUEST: dict[str, Any] = {"iterations": 4, "diffusion_steps": 5, "cfg_scale": 2.0, "seed": 3}

# The layers that are never quantized.
FLOAT32_LAYERS = {
    BACKBONE: ["model.z_proj"],
    CONDITIONING: ["time_embed.mlp.0", "time_embed.mlp.2"],
    DENOISE: ["input_proj", "final_layer.linear"],
}


def quantization_config(precision: str = "int8", **changes: Any) -> QuantizationConfig:
    """A configuration that any result satisfies, with some fields changed."""
    fields: dict[str, Any] = {"engines": ENGINES, "sampling": SAMPLING, "target_sqnr": 0.0}
    return QuantizationConfig(precision, **{**fields, **changes})


@pytest.fixture(scope="session")
def small(golden_artifacts: dict[str, pathlib.Path]) -> Artifact:
    """The golden model of 16 tokens in float32. Read only."""
    return Artifact(golden_artifacts["small"])


@pytest.fixture(scope="session")
def statistics_file(small: Artifact, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Statistics of that model over 10 images. Read only."""

    def collect_into(folder: pathlib.Path) -> None:
        collect(small, 10, folder / "small.npz", SAMPLING, 1, lambda done: None)

    return made_once(tmp_path_factory, "statistics", collect_into) / "small.npz"


@pytest.fixture
def statistics(statistics_file: pathlib.Path) -> ActivationStatistics:
    return ActivationStatistics.load(statistics_file)


@pytest.fixture(scope="session")
def quantized_artifacts(
    small: Artifact, statistics_file: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
    """That model in every quantized precision: precision -> artifact. Read only."""

    def quantize_into(folder: pathlib.Path) -> None:
        for precision in QUANTIZED_PRECISIONS:
            config = quantization_config(precision, target_sqnr=0 if precision == "w4" else 10)
            statistics = ActivationStatistics.load(statistics_file)
            quantize(small, statistics, folder / precision, config, lambda _: None)

    folder = made_once(tmp_path_factory, "quantized-artifacts", quantize_into)
    return {precision: folder / precision for precision in QUANTIZED_PRECISIONS}

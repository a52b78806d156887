"""A small artifact and what was seen while it drew."""

from __future__ import annotations

import pathlib

import pytest

from calibration.quantization.collect import collect
from calibration.quantization.statistics import Statistics
from runtime.artifact.artifact_folder import Artifact
from runtime.sampling.settings import Sampling

SAMPLING = Sampling(iterations=4, diffusion_steps=5, cfg_scale=2.0)


@pytest.fixture(scope="session")
def statistics_file(
    golden_artifacts: dict[str, pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """Statistics of the golden model of 16 tokens, by 10 images. Read only."""
    file = tmp_path_factory.mktemp("statistics") / "small.npz"
    collect(Artifact(golden_artifacts["small"]), 10, file, SAMPLING, 1, lambda done: None)
    return file


@pytest.fixture
def statistics(statistics_file: pathlib.Path) -> Statistics:
    return Statistics.load(statistics_file)

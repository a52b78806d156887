"""A head of codes on a simulated GPU: the loop there runs its one step as it runs a chain."""

from __future__ import annotations

import pathlib
import shutil
from typing import Any, cast

import numpy as np
import pytest

from mar_export.tensorrt.artifact_builds import BuildOptions, build_engines, plans_to_build
from runtime.artifact.artifact_folder import Artifact
from runtime.generator import Generator
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.helpers.simulated_gpu import BATCH, PlanWriter
from tests.helpers.variant_models import variant_artifact


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Exported, and its engines built; before `tensorrt` is simulated, which an export would stumble over."""
    path, writer = tmp_path_factory.mktemp("codes") / "artifact", cast(Any, PlanWriter())
    artifact = Artifact(pathlib.Path(shutil.copytree(variant_artifact("raster vq", tmp_path_factory), path)))
    plans = plans_to_build(artifact, {})
    build_engines(artifact, writer, plans, BuildOptions(BATCH, force=True), lambda text: None)
    return path


@pytest.mark.usefixtures("tensorrt")
def test_a_vq_head_gives_the_tokens_of_the_host(built: pathlib.Path, cuda: SimulatedCuda) -> None:
    host = Generator.load(built, threads=1)
    with Generator.load(built, backend="tensorrt") as gpu:
        for settings in ({"cfg_scale": 1.0}, {"preset": "fast", "cfg_scale": 3.0, "temperature": 0.8}):
            found, expected = (each.generate([0, 2], **settings).latents for each in (gpu, host))
            assert np.array_equal(found, expected)
    assert "cuGraphLaunch" in cuda.history
    assert cuda.leaks == []

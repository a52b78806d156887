"""An image ends at the first value that is not finite, also where the engines would turn it into a number again."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import pytest

from runtime.artifact.artifact_folder import Artifact
from runtime.backends import open_backend
from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.loops.finite_engines import finite_engines
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE
from tests.helpers.bad_values import broken, with_bad_value
from tests.helpers.fake_generators import FakeEngines, fake_generator
from tests.helpers.quantized_artifacts import REQUEST
from tests.helpers.variant_models import variant_artifact

BAD = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(("name", "at"), [(BACKBONE, 1), (CONDITIONING, 1), (DENOISE, 4)])
def test_no_engine_runs_after_the_iteration_of_the_value(name: str, at: int, value: float) -> None:
    """Of four iterations with three steps each, the second has the value."""
    fake = FakeEngines()
    generator = fake_generator(fake)
    engines = broken(generator.engines, name, value, at)
    with pytest.raises(BackendError, match=f"^engine {name} produced values that are not finite; .*parity report"):
        Generator(generator.manifest, engines, "").generate([0, 1])
    assert fake.passes == 2


def test_the_tokens_of_the_last_iteration_are_checked_too() -> None:
    generator = fake_generator()
    engines = broken(generator.engines, DENOISE, math.nan, 11)
    with pytest.raises(BackendError, match=r"^the engines produced values that are not finite"):
        Generator(generator.manifest, engines, "").generate([0])


def test_every_lane_is_checked() -> None:
    generator = fake_generator()
    lanes = [generator.engines, broken(generator.engines, BACKBONE, math.nan, 1)]
    with pytest.raises(BackendError, match="engine backbone produced values that are not finite"):
        Generator(generator.manifest, generator.engines, "", lanes=lanes).generate([0, 1, 2, 1])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", [BACKBONE, CONDITIONING])
def test_a_value_that_int8_engines_lose_is_found(
    quantized_artifacts: dict[str, pathlib.Path], backend: str, name: str
) -> None:
    """Without the check they give an image: QuantizeLinear makes a whole number of NaN and of infinity."""
    with Generator.load(quantized_artifacts["int8"], backend=backend, threads=1) as generator:
        for value in BAD:
            engines = broken(generator.engines, name, value, 0)
            with pytest.raises(BackendError, match=f"engine {name} produced values that are not finite"):
                Generator(generator.manifest, engines, "").generate([0, 1], **REQUEST)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_logits_of_a_vq_head_that_are_not_numbers_choose_no_code(
    backend: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """NaN is neither less nor more than a number, so the engine alone would choose code 0."""
    with Generator.load(variant_artifact("raster vq", tmp_path_factory), backend=backend, threads=1) as generator:
        engines = broken(generator.engines, CONDITIONING, math.nan, 0)
        with pytest.raises(BackendError, match="engine conditioning produced values that are not finite"):
            Generator(generator.manifest, engines, "").generate([0])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_engines_themselves_still_lose_it(quantized_artifacts: dict[str, pathlib.Path], backend: str) -> None:
    """If this fails for both backends, they were mended, and `finite_engines` can go."""
    artifact = Artifact(quantized_artifacts["int8"])
    engine, config = open_backend(backend, None, 1).load(artifact, CONDITIONING), artifact.manifest.model
    z = np.ones((4, config.decoder_embed_dim), np.float32)
    z[1] = math.nan
    inputs = {"z": z, "timesteps": np.array([500.0], np.float32)}
    assert np.isfinite(engine(**inputs)[0]).all()
    with pytest.raises(BackendError, match="engine conditioning"):
        finite_engines(Engines(engine, with_bad_value(engine, math.nan, 0), engine)).conditioning(**inputs)

"""Padding of inner channels with zeros: only where it is needed, and without a change of the results."""

from __future__ import annotations

import pathlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from calibration.cli.calibrate import calibrate
from mar_export.artifact.export import export_artifact
from mar_export.artifact.parity import parity_sizes
from mar_export.graphs import channel_padding
from mar_export.graphs.channel_padding import pad_layers, padding_channels
from mar_export.graphs.engine_modules import loop_modules
from mar_export.onnx_export.example_inputs import example_inputs
from runtime.generator import Generator
from runtime.model.engine_spec import ENGINES
from runtime.model.families import engine_specs
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN, GOLDEN_TOLERANCE
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(GOLDEN / "small" / "checkpoint-last.pth", GOLDEN / "small" / "meta.json")


@pytest.fixture(scope="module")
def padded_artifact(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The model with every inner width padded, though it is small, exported. Read only."""
    artifact = tmp_path_factory.mktemp("padded") / "artifact"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(channel_padding, "PERIOD", 1)
        export_artifact(checkpoint, artifact, lambda text: None)
    return artifact


@pytest.mark.parametrize(
    ("width", "padding"), [(768, 0), (1024, 64), (1280, 0), (1536, 0), (3072, 64), (4096, 64), (5120, 64)]
)
def test_multiples_of_4096_bytes_are_padded(width: int, padding: int) -> None:
    assert padding_channels(width) == padding
    assert (width + padding) % 64 == 0
    assert (width + padding) % channel_padding.PERIOD != 0


@pytest.mark.parametrize("activation", [F.gelu, F.silu])
@given(inner=st.sampled_from([1024, 2048, 96]), rows=st.integers(0, 3))
def test_padded_layers_have_the_same_outputs(activation: object, inner: int, rows: int) -> None:
    assert callable(activation)
    torch.manual_seed(inner + rows)
    before = nn.Linear(8, inner), nn.Linear(inner, 4)
    after = pad_layers(*before)
    x = torch.randn(rows, 8)
    with torch.no_grad():
        expected, found = (second(activation(first(x))) for first, second in (before, after))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert before[0].out_features == before[1].in_features == inner
    assert after[0].out_features == after[1].in_features == inner + padding_channels(inner)


@pytest.mark.parametrize("engine", ENGINES)
def test_padded_engine_has_the_same_outputs(
    checkpoint: Checkpoint, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = checkpoint.model.config
    spec, before = engine_specs(config)[engine], loop_modules(checkpoint.model)[engine]
    monkeypatch.setattr(channel_padding, "PERIOD", 1)
    after = loop_modules(checkpoint.model)[engine]
    larger = [sum(parameter.numel() for parameter in module.parameters()) for module in (before, after)]
    assert larger[0] < larger[1]
    for seed, sizes in enumerate(parity_sizes(spec, config)):
        inputs = {key: torch.from_numpy(value) for key, value in example_inputs(spec, config, sizes, seed).items()}
        with torch.inference_mode():
            outputs = [module(**inputs) for module in (before, after)]
        expected, found = (one if isinstance(one, tuple) else (one,) for one in outputs)
        for one, other in zip(found, expected, strict=True):
            assert relative_l2(one.numpy(), other.numpy()) <= 1e-6


@pytest.mark.parametrize("weights_only", [False, True])
def test_padded_model_is_exported_and_quantized(
    padded_artifact: pathlib.Path, golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path, weights_only: bool
) -> None:
    request = {"iterations": 4, "diffusion_steps": "ddim5", "cfg_scale": 2.0}
    latents = []
    for artifact in (golden_artifacts["small"], padded_artifact):
        with Generator.load(artifact, threads=1) as generator:
            latents.append(generator.generate([0, 3], **request).latents)
    assert relative_l2(latents[1], latents[0]) <= GOLDEN_TOLERANCE
    out = tmp_path / "int8"
    options = ["--iterations=4", "--diffusion-steps=ddim5", "--count=2", "--target-sqnr=0", "--threads=1"]
    kind = ["--weights-only"] if weights_only else options
    command = [str(padded_artifact), f"--out={out}", "--precision=int8", *kind]
    calibrate.main(command, standalone_mode=False)
    with Generator.load(out, threads=1) as generator:
        found = generator.generate([0, 3], **request).latents
    assert relative_l2(found, latents[0]) < 0.2

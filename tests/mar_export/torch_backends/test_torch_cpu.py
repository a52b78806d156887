"""The engines in PyTorch: the artifact's own images in float32, and nearly those in bfloat16."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mar_export.torch_backends.torch_cpu import eager_generator, package_generator, save_packages
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.generator import Generator
from runtime.model.coefficients import COEFFICIENTS, coefficient_rows
from runtime.model.families import engine_specs
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.models.mar import MAR

SETTINGS: list[dict[str, Any]] = [
    {"iterations": 5, "diffusion_steps": "ddim10", "cfg_scale": 2.5},
    {"iterations": 4, "sampler": "dpm++2m", "diffusion_steps": 8},
]
LABELS = [4, 0, 2]


@pytest.fixture(scope="module")
def model() -> MAR:
    return load_checkpoint(GOLDEN / "small" / "checkpoint-last.pth", GOLDEN / "small" / "meta.json").model


@pytest.fixture(scope="module")
def artifact(golden_artifacts: dict[str, pathlib.Path]) -> Iterator[Generator]:
    with Generator.load(golden_artifacts["small"], threads=1) as generator:
        yield generator


@pytest.fixture
def manifest(artifact: Generator) -> Manifest:
    return artifact.manifest


@pytest.mark.parametrize("settings", SETTINGS)
def test_float32_draws_the_artifacts_images(artifact: Generator, model: MAR, settings: dict[str, Any]) -> None:
    eager = eager_generator(artifact.manifest, model)
    found, expected = (generator.generate(LABELS, **settings).latents for generator in (eager, artifact))
    assert found.dtype == np.float32
    assert relative_l2(found, expected) <= 1e-5


@pytest.mark.parametrize("settings", SETTINGS)
def test_bfloat16_is_close_and_not_the_same(artifact: Generator, model: MAR, settings: dict[str, Any]) -> None:
    eager = eager_generator(artifact.manifest, model, bfloat16=True)
    found, expected = (generator.generate(LABELS, **settings).latents for generator in (eager, artifact))
    assert found.dtype == np.float32
    assert 1e-4 < relative_l2(found, expected) < 0.05


def test_images_of_a_model_of_pixels_come_out_as_the_artifacts(
    pixel_artifact: pathlib.Path, pixel_checkpoint: Checkpoint
) -> None:
    eager = eager_generator(Artifact(pixel_artifact).manifest, pixel_checkpoint.model)
    found = eager.generate([0, 1, 1]).images
    with Generator.load(pixel_artifact, threads=1) as generator:
        expected = generator.generate([0, 1, 1]).images
    assert found is not None
    assert expected is not None
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert found.std() > 10


def denoise_inputs(manifest: Manifest, rows: int) -> dict[str, Any]:
    """A step whose x0 is eps itself, and whose blocks are closed: shifts and gates 0, scales 1."""
    config, random = manifest.model, np.random.default_rng(0)
    x = random.standard_normal((rows, config.token_channels), np.float32)
    width = config.diffloss_w
    block = np.repeat(np.array([0, 1, 0], np.float32), width)
    modulation = np.concatenate([*[block] * config.diffloss_d, block[: 2 * width]])
    (coefficients,) = coefficient_rows({name: np.full(1, float(name == "x0_from_eps")) for name in COEFFICIENTS[:-2]})
    return {
        "x": x,
        "previous_x0": x,
        "noise": x,
        "modulation": np.tile(modulation, (rows, 1)),
        "coefficients": coefficients,
        "guidance": np.ones(1, np.float32),
    }


def test_under_bfloat16_the_last_layer_of_the_head_is_computed_in_float32(manifest: Manifest, model: MAR) -> None:
    net, inputs = model.diffloss.net, denoise_inputs(manifest, 7)
    _, found = eager_generator(manifest, model, bfloat16=True).engines.denoise(**inputs)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            h = net.input_proj(torch.from_numpy(inputs["x"]))
        assert h.dtype == torch.bfloat16
        normed = net.final_layer.norm_final(h.float())
        in_float32 = net.final_layer.linear(normed).numpy()[:, : found.shape[1]]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = net.final_layer.linear(normed).float().numpy()[:, : found.shape[1]]
    assert relative_l2(found, in_float32) <= 1e-6
    assert relative_l2(found, rounded) > 1e-4


def test_under_bfloat16_the_other_layers_are_rounded(manifest: Manifest, model: MAR) -> None:
    inputs = denoise_inputs(manifest, 7)
    found = [eager_generator(manifest, model, bfloat16=b).engines.denoise(**inputs)[1] for b in (False, True)]
    assert relative_l2(found[1], found[0]) > 1e-4
    z = np.random.default_rng(0).standard_normal((5, manifest.model.decoder_embed_dim), np.float32)
    timesteps = np.array([3.0, 500.0], np.float32)
    exact, rounded = (
        eager_generator(manifest, model, bfloat16=b).engines.conditioning(z=z, timesteps=timesteps)[0]
        for b in (False, True)
    )
    assert 1e-4 < relative_l2(rounded, exact) < 0.05


def test_the_model_itself_is_left_as_it_was(manifest: Manifest, model: MAR) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    eager_generator(manifest, model, bfloat16=True).generate([1], **SETTINGS[0])
    assert type(model.diffloss.net.final_layer.linear) is nn.Linear
    assert not model.training
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    x = torch.ones(1, manifest.model.diffloss_w)
    linear = model.diffloss.net.final_layer.linear
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))


def test_compiled_engines_are_compiled_for_any_size(
    manifest: Manifest, model: MAR, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[tuple[str, dict[str, object]]] = []

    def compile_(module: nn.Module, **options: object) -> Callable[..., Any]:
        compiled.append((type(module).__name__.lower(), options))
        return module

    monkeypatch.setattr(torch, "compile", compile_)
    assert "compiled" not in eager_generator(manifest, model).description
    assert compiled == []
    assert eager_generator(manifest, model, compiled=True).description.endswith("float32, compiled")
    assert compiled == [(name, {"dynamic": True}) for name in engine_specs(manifest.model)]


@pytest.mark.parametrize(("bfloat16", "precision"), [(False, "float32"), (True, "bfloat16")])
def test_the_description_names_version_and_precision(
    manifest: Manifest, model: MAR, bfloat16: bool, precision: str
) -> None:
    assert eager_generator(manifest, model, bfloat16=bfloat16).description == f"torch {torch.__version__}, {precision}"


def test_packages_draw_the_artifacts_images(
    artifact: Generator, model: MAR, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the compiler of C++, which takes a minute: what it is given runs in PyTorch."""
    packages: dict[str, Any] = {}

    def compile_(exported: Any, package_path: str) -> None:
        packages[package_path] = exported.module(check_guards=False)  # as a package, which checks no sizes

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", compile_)
    monkeypatch.setattr("torch._inductor.aoti_load_package", packages.get)
    save_packages(artifact.manifest, model, tmp_path)
    compiled = package_generator(artifact.manifest, tmp_path)
    assert compiled.description == f"torch {torch.__version__}, float32, AOTInductor"
    for labels in ([1], LABELS):
        found, expected = (one.generate(labels, **SETTINGS[0]).latents for one in (compiled, artifact))
        assert relative_l2(found, expected) <= 1e-5

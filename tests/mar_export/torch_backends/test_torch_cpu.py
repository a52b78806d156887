"""The engines in PyTorch draw the artifact's own images."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mar_export.torch_backends.torch_cpu import eager_generator, package_generator, save_packages
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.generator import Generator
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


def test_compiled_engines_are_compiled_for_any_size(
    manifest: Manifest, model: MAR, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[tuple[str, dict[str, object]]] = []

    def compile_(module: nn.Module, **options: object) -> Callable[..., Any]:
        compiled.append((type(module).__name__.lower(), options))
        return module

    monkeypatch.setattr(torch, "compile", compile_)
    assert eager_generator(manifest, model).description == f"torch {torch.__version__}, float32"
    assert compiled == []
    assert eager_generator(manifest, model, compiled=True).description.endswith("float32, compiled")
    assert compiled == [(name, {"dynamic": True}) for name in engine_specs(manifest.model)]


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

"""The naive export draws what the runtime draws, and with none of its savings."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mar_export.benchmark.naive_graphs import NaiveBackbone, export_naive
from mar_export.benchmark.naive_onnx import NaiveEngines, naive_specs
from runtime.artifact.artifact_folder import Artifact
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.generator import Generator
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import Engine
from runtime.model.latents import unpatchify
from runtime.sampling.rng import seeded_noise, seeded_order
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN, GOLDEN_TOLERANCE, golden_cases
from training.checkpoints.checkpoint import load_checkpoint
from training.models.mar import MAR

LABELS = [4, 0, 2]
SETTINGS: dict[str, dict[str, Any]] = {
    "ddpm guided": {"iterations": 5, "diffusion_steps": "ddim10", "cfg_scale": 2.5},
    "dpm++2m": {"iterations": 4, "sampler": "dpm++2m", "diffusion_steps": 8, "cfg_scale": 1.5},
    "unguided": {"iterations": 16, "diffusion_steps": "ddim5"},
    "guided in part": {"iterations": 4, "diffusion_steps": "ddim5", "cfg_scale": 2.0, "cfg_interval": (0.1, 0.5)},
    "shrinking chains": {
        "iterations": 3,
        "sampler": "dpm++2m-sde",
        "diffusion_steps": 9,
        "last_diffusion_steps": 4,
        "token_order": "checkerboard",
    },
}


class Counted:
    """An engine that remembers how many rows each call had."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rows: list[int] = []

    def __call__(self, **inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        self.rows.append(len(next(iter(inputs.values()))))
        return self.engine(**inputs)


@pytest.fixture(scope="module")
def model() -> MAR:
    return load_checkpoint(GOLDEN / "small" / "checkpoint-last.pth", GOLDEN / "small" / "meta.json").model


@pytest.fixture(scope="module")
def naive(model: MAR, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("naive") / "new"
    export_naive(model, folder)
    return folder


@pytest.fixture(scope="module")
def loaded(model: MAR, naive: pathlib.Path) -> Iterator[tuple[Engine, Engine]]:
    backend = OnnxRuntime("onnxruntime", 1)
    engines = NaiveEngines.load(backend, naive, model.config)
    yield engines.backbone, engines.head
    backend.close()


@pytest.fixture
def engines(loaded: tuple[Engine, Engine]) -> tuple[Counted, Counted]:
    return Counted(loaded[0]), Counted(loaded[1])


@pytest.fixture(scope="module")
def generator(golden_artifacts: dict[str, pathlib.Path]) -> Iterator[Generator]:
    with Generator.load(golden_artifacts["small"], threads=1) as generator:
        yield generator


def generate(
    engines: tuple[Counted, Counted], generator: Generator, times: dict[str, float], **settings: Any
) -> NDArray[Any]:
    config, plan = generator.manifest.model, generator.plan(**settings)
    order = seeded_order(0, range(len(LABELS)), config, plan.token_order)
    noise = seeded_noise(0, range(len(LABELS)), plan.diffusion_steps, config)
    tokens = NaiveEngines(config, *engines).sample(plan, np.array(LABELS), order, noise, times)
    assert tokens.dtype == np.float32
    return unpatchify(tokens, config.grid_shape, config.patch_size)


@pytest.mark.parametrize("name", SETTINGS)
def test_naive_loop_generates_the_images_of_the_runtime(
    engines: tuple[Counted, Counted], generator: Generator, name: str
) -> None:
    expected = generator.generate(LABELS, **SETTINGS[name]).latents
    assert relative_l2(generate(engines, generator, {}, **SETTINGS[name]), expected) <= GOLDEN_TOLERANCE


@pytest.mark.parametrize("case", [case for case in golden_cases() if case.model == "small"], ids=str)
def test_naive_loop_generates_the_golden_cases(
    engines: tuple[Counted, Counted], generator: Generator, case: Any
) -> None:
    config, plan = generator.manifest.model, generator.plan(**case.settings)
    tokens = NaiveEngines(config, *engines).sample(plan, case.labels, case.order, case.noise, {})
    assert relative_l2(unpatchify(tokens, config.grid_shape, config.patch_size), case.latents) <= GOLDEN_TOLERANCE


def test_both_graphs_are_called_for_the_halves_that_guidance_needs(
    engines: tuple[Counted, Counted], generator: Generator
) -> None:
    """Once an iteration and once a step; three images, six sequences where there is guidance."""
    settings = SETTINGS["guided in part"]
    generate(engines, generator, {}, **settings)
    iterations = generator.plan(**settings).iterations
    assert [iteration.guided for iteration in iterations] == [False, True, True, False]
    sequences = [6 if iteration.guided else 3 for iteration in iterations]
    assert engines[0].rows == sequences
    assert engines[1].rows == [
        batch * iteration.count for batch, iteration in zip(sequences, iterations, strict=True) for _ in range(5)
    ]


def test_times_are_added_up_in_backbone_and_head(engines: tuple[Counted, Counted], generator: Generator) -> None:
    times = {"backbone": 100.0}
    generate(engines, generator, times, **SETTINGS["unguided"])
    assert list(times) == ["backbone", "head"]
    assert times["backbone"] > 100
    assert times["head"] > 0


def test_backbone_returns_every_position_in_raster_order(model: MAR) -> None:
    """Its rows are those of the project's own backbone, for the masked tokens in any order."""
    config = model.config
    random = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(config.tokens, generator=random) for _ in range(2)])
    visible, masked = order[:, :6], order[:, 6:]
    known = torch.randn(2, 6, config.token_channels, generator=random)
    raster = torch.randn(2, config.tokens, config.token_channels, generator=random)  # what is masked is not read
    raster.scatter_(1, visible[..., None].expand_as(known), known)
    labels = torch.tensor([3, config.class_num])
    with torch.no_grad():
        every = NaiveBackbone(model).eval()(raster, visible, labels)
        expected = model.predict(known, visible, masked, masked[:, :0], labels)
    assert every.shape == (2, config.tokens, config.decoder_embed_dim)
    found = every.gather(1, masked[..., None].expand_as(expected))
    assert relative_l2(found.numpy(), expected.numpy()) <= 1e-5


def test_graphs_take_any_number_of_known_tokens_and_rows(model: MAR, loaded: tuple[Engine, Engine]) -> None:
    config: ModelConfig = model.config
    random = np.random.default_rng(0)
    for batch, known in ((1, 0), (2, 1), (3, config.tokens - 1)):
        tokens = random.standard_normal((batch, config.tokens, config.token_channels), np.float32)
        visible = np.tile(np.arange(known), (batch, 1))
        labels = np.full(batch, config.class_num)
        (found,) = loaded[0](tokens=tokens, visible=visible, labels=labels)
        with torch.no_grad():
            expected = NaiveBackbone(model).eval()(*map(torch.from_numpy, (tokens, visible, labels)))
        assert relative_l2(found, expected.numpy()) <= 1e-5
    for rows in (1, 9):
        x = random.standard_normal((rows, config.token_channels), np.float32)
        z = random.standard_normal((rows, config.decoder_embed_dim), np.float32)
        timesteps = np.linspace(0, 999, rows, dtype=np.float32)
        (found,) = loaded[1](x=x, timesteps=timesteps, z=z)
        with torch.no_grad():
            expected = model.diffloss.net(*map(torch.from_numpy, (x, timesteps, z)))
        assert relative_l2(found, expected.numpy()) <= 1e-5


def test_export_writes_two_files_with_the_names_of_their_graphs(
    naive: pathlib.Path, golden_artifacts: dict[str, pathlib.Path]
) -> None:
    config = Artifact(golden_artifacts["small"]).manifest.model
    assert sorted(file.name for file in naive.iterdir()) == sorted(f"{name}.onnx" for name in naive_specs(config))

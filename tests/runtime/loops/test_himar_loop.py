"""The two grids of a Hi-MAR: a preview first, the same image in any batch, and settings of its own for each grid."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mar_export.torch_backends.torch_cpu import eager_generator
from runtime.artifact.manifest import Manifest
from runtime.errors import BackendError, RequestError
from runtime.generator import Generator
from runtime.loops.lanes import in_lanes
from runtime.sampling.constraints import default_sampling
from runtime.sampling.noise_schedule import respaced_timesteps, training_schedule
from runtime.sampling.presets import PRESETS
from tests.helpers.bad_values import broken
from tests.helpers.distance import relative_l2
from tests.helpers.himar_cases import CASES, himar_case, himar_checkpoint
from tests.helpers.himar_cases import TINY_HIMAR as CONFIG
from training.models.himar import Himar

SHORT: dict[str, Any] = {
    "iterations": 3,
    "diffusion_steps": 3,
    "low_res_iterations": 4,
    "low_res_diffusion_steps": 3,
    "cfg_scale": 2.0,
    "start_timestep": 900,
}

EMPTY = Manifest(
    model=CONFIG,
    tokenizer="pixel",
    class_names=(),
    sampling=default_sampling(CONFIG),
    precision="fp32",
    files={},
    engines={},
    provenance={},
    parity={},
)
"""The manifest of an artifact without files."""


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    model = Himar(**CONFIG.to_dict()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return eager_generator(EMPTY, model)


def test_a_preview_comes_first_and_then_the_image(generator: Generator) -> None:
    shown: list[NDArray[np.uint8]] = []
    result = generator.generate([0, 1], progress=lambda *_: shown.append(generator.partial_images([1])), **SHORT)
    assert {each.shape for each in shown} == {(1, 16, 16, 1)}
    for preview in shown[:4]:  # of 8 x 8 pixels, enlarged
        assert np.array_equal(preview, preview[:, ::2, ::2].repeat(2, 1).repeat(2, 2))
    assert result.images is not None
    assert np.array_equal(shown[-1][0], result.images[1])
    known = [int((each != 128).any(-1).sum()) for each in shown[:4]]
    assert known == sorted(known)
    assert known[0] < known[-1]


@pytest.mark.parametrize(("name", "at"), [("backbone2", 1), ("conditioning2", 1), ("denoise2", 4)])
def test_no_engine_runs_after_an_iteration_of_the_full_grid_with_a_bad_value(
    generator: Generator, name: str, at: int
) -> None:
    """Of three iterations with three steps each, the second has the value."""
    engines = broken(generator.engines, name, math.nan, at)
    seen: list[int] = []
    with pytest.raises(BackendError, match=f"^engine {name} produced values that are not finite"):
        Generator(EMPTY, engines, "").generate([0, 1], progress=lambda done, _: seen.append(done), **SHORT)
    assert seen[-1] - SHORT["low_res_iterations"] <= 2


def test_an_image_is_the_same_alone_and_in_a_batch_and_in_lanes(generator: Generator) -> None:
    together = generator.generate([0, 2, 1], seed=7, index=[0, 5, 2], **SHORT).latents
    alone = generator.generate([2], seed=7, index=[5], **SHORT).latents
    assert relative_l2(together[1:2], alone) <= 1e-5
    whole = generator.loop
    generator.loop = in_lanes([whole, whole], whole)
    try:
        in_parts = generator.generate([0, 2, 1], seed=7, index=[0, 5, 2], **SHORT).latents
    finally:
        generator.loop = whole
    assert relative_l2(in_parts, together) <= 1e-5


def test_both_grids_have_iterations_guidance_and_chains_of_their_own(generator: Generator) -> None:
    plan = generator.plan(**{**SHORT, "low_res_cfg_scale": 1.0, "sampler": "dpm++2m", "low_res_sampler": "ddim"})
    assert plan.lengths == (16, 64)
    assert [len(plan.phase(number)) for number in range(2)] == [4, 3]
    assert not any(iteration.guided for iteration in plan.phase(0))
    assert all(iteration.guided for iteration in plan.phase(1))
    assert [iteration.noise_start for iteration in plan.iterations] == [0, 0, 0, 0, 0, 4, 8]
    assert plan.noise_steps == 11
    first, second = plan.iterations[0].table, plan.iterations[-1].table
    assert not np.array_equal(first.coefficients, second.coefficients)


def test_the_variance_of_the_full_grid_is_fixed(generator: Generator) -> None:
    table = generator.plan(diffusion_steps=250).phase(1)[0].table
    visited = respaced_timesteps(250)
    assert table.timesteps.tolist() == visited[::-1].tolist()
    levels = training_schedule().alphas_cumprod[visited][::-1]
    beta = 1 - levels[:-1] / levels[1:]
    assert table.coefficients[:-1, 5] == pytest.approx(np.sqrt(beta), rel=1e-6)
    assert table.coefficients[-1, 5] == 0
    assert not table.coefficients[:, 6:8].any()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_draws_both_grids(generator: Generator, name: str) -> None:
    plan = generator.plan(preset=name)
    assert sum(iteration.count for iteration in plan.phase(0)) == 16
    assert sum(iteration.count for iteration in plan.phase(1)) == 64


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "more iterations than small tokens": (
        {"low_res_iterations": 17},
        "the low-resolution grid, whose settings begin with low_res_: iterations must lie in 1..16",
    ),
    "a wrong setting of both grids": ({"temperature": -1.0}, "temperature must be a number in 0..1000"),
    "an unknown sampler": ({"low_res_sampler": "euler"}, "low_res_sampler must be one of ddpm, ddim, dpm++2m"),
    "a sampler of flows": ({"low_res_sampler": "flow-2m"}, "low_res_sampler must be one of ddpm, ddim, dpm++2m"),
    "a setting of NOVA": ({"cfg_truncation": 0.5}, "cfg_truncation belongs to models of the family nova"),
    "an order of one grid": ({"order": [list(range(64))]}, "order must have shape [1, 80], found [1, 64]"),
    "grids that are mixed": (
        {"order": [[16, *range(1, 16), 0, *range(17, 80)]]},
        "order: 0 to 15 of every row must be a permutation of 0..15",
    ),
    "noise of one grid": ({"noise": np.zeros((4, 1, 64, 4))}, "noise must be floating point of shape [12, 1, 80, 4]"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_request_is_one_line(generator: Generator, wrong: str) -> None:
    arguments, message = WRONG[wrong]
    with pytest.raises(RequestError) as caught:
        generator.generate([0], **{**SHORT, **arguments})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_edit_is_refused(generator: Generator) -> None:
    with pytest.raises(RequestError, match="a Hi-MAR draws a low-resolution grid of the whole image first"):
        generator.plan(known_tokens=3)


@pytest.mark.parametrize("file", CASES)
def test_the_modules_of_the_engines_draw_what_the_published_code_drew(file: str) -> None:
    checkpoint, case = himar_checkpoint(), himar_case(file)
    manifest = dataclasses.replace(EMPTY, model=checkpoint.model.config, tokenizer="none")
    with eager_generator(manifest, checkpoint.model) as generator:
        found = generator.generate(case.arrays["labels"], order=case.order, noise=case.noise, **case.settings).latents
    assert relative_l2(found, case.arrays["latents_float64"]) <= 1e-5

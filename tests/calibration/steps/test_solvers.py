"""Diffusion solvers without fresh noise."""

from __future__ import annotations

import dataclasses

import pytest

from calibration.steps.error_model import STEPS
from calibration.steps.solvers import REFERENCE, Solver, deterministic_solvers, is_deterministic
from runtime.generator import Generator
from runtime.sampling.plan import build_plan
from runtime.sampling.presets import PRESETS
from runtime.sampling.samplers import SAMPLERS
from runtime.sampling.settings import Sampling
from tests.helpers.step_search import SCHEDULE


def test_every_sampler_without_noise_appears_once_with_each_start() -> None:
    solvers = deterministic_solvers()
    assert {solver.sampler for solver in solvers} == {"ddim", "dpm++2m"}
    assert {solver.sampler for solver in solvers} < set(SAMPLERS)
    assert REFERENCE in solvers
    starts = [
        (solver.sampler, build_plan(16, solver.sampling(SCHEDULE, 5)).iterations[0].table.timesteps[0])
        for solver in solvers
    ]
    assert len(set(starts)) == len(starts)
    assert all(is_deterministic(build_plan(16, solver.sampling(SCHEDULE, max(STEPS)))) for solver in solvers)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_plan_is_deterministic_unless_its_chains_add_noise(preset: str, small_generator: Generator) -> None:
    assert is_deterministic(small_generator.plan(preset=preset)) == (preset != "exact")
    assert not is_deterministic(small_generator.plan(preset="fast", eta=0.5))
    assert is_deterministic(small_generator.plan(preset="exact", temperature=0.0))


def test_a_solver_replaces_only_the_diffusion_settings_of_a_schedule() -> None:
    other = Sampling(iterations=3, cfg_scale=2.0, mask_schedule="linear", last_diffusion_steps=4, start_timestep=900)
    found = Solver("ddim").sampling(dataclasses.replace(other, eta=0.5), [5, 4, 3])
    expected = {"sampler": "ddim", "diffusion_steps": (5, 4, 3), "start_timestep": None, "last_diffusion_steps": None}
    assert found == dataclasses.replace(other, eta=0.0, **expected)

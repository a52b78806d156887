"""The order of convergence of every sampler, where the solution is known: tokens that are Gaussian."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.numerics.convergence import (
    FAMILIES,
    START,
    Sizes,
    Solver,
    Step,
    brownian_noise,
    measure_family,
    orders,
    run_chain,
    strong_error,
    weak_error,
    without_noise,
)
from mar_export.graphs.diffusion_head import next_state
from runtime.sampling.noise_schedule import TRAIN_STEPS, continuous_alphas_cumprod

MEAN, SPREAD = 0.7, 0.5  # of the tokens
SHAPE = (64, 2)
FIRST = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def diffusion_step(
    x: Tensor, previous_x0: Tensor, noise: Tensor, timestep: float, row: Tensor
) -> tuple[Tensor, Tensor]:
    """The best head for Gaussian tokens: E[eps | x]; and v = 1, the larger variance."""
    alpha = float(continuous_alphas_cumprod(np.array([timestep]))[0])
    signal, sigma = math.sqrt(alpha), math.sqrt(1 - alpha)
    eps = sigma * (x - signal * MEAN) / (signal**2 * SPREAD**2 + sigma**2)
    return next_state(x, eps, previous_x0, noise, row, torch.ones_like(x))


def flow_step(x: Tensor, previous_x0: Tensor, noise: Tensor, timestep: float, row: Tensor) -> tuple[Tensor, Tensor]:
    """E[noise - x0 | x] of the straight path."""
    t = timestep / TRAIN_STEPS
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    velocity = -MEAN + (t - (1 - t) * SPREAD**2) / variance * (x - (1 - t) * MEAN)
    return next_state(x, velocity, previous_x0, noise, row, torch.ones_like(x))


def diffusion_solution(x: Tensor) -> Tensor:
    """The tokens at the end of dx/dt: the number of standard deviations from the mean stays the same down to t = 0."""

    def levels(timestep: float) -> tuple[float, float]:
        alpha = float(continuous_alphas_cumprod(np.array([timestep]))[0])
        return math.sqrt(alpha), math.sqrt(1 - alpha)

    signal, sigma = levels(START)
    deviations = (x - signal * MEAN) / math.hypot(signal * SPREAD, sigma)
    signal, sigma = levels(0)
    last = signal * MEAN + math.hypot(signal * SPREAD, sigma) * deviations
    # The last step returns E[x0 | x] at t = 0.
    return MEAN + signal * SPREAD**2 / (signal**2 * SPREAD**2 + sigma**2) * (last - signal * MEAN)


@pytest.mark.parametrize(
    ("solver", "step", "order"),
    [
        (Solver("ddim"), diffusion_step, 1),
        (Solver("dpm++2m"), diffusion_step, 2),
        (Solver("flow-euler"), flow_step, 1),
        (Solver("flow-2m"), flow_step, 2),
    ],
    ids=["ddim", "dpm++2m", "flow-euler", "flow-2m"],
)
def test_a_solver_without_noise_has_its_order_on_a_known_solution(solver: Solver, step: Step, order: int) -> None:
    expected = diffusion_solution(FIRST) if step is diffusion_step else MEAN + SPREAD * FIRST
    errors = {
        intervals: strong_error(run_chain(step, FIRST, without_noise(FIRST), solver, intervals), expected)
        for intervals in (1024, 2048)
    }
    assert errors[2048] < 0.01
    # The error of flow-2m falls as log(n) / n^2, with the logarithm of 1/t from its integral.
    assert orders(errors)[-1] == pytest.approx(order, abs=0.2 if solver.sampler == "flow-2m" else 0.1)


@pytest.mark.parametrize("solver", FAMILIES["diffusion with fresh noise"], ids=str)
def test_solvers_with_noise_converge_to_the_same_tokens_on_one_brownian_path(solver: Solver) -> None:
    def chain(solver: Solver, intervals: int) -> Tensor:
        noise = brownian_noise(SHAPE, intervals, 1024, torch.float64)
        return run_chain(diffusion_step, FIRST, noise, solver, intervals)

    reference = chain(Solver("dpm++2m-sde"), 1024)
    errors = {intervals: strong_error(chain(solver, intervals), reference) for intervals in (32, 64, 128)}
    assert errors[128] < 0.1
    assert np.mean(orders(errors)) == pytest.approx(1, abs=0.3)


def test_the_noise_of_a_long_step_is_the_sum_of_that_of_short_steps() -> None:
    fine, coarse = (brownian_noise((500, 2), intervals, 8, torch.float64) for intervals in (8, 2))
    torch.testing.assert_close(coarse(1), (fine(4) + fine(5) + fine(6) + fine(7)) / 2)
    assert float(coarse(0).std()) == pytest.approx(1, abs=0.1)
    assert not coarse(2).any()  # the step to the clean token


def test_the_weak_error_is_that_of_the_mean_without_chance() -> None:
    random = np.random.default_rng(0)
    reference = torch.from_numpy(1 + random.standard_normal((200 * 16, 2)))
    chance = torch.from_numpy(0.5 * random.standard_normal(reference.shape))
    assert weak_error(reference + 0.1 + chance, reference, 16) == pytest.approx(0.1, rel=0.1)
    assert weak_error(reference + chance, reference, 16) < 0.06  # without the subtraction it is 0.125


def test_an_error_that_halves_has_order_1_and_one_that_is_quartered_order_2() -> None:
    assert orders({8: 0.4, 16: 0.2, 32: 0.05}) == [1, 2]


def test_every_solver_of_a_family_is_measured() -> None:
    sizes = Sizes(
        tokens=8, noisy_tokens=4, draws=4, reference=64, noisy_reference=32, intervals=(8, 16), noisy_intervals=(8, 16)
    )
    steps = dict.fromkeys(FAMILIES, diffusion_step) | {"flow": flow_step}
    rows = [
        row
        for family, step in steps.items()
        for row in measure_family(family, lambda count, draws, guided, dtype, step=step: step, True, 2, sizes)
    ]
    assert [row["solver"] for row in rows] == [str(solver) for solvers in FAMILIES.values() for solver in solvers]
    assert all(set(row["strong"]) == {"8", "16"} for row in rows)
    assert [row["solver"] for row in rows if "weak" in row] == ["dpm++2m-sde", "ddpm", "ddim, eta 1"]

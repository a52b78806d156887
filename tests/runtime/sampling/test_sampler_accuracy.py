"""The accuracy of every sampler for a few Gaussians, whose exact eps takes the place of a network.

Rows are applied as the docstring of `runtime.sampling.samplers` has it, in float64.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.model.coefficients import COEFFICIENTS
from runtime.sampling.samplers import DIFFUSION_SAMPLERS, CoefficientTable, coefficient_table

Floats = NDArray[np.float64]
# eps of x at a signal and a noise level: sigma E[eps | x], the score times -sigma.
Eps = Callable[[Floats, float, float], Floats]

KINDS: list[tuple[str, float]] = [*((sampler, 0.0) for sampler in DIFFUSION_SAMPLERS), ("ddim", 1.0)]
DRAWS = 2000

# Three unlike Gaussians in three dimensions.
MEANS = np.array([[1.2, 0.0, -0.4], [-0.8, 0.9, 0.3], [-0.5, -1.1, 0.2]])
WEIGHTS = np.array([0.5, 0.3, 0.2])
VARIANCE = 0.09
MEAN = WEIGHTS @ MEANS
COVARIANCE = (MEANS - MEAN).T @ (WEIGHTS[:, None] * (MEANS - MEAN)) + VARIANCE * np.eye(3)

# One Gaussian in one dimension, for which the result of a linear sampler has a closed form.
ONE_MEAN, ONE_VARIANCE = 0.7, 0.25


def mixture_eps(x: Floats, signal: float, sigma: float) -> Floats:
    variance = signal**2 * VARIANCE + sigma**2
    apart = x[:, None] - signal * MEANS  # [N, 3, D]
    log_share = np.log(WEIGHTS) - np.square(apart).sum(-1) / (2 * variance)
    share = np.exp(log_share - log_share.max(axis=1, keepdims=True))
    share /= share.sum(axis=1, keepdims=True)
    return sigma / variance * (share[..., None] * apart).sum(axis=1)


def single_eps(x: Floats, signal: float, sigma: float) -> Floats:
    return sigma * (x - signal * ONE_MEAN) / (signal**2 * ONE_VARIANCE + sigma**2)


def rows_of(table: CoefficientTable) -> list[dict[str, float]]:
    return [dict(zip(COEFFICIENTS, row, strict=True)) for row in table.coefficients.astype(np.float64).tolist()]


def level(row: dict[str, float]) -> tuple[float, float]:
    """Signal and noise level."""
    return 1 / row["x0_from_x"], -row["x0_from_eps"] / row["x0_from_x"]


def scale_of_noise(row: dict[str, float]) -> float:
    """The middle between the bounds of the variance, as if the output v of the head were 0."""
    return row["noise_scale"] * float(np.exp((row["log_variance_low"] + row["log_variance_high"]) / 4))


def run_chain(table: CoefficientTable, eps: Eps, x: Floats, random: np.random.Generator | None, error: float) -> Floats:
    """x after all rows; `error` is the standard deviation of what the network has wrong."""
    x0 = np.zeros_like(x)
    for row in rows_of(table):
        found = eps(x, *level(row))
        if error and random is not None:
            found = found + error * random.standard_normal(x.shape)
        previous_x0, x0 = x0, row["x0_from_x"] * x + row["x0_from_eps"] * found
        x = row["x_from_x"] * x + row["x_from_x0"] * x0 + row["x_from_previous_x0"] * previous_x0
        if random is not None and row["noise_scale"]:
            x = x + scale_of_noise(row) * random.standard_normal(x.shape)
    return x


def samples(table: CoefficientTable, error: float = 0.0) -> Floats:
    """Draws of the mixture."""
    random = np.random.default_rng(1)
    return run_chain(table, mixture_eps, random.standard_normal((DRAWS, 3)), random, error)


def distances(one: Floats, other: Floats) -> Floats:
    squared = np.square(one).sum(1)[:, None] + np.square(other).sum(1) - 2 * one @ other.T
    root: Floats = np.sqrt(np.maximum(squared, 0))
    return root


@functools.cache
def truth() -> tuple[Floats, float]:
    """Exact samples of the mixture, and their mean distance from each other."""
    random = np.random.default_rng(9)
    draws = MEANS[random.choice(3, size=DRAWS, p=WEIGHTS)] + VARIANCE**0.5 * random.standard_normal((DRAWS, 3))
    return draws, float(distances(draws, draws).sum() / (DRAWS * (DRAWS - 1)))


def energy_distance(draws: Floats) -> float:
    """The unbiased energy distance to the true distribution: 0 within 0.002 for exact samples."""
    true, own = truth()
    among = distances(draws, draws).sum() / (DRAWS * (DRAWS - 1))
    return float(2 * distances(draws, true).mean() - among - own)


# The distribution that comes out.


@pytest.mark.parametrize(("sampler", "eta"), KINDS)
def test_samples_approach_the_true_distribution_with_more_steps(sampler: str, eta: float) -> None:
    few, some, many = (samples(coefficient_table(sampler, steps, 1.0, eta)) for steps in (4, 10, 80))
    assert energy_distance(few) > 2 * (of_some := energy_distance(some))
    assert of_some > 0.001
    assert abs(energy_distance(many)) < 0.002
    # Five standard deviations of the mean, and of an entry of the covariance, of as many exact samples.
    assert np.abs(many.mean(axis=0) - MEAN).max() < 5 * (COVARIANCE.max() / DRAWS) ** 0.5
    assert np.abs(np.cov(many.T) - COVARIANCE).max() < 5 * COVARIANCE.max() * (2 / DRAWS) ** 0.5
    spread = [np.abs(np.cov(draws.T) - COVARIANCE).max() for draws in (few, many)]
    assert spread[0] > 3 * spread[1]


def moments(table: CoefficientTable) -> tuple[float, float]:
    """Mean and variance of what a chain makes of the one Gaussian, by propagating both through its rows."""
    mean, covariance = np.zeros(2), np.diag([1.0, 0.0])  # of x and the x0 of the step before
    for row in rows_of(table):
        slope = (single_eps(np.array([1.0]), *level(row)) - single_eps(np.array([0.0]), *level(row))).item()
        offset = single_eps(np.array([0.0]), *level(row)).item()
        x0_slope, x0_offset = row["x0_from_x"] + row["x0_from_eps"] * slope, row["x0_from_eps"] * offset
        step = np.array([[row["x_from_x"] + row["x_from_x0"] * x0_slope, row["x_from_previous_x0"]], [x0_slope, 0]])
        mean = step @ mean + x0_offset * np.array([row["x_from_x0"], 1])
        covariance = step @ covariance @ step.T
        covariance[0, 0] += scale_of_noise(row) ** 2
    return float(mean[0]), float(covariance[0, 0])


@pytest.mark.parametrize(
    ("sampler", "eta", "order"),
    [("ddpm", 0, 1), ("ddim", 0, 1), ("ddim", 1, 1), ("dpm++2m", 0, 2), ("dpm++2m-sde", 0, 2)],
)
def test_the_moments_of_a_gaussian_converge_at_the_order_of_the_sampler(sampler: str, eta: float, order: int) -> None:
    found = [moments(coefficient_table(sampler, steps, 1.0, eta)) for steps in (60, 240, 960)]
    # At the first noise level a little of the mean is left, which a start of mean zero does not have.
    assert all(abs(mean - ONE_MEAN) < 0.02 for mean, _ in found)
    off = [abs(variance - ONE_VARIANCE) for _, variance in found]
    assert off[2] < 0.005
    assert order - 0.25 < np.log(off[0] / off[2]) / np.log(16) < order + 0.25


# The path of one image, without noise: the exact solution of the probability flow from the same start.


def single_flow(table: CoefficientTable, x: Floats) -> Floats:
    """The exact solution of the flow at the last row: the quantiles of a Gaussian do not change."""
    (signal, sigma), (end_signal, end_sigma) = level(rows_of(table)[0]), level(rows_of(table)[-1])
    deviation = (x - signal * ONE_MEAN) / (signal**2 * ONE_VARIANCE + sigma**2) ** 0.5
    return end_signal * ONE_MEAN + (end_signal**2 * ONE_VARIANCE + end_sigma**2) ** 0.5 * deviation


def mixture_flow(table: CoefficientTable, x: Floats) -> Floats:
    """The same for the mixture: d(x / signal) / d(sigma / signal) = eps (DDIM, eq. 14), by Runge-Kutta."""
    (signal, sigma), (end_signal, end_sigma) = level(rows_of(table)[0]), level(rows_of(table)[-1])
    ratios = np.geomspace(sigma / signal, end_sigma / end_signal, 400)

    def slope(at: float, scaled: Floats) -> Floats:
        own_signal = (1 + at**2) ** -0.5
        return at * mixture_eps(scaled * own_signal, own_signal, at * own_signal)  # by the logarithm of the ratio

    scaled = x / signal
    for here, there in itertools.pairwise(ratios):
        step, between = np.log(there / here), (here * there) ** 0.5
        first = slope(here, scaled)
        second = slope(between, scaled + step / 2 * first)
        third = slope(between, scaled + step / 2 * second)
        fourth = slope(there, scaled + step * third)
        scaled = scaled + step / 6 * (first + 2 * second + 2 * third + fourth)
    return scaled * end_signal


FLOWS: dict[str, tuple[Eps, Callable[[CoefficientTable, Floats], Floats], Floats]] = {
    "one Gaussian": (single_eps, single_flow, np.linspace(-2, 2, 9)[:, None]),
    "mixture": (mixture_eps, mixture_flow, np.random.default_rng(3).standard_normal((100, 3))),
}


@pytest.mark.parametrize("target", FLOWS)
@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpm++2m", 2)])
def test_a_sampler_without_noise_follows_the_probability_flow_at_its_order(
    sampler: str, order: int, target: str
) -> None:
    eps, flow, start = FLOWS[target]
    steps = np.array([80, 160, 320, 640])
    off = []
    for count in steps:
        table = coefficient_table(sampler, int(count))
        last, end = rows_of(table)[-1], flow(table, start)
        expected = last["x0_from_x"] * end + last["x0_from_eps"] * eps(end, *level(last))
        off.append(np.abs(run_chain(table, eps, start, None, 0.0) - expected).mean())
    slope = -np.polyfit(np.log(steps), np.log(off), 1)[0]
    assert order - 0.25 < slope < order + 0.25
    assert off[-1] < 0.01


# What the first timestep is for.


@pytest.mark.parametrize(("steps", "off"), [(10, 0.1), (25, 0.005)])
def test_a_network_with_small_errors_needs_a_lower_start_of_ddpm_than_published(steps: int, off: float) -> None:
    default, published = (
        energy_distance(samples(coefficient_table("ddpm", steps, start=start), error=0.01)) for start in (None, 999)
    )
    assert default < 0.002
    assert published > off


@pytest.mark.parametrize(("sampler", "eta"), KINDS)
def test_every_sampler_tolerates_a_network_with_small_errors_from_its_own_start(sampler: str, eta: float) -> None:
    assert energy_distance(samples(coefficient_table(sampler, 25, 1.0, eta), error=0.01)) < 0.02

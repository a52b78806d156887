"""The rows of flow samplers, against the straight path and the Gaussians whose exact velocity is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import RequestError
from runtime.model.coefficients import BOUNDS, COEFFICIENTS
from runtime.sampling.noise_schedule import TRAIN_STEPS
from runtime.sampling.samplers import FLOW_SAMPLERS, CoefficientTable, coefficient_table

Floats = NDArray[np.float64]
KINDS: list[tuple[str, float]] = [
    *((sampler, 0.0) for sampler in FLOW_SAMPLERS),
    ("flow-euler", 0.5),
    ("flow-euler", 1.0),
]
MEAN, VARIANCE = 0.7, 0.25  # of the tokens, one Gaussian


def rows_of(table: CoefficientTable) -> list[dict[str, float]]:
    return [dict(zip(COEFFICIENTS, row, strict=True)) for row in table.coefficients.astype(np.float64).tolist()]


def times(table: CoefficientTable) -> tuple[Floats, Floats]:
    """The time of every row and of the row after it."""
    t = table.timesteps.astype(np.float64) / TRAIN_STEPS
    return t, np.append(t[1:], 0.0)


def velocity(x: Floats, t: float) -> Floats:
    """E[noise - x0 | x] on the path from that Gaussian to noise."""
    slope = (t - (1 - t) * VARIANCE) / ((1 - t) ** 2 * VARIANCE + t**2)
    return slope * (x - (1 - t) * MEAN) - MEAN


def followed(table: CoefficientTable, x: Floats) -> Floats:
    """x after all rows, without noise, as the engine applies them."""
    x0 = np.zeros_like(x)
    for row, t in zip(rows_of(table), times(table)[0].tolist(), strict=True):
        previous_x0, x0 = x0, row["x0_from_x"] * x + row["x0_from_eps"] * velocity(x, t)
        x = row["x_from_x"] * x + row["x_from_x0"] * x0 + row["x_from_previous_x0"] * previous_x0
    return x


def moments(table: CoefficientTable) -> tuple[float, float]:
    """Mean and variance of what a chain makes of that Gaussian, by propagating both through its rows."""
    mean, covariance = np.zeros(2), np.diag([1.0, 0.0])  # of x and the x0 of the step before
    for row, t in zip(rows_of(table), times(table)[0].tolist(), strict=True):
        offset = velocity(np.zeros(1), t).item()
        slope = velocity(np.ones(1), t).item() - offset
        x0_slope, x0_offset = row["x0_from_x"] + row["x0_from_eps"] * slope, row["x0_from_eps"] * offset
        step = np.array([[row["x_from_x"] + row["x_from_x0"] * x0_slope, row["x_from_previous_x0"]], [x0_slope, 0]])
        mean = step @ mean + x0_offset * np.array([row["x_from_x0"], 1])
        covariance = step @ covariance @ step.T
        covariance[0, 0] += row["noise_scale"] ** 2
    return float(mean[0]), float(covariance[0, 0])


@pytest.mark.parametrize(("sampler", "eta"), KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_rows_are_finite_and_run_from_pure_noise_in_even_steps(sampler: str, eta: float, steps: int) -> None:
    table = coefficient_table(sampler, steps, 0.9, eta)
    assert table.coefficients.shape == (steps, len(COEFFICIENTS))
    assert np.isfinite(table.coefficients[:, : -len(BOUNDS)]).all()
    np.testing.assert_allclose(table.timesteps, 1000 * np.arange(steps, 0, -1) / steps, rtol=1e-6)


@pytest.mark.parametrize(("sampler", "eta"), KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_every_row_moves_a_known_token_to_the_next_point_of_its_path(sampler: str, eta: float, steps: int) -> None:
    """Of x = (1 - t) x0 + t noise, with x0 found both times, a row makes (1 - t') x0 + t' noise'."""
    table = coefficient_table(sampler, steps, 1.0, eta)
    (t, after), columns = (
        times(table),
        dict(zip(COEFFICIENTS, table.coefficients.T, strict=True)),
    )
    np.testing.assert_allclose(columns["x0_from_x"], 1)
    np.testing.assert_allclose(columns["x0_from_eps"], -t, rtol=1e-6)  # x0 = x - t v
    share = columns["x_from_x"] * (1 - t) + columns["x_from_x0"] + columns["x_from_previous_x0"]
    np.testing.assert_allclose(share, 1 - after, rtol=2e-6, atol=1e-6)
    variance = np.square(columns["x_from_x"] * t) + np.square(columns["noise_scale"])
    np.testing.assert_allclose(variance, np.square(after), rtol=4e-6, atol=1e-12)
    assert (columns["log_variance_low"] == 0).all()  # sigma(v) is 1 whatever the head's other half says
    assert (columns["log_variance_high"] == 0).all()


@pytest.mark.parametrize(("sampler", "eta"), KINDS)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_last_row_returns_x0(sampler: str, eta: float, steps: int) -> None:
    last = rows_of(coefficient_table(sampler, steps, 1.0, eta))[-1]
    assert last["x_from_x0"] == 1
    assert last["x_from_x"] == last["x_from_previous_x0"] == last["noise_scale"] == 0


def test_an_euler_step_adds_the_velocity_times_the_step() -> None:
    table = coefficient_table("flow-euler", 7)
    x, v = np.array([0.3, -1.2]), np.array([0.8, 0.1])
    for row, t, after in zip(rows_of(table), *map(np.ndarray.tolist, times(table)), strict=True):
        found = row["x_from_x"] * x + row["x_from_x0"] * (x - t * v)
        np.testing.assert_allclose(found, x + (after - t) * v, rtol=1e-6)


def test_second_order_steps_are_exact_if_x0_is_linear_in_time() -> None:
    """dx/dt = (x - x0) / t with x0 = a + b t is solved by x = c t + a - b t log t."""
    a, b = 0.4, -0.9
    table = coefficient_table("flow-2m", 5)
    (t, after), rows = times(table), rows_of(table)
    x = 1.3
    for step in (1, 2, 3):  # the inner ones
        row = rows[step]
        found = (
            row["x_from_x"] * x
            + row["x_from_x0"] * (a + b * t[step])
            + row["x_from_previous_x0"] * (a + b * t[step - 1])
        )
        constant = (x - a) / t[step] + b * np.log(t[step])
        assert found == pytest.approx(constant * after[step] + a - b * after[step] * np.log(after[step]), rel=1e-6)


@pytest.mark.parametrize(("sampler", "eta", "order"), [("flow-euler", 0, 1), ("flow-euler", 1, 1), ("flow-2m", 0, 2)])
def test_the_moments_of_a_gaussian_converge_at_the_order_of_the_sampler(sampler: str, eta: float, order: int) -> None:
    found = [moments(coefficient_table(sampler, steps, 1.0, eta)) for steps in (60, 240, 960)]
    assert all(abs(mean - MEAN) < 1e-5 for mean, _ in found)
    off = [abs(variance - VARIANCE) for _, variance in found]
    assert off[2] < 0.002
    assert order - 0.3 < np.log(off[0] / off[2]) / np.log(16) < order + 0.3


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS)
def test_a_chain_without_noise_ends_at_the_solution_of_the_flow(sampler: str) -> None:
    """A Gaussian's quantiles stay what they are: x at t = 1 is the deviation from the mean."""
    x = np.linspace(-2, 2, 9)
    found = followed(coefficient_table(sampler, 400), x)
    np.testing.assert_allclose(found, MEAN + VARIANCE**0.5 * x, atol=0.01)


def test_temperature_scales_the_noise_of_a_step_and_nothing_else() -> None:
    hot, plain = (coefficient_table("flow-euler", 6, value, 1.0).coefficients.copy() for value in (0.5, 1.0))
    noise = COEFFICIENTS.index("noise_scale")
    assert plain[:-1, noise].all()
    np.testing.assert_allclose(hot[:, noise], 0.5 * plain[:, noise], rtol=1e-6)
    hot[:, noise] = plain[:, noise] = 0
    np.testing.assert_array_equal(hot, plain)


BAD: list[tuple[dict[str, Any], str]] = [
    *(({"sampler": name, "steps": 0}, "diffusion_steps must lie in 1..1000, found 0") for name in FLOW_SAMPLERS),
    *(({"sampler": name, "steps": "ddim10"}, "'ddim10' spaces the steps of ddpm and ddim") for name in FLOW_SAMPLERS),
    *(
        ({"sampler": name, "start": 900}, "start_timestep belongs to the samplers of a diffusion")
        for name in FLOW_SAMPLERS
    ),
    ({"sampler": "flow-2m", "eta": 0.5}, "eta belongs to the samplers ddim and flow-euler, found eta 0.5 with flow-2m"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=str)
def test_settings_that_a_flow_does_not_support_are_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as refusal:
        coefficient_table(**({"steps": 10} | arguments))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)

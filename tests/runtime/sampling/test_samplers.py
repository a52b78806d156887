"""The rows of every sampler, against the closed forms and the Gaussians that they stand for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.errors import RequestError
from runtime.model.coefficients import BOUNDS, COEFFICIENTS
from runtime.sampling.noise_schedule import TRAIN_STEPS, respaced_timesteps, training_schedule
from runtime.sampling.samplers import DIFFUSION_SAMPLERS, SAMPLERS, CoefficientTable, coefficient_table

Floats = NDArray[np.float64]

HALF_ULP = 2.0**-24 * 1.001  # one rounding to float32, and room for the 1e-11 that float64 loses to cancellation
SPACINGS = (TRAIN_STEPS, 100, 10, 2, "ddim1000", "ddim50", "ddim20", "ddim2")
STEPS = (2, 3, 10, 50, 200)
# Every sampler, ddim with every kind of noise.
KINDS: list[tuple[str, float]] = [*((sampler, 0.0) for sampler in DIFFUSION_SAMPLERS), ("ddim", 0.5), ("ddim", 1.0)]
MULTISTEP = ("dpm++2m", "dpm++2m-sde")
# Times that every sampler can share: whole numbers, evenly spread.
SHARED: dict[str, Any] = {"steps": 12, "start": 990}


def curve(timesteps: Floats) -> Floats:
    """Alpha-bar of the cosine schedule at any time but the last, where its beta is capped."""

    def cosine(t: float) -> float:
        return math.cos((t / TRAIN_STEPS + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([cosine(t + 1) / cosine(0) for t in timesteps])


def alphas_cumprod(timesteps: Floats) -> Floats:
    """The same, the last training step included."""
    last = TRAIN_STEPS - 1
    capped = curve(np.array([last - 1.0])) * (1 - 0.999)
    return np.where(timesteps == last, capped, curve(timesteps))


def column(table: CoefficientTable, name: str) -> Floats:
    return table.coefficients[:, COEFFICIENTS.index(name)].astype(np.float64)


def kept_alphas_cumprod(table: CoefficientTable) -> Floats:
    return alphas_cumprod(table.timesteps.astype(np.float64))  # in the order of execution, noisy to clean


def levels(table: CoefficientTable) -> tuple[Floats, Floats, Floats, Floats]:
    """Signal and noise levels of every row and of the one after it, as the columns that give x0 imply them."""
    signal = 1 / column(table, "x0_from_x")
    sigma = -column(table, "x0_from_eps") * signal
    return signal, sigma, np.append(signal[1:], 1.0), np.append(sigma[1:], 0.0)


def own_variance(table: CoefficientTable) -> Floats:
    """Of the noise of every row where the head says v = -1."""
    return np.square(column(table, "noise_scale")) * np.exp(column(table, "log_variance_low"))


# Rows of any sampler.


@pytest.mark.parametrize(("sampler", "eta"), KINDS)
@pytest.mark.parametrize("steps", STEPS)
def test_a_table_is_contiguous_float32_as_the_engine_reads_it(sampler: str, eta: float, steps: int) -> None:
    table = coefficient_table(sampler, steps, 0.9, eta)
    for array in (table.timesteps, table.coefficients):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
    assert np.isfinite(table.timesteps).all()
    assert np.isfinite(table.coefficients[:, : -len(BOUNDS)]).all()
    assert (table.coefficients[:, -len(BOUNDS) :] == [-np.inf, np.inf]).all()
    assert table.coefficients.shape == (steps, len(COEFFICIENTS))
    assert table.steps == len(table.timesteps) == steps


@pytest.mark.parametrize(("sampler", "eta"), KINDS)
@pytest.mark.parametrize("steps", STEPS)
def test_rows_run_from_noisy_to_clean_at_the_noise_of_their_times(sampler: str, eta: float, steps: int) -> None:
    table = coefficient_table(sampler, steps, 1.0, eta)
    signal, sigma, _, _ = levels(table)
    assert (np.diff(table.timesteps) < 0).all()
    assert table.timesteps[-1] == 0
    # A time near the last is rounded to float32 by 3e-5, where alpha-bar changes by 40% in each step.
    np.testing.assert_allclose(np.square(signal), kept_alphas_cumprod(table), rtol=4e-5)
    np.testing.assert_allclose(np.square(signal) + np.square(sigma), 1, rtol=1e-6)


@pytest.mark.parametrize(("sampler", "eta"), KINDS)
@pytest.mark.parametrize("steps", STEPS)
def test_every_row_takes_a_known_image_to_the_next_noise_level(sampler: str, eta: float, steps: int) -> None:
    """Of x = signal x0 + sigma e, with x0 found both times, a row makes next_signal x0 + next_sigma e'."""
    table = coefficient_table(sampler, steps, 1.0, eta)
    signal, sigma, next_signal, next_sigma = levels(table)
    share = column(table, "x_from_x") * signal + column(table, "x_from_x0") + column(table, "x_from_previous_x0")
    variance = np.square(column(table, "x_from_x") * sigma) + own_variance(table)
    np.testing.assert_allclose(share, next_signal, rtol=1e-6)
    np.testing.assert_allclose(variance, np.square(next_sigma), rtol=4e-6, atol=1e-12)


@pytest.mark.parametrize(("sampler", "eta"), KINDS)
@pytest.mark.parametrize("steps", STEPS)
def test_the_last_row_returns_x0_without_noise(sampler: str, eta: float, steps: int) -> None:
    last = dict(zip(COEFFICIENTS, coefficient_table(sampler, steps, 1.0, eta).coefficients[-1], strict=True))
    assert last["x_from_x0"] == 1
    assert last["x_from_x"] == last["x_from_previous_x0"] == last["noise_scale"] == 0


@given(st.sampled_from(KINDS), st.floats(0, 8, width=32))
def test_temperature_scales_the_noise_and_nothing_else(kind: tuple[str, float], temperature: float) -> None:
    sampler, eta = kind
    scaled, plain = (coefficient_table(sampler, 10, value, eta).coefficients.copy() for value in (temperature, 1.0))
    noise = COEFFICIENTS.index("noise_scale")
    expected = temperature * plain[:, noise].astype(np.float64)
    np.testing.assert_allclose(scaled[:, noise], expected, rtol=2 * HALF_ULP, atol=1e-44)
    scaled[:, noise] = plain[:, noise] = 0
    np.testing.assert_array_equal(scaled, plain)


@given(st.floats(min_value=0, allow_infinity=False))
def test_a_temperature_is_refused_or_gives_finite_rows(temperature: float) -> None:
    try:
        table = coefficient_table("ddpm", 10, temperature)
    except RequestError as refusal:
        assert repr(temperature) in str(refusal)
    else:
        assert np.isfinite(table.coefficients[:, : -len(BOUNDS)]).all()


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++2m-sde"])
def test_samplers_with_noise_add_it_in_every_row_but_the_last(sampler: str) -> None:
    assert (column(coefficient_table(sampler, 10), "noise_scale")[:-1] > 0).all()


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m"])
def test_samplers_without_noise_add_none(sampler: str) -> None:
    assert (column(coefficient_table(sampler, 10), "noise_scale") == 0).all()


@pytest.mark.parametrize("sampler", ["ddim", *MULTISTEP])
def test_only_ddpm_uses_the_learned_variance(sampler: str) -> None:
    """Both bounds zero: sigma(v) is 1 whatever the head says."""
    table = coefficient_table(sampler, 10)
    assert (column(table, "log_variance_low") == 0).all()
    assert (column(table, "log_variance_high") == 0).all()


# Where a chain starts.


@given(st.integers(2, 1000))
def test_ddpm_starts_at_999_with_100_steps_or_more_and_lower_with_fewer(steps: int) -> None:
    table = coefficient_table("ddpm", steps)
    assert table.timesteps[0] == (999 if steps >= 100 else 950)
    assert table.timesteps.tolist() == respaced_timesteps(steps, int(table.timesteps[0]))[::-1].tolist()


@pytest.mark.parametrize("steps", ["ddim1000", "ddim100", "ddim20", "ddim2"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_ddim_spacings_are_as_published(sampler: str, steps: str) -> None:
    stride = TRAIN_STEPS // int(steps.removeprefix("ddim"))
    published = respaced_timesteps(steps)[::-1]
    assert coefficient_table(sampler, steps).timesteps.tolist() == published.tolist()
    assert published[-1] == 0
    assert set(np.diff(published)) == {-stride}


@pytest.mark.parametrize("steps", [2, 10, 100, 900])
def test_ddim_starts_at_980(steps: int) -> None:
    assert coefficient_table("ddim", steps).timesteps[0] == 980


@pytest.mark.parametrize("sampler", MULTISTEP)
@pytest.mark.parametrize("steps", [2, 10, 100])
def test_multistep_solvers_start_at_a_log_signal_to_noise_of_minus_5_1(sampler: str, steps: int) -> None:
    signal, sigma, _, _ = levels(coefficient_table(sampler, steps))
    assert abs(math.log(signal[0] / sigma[0]) + 5.1) < 0.01


@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS)
@pytest.mark.parametrize("start", [9, 10, 500, 950, 998])
def test_a_chain_starts_at_the_requested_timestep(sampler: str, start: int) -> None:
    table = coefficient_table(sampler, 10, start=start)
    assert table.timesteps[0] == start
    assert table.timesteps[-1] == 0
    np.testing.assert_allclose(np.square(levels(table)[0]), kept_alphas_cumprod(table), rtol=4e-5)


@pytest.mark.parametrize("steps", [2, 10, 64, 99, 100, 1000])
def test_a_start_of_999_gives_the_published_rows_of_ddpm(steps: int) -> None:
    table = coefficient_table("ddpm", steps, start=999)
    assert table.timesteps.tolist() == [round(position) for position in np.linspace(0, 999, steps)][::-1]
    np.testing.assert_allclose(np.square(levels(table)[0]), kept_alphas_cumprod(table), rtol=1e-6)


@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS)
def test_no_start_is_noisier_than_the_training_steps(sampler: str) -> None:
    """Past them the cosine curve falls on to 4e-33, of which the network knows nothing."""
    noisiest = training_schedule().alphas_cumprod[-1]
    try:
        table = coefficient_table(sampler, 10, start=999)
    except RequestError as refusal:
        assert "start_timestep" in str(refusal)
    else:
        assert np.square(levels(table)[0]).min() >= noisiest * (1 - 1e-6)


# DDPM.


@pytest.mark.parametrize("steps", SPACINGS)
def test_x0_of_the_true_noise_is_the_clean_value(steps: int | str) -> None:
    """x = sqrt(a) x0 + sqrt(1 - a) eps, solved for x0."""
    table = coefficient_table("ddpm", steps, 1.0)
    kept = kept_alphas_cumprod(table)
    np.testing.assert_allclose(column(table, "x0_from_x") * np.sqrt(kept), 1, rtol=HALF_ULP)
    np.testing.assert_allclose(column(table, "x0_from_eps"), -np.sqrt((1 - kept) / kept), rtol=HALF_ULP)


@pytest.mark.parametrize("steps", SPACINGS)
def test_a_ddpm_row_is_the_posterior_of_two_gaussians(steps: int | str) -> None:
    """q(x' | x, x0) is q(x | x') q(x' | x0), normalised: precisions add, means weigh by them."""
    table = coefficient_table("ddpm", steps, 1.0)
    here = kept_alphas_cumprod(table)[:-1]
    before = kept_alphas_cumprod(table)[1:]
    kept_share = here / before  # x = sqrt(share) x' + sqrt(1 - share) noise
    from_x0, from_x = 1 / (1 - before), kept_share / (1 - kept_share)  # precisions of x' given x0, and given x
    variance = 1 / (from_x0 + from_x)
    mean_x0, mean_x = variance * np.sqrt(before) * from_x0, variance / np.sqrt(kept_share) * from_x

    np.testing.assert_allclose(column(table, "x_from_x0")[:-1], mean_x0, rtol=HALF_ULP)
    np.testing.assert_allclose(column(table, "x_from_x")[:-1], mean_x, rtol=HALF_ULP)
    np.testing.assert_allclose(column(table, "log_variance_low")[:-1], np.log(variance), rtol=HALF_ULP)
    np.testing.assert_allclose(column(table, "log_variance_high")[:-1], np.log(1 - kept_share), rtol=HALF_ULP)
    assert (column(table, "x_from_previous_x0") == 0).all()
    assert (column(table, "noise_scale")[:-1] == 1).all()


@pytest.mark.parametrize("steps", SPACINGS)
def test_the_last_variance_of_ddpm_equals_that_of_the_row_before(steps: int | str) -> None:
    """Its true variance is zero, whose logarithm an engine could not multiply."""
    table = coefficient_table("ddpm", steps, 1.0)
    assert column(table, "log_variance_low")[-1] == column(table, "log_variance_low")[-2]


# DDIM.


@pytest.mark.parametrize("steps", [2, 10, 100, "ddim50"])
def test_ddim_without_noise_keeps_eps_and_lowers_its_share(steps: int | str) -> None:
    """x' = signal' x0 + sigma' eps, where eps = (x - signal x0) / sigma."""
    table = coefficient_table("ddim", steps)
    kept = kept_alphas_cumprod(table)
    after = np.append(kept[1:], 1.0)
    shrink = np.sqrt((1 - after) / (1 - kept))
    np.testing.assert_allclose(column(table, "x_from_x"), shrink, rtol=1e-7)
    np.testing.assert_allclose(column(table, "x_from_x0"), np.sqrt(after) - shrink * np.sqrt(kept), rtol=1e-7)
    assert (column(table, "x_from_previous_x0") == 0).all()
    assert (column(table, "noise_scale") == 0).all()


@pytest.mark.parametrize(("steps", "start"), [(2, 900), (10, 950), (100, 999), ("ddim50", None)])
def test_ddim_with_eta_1_is_the_posterior_of_ddpm(steps: int | str, start: int | None) -> None:
    ddim, ddpm = (coefficient_table(sampler, steps, 1.0, eta, start) for sampler, eta in (("ddim", 1.0), ("ddpm", 0.0)))
    assert ddim.timesteps.tolist() == ddpm.timesteps.tolist()
    for name in ("x0_from_x", "x0_from_eps", "x_from_x", "x_from_x0"):
        np.testing.assert_allclose(column(ddim, name), column(ddpm, name), rtol=3e-7)
    np.testing.assert_allclose(own_variance(ddim), own_variance(ddpm), rtol=2e-6)


def test_eta_is_the_share_of_the_noise_of_the_posterior() -> None:
    half, full = (column(coefficient_table("ddim", 10, 1.0, eta), "noise_scale") for eta in (0.5, 1.0))
    np.testing.assert_allclose(half, full / 2, rtol=1e-6)


# DPM-Solver++.


@pytest.mark.parametrize(("solver", "eta"), [("dpm++2m", 0.0), ("dpm++2m-sde", 1.0)])
def test_the_first_and_the_last_step_of_a_multistep_solver_are_those_of_ddim(solver: str, eta: float) -> None:
    found, expected = coefficient_table(solver, **SHARED), coefficient_table("ddim", **SHARED, eta=eta)
    assert found.timesteps.tolist() == expected.timesteps.tolist()
    np.testing.assert_allclose(found.coefficients[[0, -1]], expected.coefficients[[0, -1]], rtol=1e-6)


@pytest.mark.parametrize(("solver", "eta"), [("dpm++2m", 0.0), ("dpm++2m-sde", 1.0)])
def test_a_multistep_solver_is_ddim_if_x0_does_not_change(solver: str, eta: float) -> None:
    found, expected = coefficient_table(solver, **SHARED), coefficient_table("ddim", **SHARED, eta=eta)
    both = column(found, "x_from_x0") + column(found, "x_from_previous_x0")
    np.testing.assert_allclose(both, column(expected, "x_from_x0"), rtol=1e-6)
    for name in ("x0_from_x", "x0_from_eps", "x_from_x", "noise_scale"):
        np.testing.assert_allclose(column(found, name), column(expected, name), rtol=1e-6)


@pytest.mark.parametrize("solver", MULTISTEP)
@pytest.mark.parametrize("steps", [5, 10, 50])
def test_a_multistep_solver_extrapolates_x0_linearly_from_the_step_before(solver: str, steps: int) -> None:
    """x0 in the middle of a step, from its values at the start of this step and of the one before."""
    table = coefficient_table(solver, steps)
    log_ratio = -np.log(-column(table, "x0_from_eps"))  # of signal over noise, what the solver calls time
    step = np.diff(log_ratio)
    forward = -column(table, "x_from_previous_x0") / (
        column(table, "x_from_x0") + column(table, "x_from_previous_x0")
    )  # in steps of the one before
    middle = slice(1, steps - 2)
    limited = np.minimum(step[middle] / step[: steps - 3] / 2, 0.75)  # a long step extrapolates less
    np.testing.assert_allclose(forward[middle], limited, rtol=1e-4)


# What is refused.

BAD_TABLES: list[tuple[dict[str, Any], str]] = [
    *(({"sampler": value}, f"sampler must be one of {', '.join(SAMPLERS)}, found {value!r}") for value in ("x", 3)),
    *(({"temperature": value}, f"temperature must be a number in 0..1000, found {value!r}") for value in (-1, "1")),
    *(({"sampler": "ddim", "eta": value}, f"eta must be a number in 0..1, found {value!r}") for value in (-0.1, 1.1)),
    *(({"sampler": "ddim", "eta": value}, f"eta must be a number in 0..1, found {value!r}") for value in (None, "1")),
    ({"sampler": "ddim", "eta": math.nan}, "eta must be a number in 0..1, found nan"),
    *(
        ({"sampler": name, "eta": 0.5}, f"found eta 0.5 with {name}")
        for name in SAMPLERS
        if name not in ("ddim", "flow-euler")
    ),
    *(
        (
            {"sampler": name, "start": value},
            f"start_timestep must be a whole number in 9..{998 if name in MULTISTEP else 999}, found {value!r}",
        )
        for name in DIFFUSION_SAMPLERS
        for value in (8, 1000, -1, 900.5, "900", math.nan)
    ),
    *(
        ({"sampler": name, "steps": "ddim10", "start": 900}, "start_timestep needs a number of diffusion steps, found")
        for name in ("ddpm", "ddim")
    ),
    *(({"sampler": name, "steps": "ddim10"}, "'ddim10' spaces the steps of ddpm and ddim") for name in MULTISTEP),
    *(({"sampler": name, "steps": 1}, "diffusion_steps must lie in 2..1000, found 1") for name in DIFFUSION_SAMPLERS),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_TABLES, ids=str)
def test_wrong_arguments_of_a_table_are_refused_in_one_line_with_the_value(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError) as refusal:
        coefficient_table(**({"sampler": "ddpm", "steps": 10} | arguments))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


ALIKE: list[tuple[dict[str, Any], str, object]] = [
    ({"sampler": "ddpm", "steps": 10}, "steps", 10.0),
    ({"sampler": "ddpm", "steps": 10, "temperature": 1.0}, "temperature", True),
    ({"sampler": "ddim", "steps": 10, "eta": 1.0}, "eta", True),
    ({"sampler": "ddim", "steps": 2, "start": 1}, "start", True),
]


@pytest.mark.parametrize(("good", "name", "alike"), ALIKE, ids=str)
def test_a_refusal_does_not_depend_on_earlier_calls(good: dict[str, Any], name: str, alike: object) -> None:
    """True equals 1, and 10.0 equals 10, but neither is what the setting takes."""
    coefficient_table(**good)
    with pytest.raises(RequestError):
        coefficient_table(**(good | {name: alike}))

"""The diffusion tables, against the closed forms and the Gaussians that they stand for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.diffusion import (
    COEFFICIENTS,
    TRAIN_STEPS,
    CoefficientTable,
    coefficient_table,
    cosine_betas,
    respaced_timesteps,
    training_schedule,
)
from runtime.errors import RequestError

untimed = settings(deadline=None)  # how long an example takes on a busy machine proves nothing
Floats = NDArray[np.float64]

HALF_ULP = 2.0**-24 * 1.001  # one rounding to float32, and room for the 1e-11 that float64 loses to cancellation
SPACINGS = (TRAIN_STEPS, 100, 10, 2, "ddim1000", "ddim50", "ddim20", "ddim2")
STRIDES = {len(range(0, TRAIN_STEPS, stride)): stride for stride in range(TRAIN_STEPS - 1, 0, -1)}  # steps -> smallest
IMPOSSIBLE_STRIDES = sorted(set(range(TRAIN_STEPS + 1)) - set(STRIDES))


def alphas_cumprod() -> Floats:
    """The cosine schedule's alpha-bar in closed form; only the last beta, 1 without its cap of 0.999, is no cosine."""
    curve = [math.cos((t / TRAIN_STEPS + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(TRAIN_STEPS + 1)]
    closed = [value / curve[0] for value in curve[1:-1]]
    return np.array([*closed, closed[-1] * (1 - 0.999)])


def column(table: CoefficientTable, name: str) -> Floats:
    return table.coefficients[:, COEFFICIENTS.index(name)].astype(np.float64)


def kept_alphas_cumprod(table: CoefficientTable) -> Floats:
    return alphas_cumprod()[table.timesteps.astype(np.int64)]  # in the order of execution, noisy to clean


def test_the_betas_are_a_cosine_schedule_capped_at_0_999() -> None:
    betas = cosine_betas()
    assert betas.shape == (TRAIN_STEPS,)
    assert betas.dtype == np.float64
    assert (betas > 0).all()
    assert betas.argmax() == TRAIN_STEPS - 1
    assert betas.max() == 0.999
    np.testing.assert_allclose(training_schedule().alphas_cumprod, alphas_cumprod(), rtol=1e-11)


@untimed
@given(st.integers(2, TRAIN_STEPS))
def test_n_steps_are_spread_evenly_from_first_to_last(steps: int) -> None:
    kept = respaced_timesteps(steps)
    assert kept.dtype == np.int64
    assert len(kept) == steps
    assert kept[0] == 0
    assert kept[-1] == TRAIN_STEPS - 1
    assert (np.diff(kept) >= 1).all()
    even = np.arange(steps) * (TRAIN_STEPS - 1) / (steps - 1)
    # Rounded to the nearest, and a tie (at most 1e-9 from one half in float64) to either side.
    assert np.abs(kept - even).max() <= 0.5 + 1e-9


@untimed
@given(st.sampled_from(sorted(STRIDES)).filter(lambda steps: steps > 1))
def test_ddim_steps_are_the_smallest_integer_stride_from_zero(steps: int) -> None:
    kept = respaced_timesteps(f"ddim{steps}")
    assert kept.tolist() == list(range(0, TRAIN_STEPS, STRIDES[steps]))
    assert len(kept) == steps


@untimed
@given(st.sampled_from(IMPOSSIBLE_STRIDES))
def test_ddim_steps_without_an_integer_stride_are_refused(steps: int) -> None:
    with pytest.raises(RequestError, match=f"'ddim{steps}'"):
        respaced_timesteps(f"ddim{steps}")


NUMBERS = [0, 1, 1001, -3, 2.5, math.nan, math.inf, True, False, np.float32(2.5)]
TEXTS = ["abc", "", "2.5", "-3", "1001", "ddim", "ddim0", "ddim1", "ddim1001", "ddim-5", "ddim2.5", "ddim" + "9" * 5000]


@pytest.mark.parametrize("steps", [*NUMBERS, *TEXTS, None, [20]], ids=lambda steps: repr(steps)[:20])
def test_impossible_diffusion_steps_are_refused_by_value(steps: int | str) -> None:
    with pytest.raises(RequestError) as refusal:
        respaced_timesteps(steps)
    assert "diffusion_steps" in str(refusal.value)
    assert repr(steps)[:40] in str(refusal.value)


@pytest.mark.parametrize("steps", SPACINGS)
def test_rows_run_from_noisy_to_clean(steps: int | str) -> None:
    table = coefficient_table("ddpm", steps, 1.0)
    assert table.timesteps.tolist() == respaced_timesteps(steps)[::-1].tolist()
    assert table.timesteps[-1] == 0
    assert table.steps == len(table.timesteps) == len(table.coefficients)


@pytest.mark.parametrize("steps", SPACINGS)
def test_a_table_is_contiguous_float32_as_the_engine_reads_it(steps: int | str) -> None:
    table = coefficient_table("ddpm", steps, 0.9)
    for array in (table.timesteps, table.coefficients):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert np.isfinite(array).all()
    assert table.coefficients.shape == (table.steps, len(COEFFICIENTS))


@pytest.mark.parametrize("steps", SPACINGS)
def test_x0_is_what_the_noise_was_added_to(steps: int | str) -> None:
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
    from_x0, from_x = 1 / (1 - before), kept_share / (1 - kept_share)  # precisions of x' told by x0, and by x
    variance = 1 / (from_x0 + from_x)
    mean_x0, mean_x = variance * np.sqrt(before) * from_x0, variance / np.sqrt(kept_share) * from_x

    np.testing.assert_allclose(column(table, "x_from_x0")[:-1], mean_x0, rtol=HALF_ULP)
    np.testing.assert_allclose(column(table, "x_from_x")[:-1], mean_x, rtol=HALF_ULP)
    np.testing.assert_allclose(column(table, "log_variance_low")[:-1], np.log(variance), rtol=HALF_ULP)
    np.testing.assert_allclose(column(table, "log_variance_high")[:-1], np.log(1 - kept_share), rtol=HALF_ULP)
    assert (column(table, "x_from_previous_x0") == 0).all()
    assert (column(table, "noise_scale")[:-1] == 1).all()


@pytest.mark.parametrize("steps", SPACINGS)
def test_the_last_row_gives_x0_itself_without_noise(steps: int | str) -> None:
    table = coefficient_table("ddpm", steps, 1.0)
    assert column(table, "x_from_x0")[-1] == 1
    assert column(table, "x_from_x")[-1] == 0
    assert column(table, "noise_scale")[-1] == 0
    # Its true variance is zero, whose logarithm an engine could not multiply: the row before stands in.
    assert column(table, "log_variance_low")[-1] == column(table, "log_variance_low")[-2]


@untimed
@given(st.floats(0, 8, width=32))
def test_temperature_scales_the_noise_and_nothing_else(temperature: float) -> None:
    scaled, plain = (coefficient_table("ddpm", 10, value).coefficients.copy() for value in (temperature, 1.0))
    noise = COEFFICIENTS.index("noise_scale")
    np.testing.assert_array_equal(scaled[:, noise], np.float32(temperature) * plain[:, noise])
    scaled[:, noise] = plain[:, noise] = 0
    np.testing.assert_array_equal(scaled, plain)


@untimed
@given(st.floats(min_value=0, allow_infinity=False))
def test_a_temperature_is_refused_or_gives_finite_rows(temperature: float) -> None:
    try:
        table = coefficient_table("ddpm", 10, temperature)
    except RequestError as refusal:
        assert repr(temperature) in str(refusal)
    else:
        assert np.isfinite(table.coefficients).all()

"""The noise schedule and its respacing, against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.errors import RequestError
from runtime.sampling.noise_schedule import (
    TRAIN_STEPS,
    continuous_alphas_cumprod,
    cosine_betas,
    respaced_timesteps,
    training_schedule,
)

STRIDES = {len(range(0, TRAIN_STEPS, stride)): stride for stride in range(TRAIN_STEPS - 1, 0, -1)}  # steps -> smallest
IMPOSSIBLE_STRIDES = sorted(set(range(TRAIN_STEPS + 1)) - set(STRIDES))
LAST = TRAIN_STEPS - 1


def alphas_cumprod() -> NDArray[np.float64]:
    """The cosine schedule's alpha-bar in closed form; only the last beta, 1 without its cap of 0.999, is no cosine."""
    curve = [math.cos((t / TRAIN_STEPS + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(TRAIN_STEPS + 1)]
    closed = [value / curve[0] for value in curve[1:-1]]
    return np.array([*closed, closed[-1] * (1 - 0.999)])


def test_the_betas_are_a_cosine_schedule_capped_at_0_999() -> None:
    betas = cosine_betas()
    assert betas.shape == (TRAIN_STEPS,)
    assert betas.dtype == np.float64
    assert (betas > 0).all()
    assert betas.argmax() == TRAIN_STEPS - 1
    assert betas.max() == 0.999
    np.testing.assert_allclose(training_schedule().alphas_cumprod, alphas_cumprod(), rtol=1e-11)


def test_the_continuous_curve_passes_through_the_training_steps() -> None:
    at_steps = continuous_alphas_cumprod(np.arange(LAST, dtype=np.float64))
    np.testing.assert_allclose(at_steps, training_schedule().alphas_cumprod[:LAST], rtol=1e-11)


@given(st.floats(0, LAST - 1), st.floats(0, LAST - 1))
def test_the_continuous_curve_falls_with_time(one: float, other: float) -> None:
    early, late = min(one, other), max(one, other)
    more, less = continuous_alphas_cumprod(np.array([early, late]))
    assert 0 < less <= more < 1
    if late - early > 1e-6:
        assert less < more


@given(st.integers(2, TRAIN_STEPS).flatmap(lambda steps: st.tuples(st.just(steps), st.integers(steps - 1, LAST))))
def test_n_steps_are_spread_evenly_from_the_first_timestep_to_0(steps_and_start: tuple[int, int]) -> None:
    steps, start = steps_and_start
    kept = respaced_timesteps(steps, start)
    assert kept.dtype == np.int64
    assert len(kept) == steps
    assert kept[0] == 0
    assert kept[-1] == start
    assert (np.diff(kept) >= 1).all()
    even = np.arange(steps) * start / (steps - 1)
    # Rounded to the nearest, and a tie (at most 1e-9 from one half in float64) to either side.
    assert np.abs(kept - even).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("steps", [2, 10, 100, TRAIN_STEPS])
def test_n_steps_start_at_999_by_default_as_published(steps: int) -> None:
    assert respaced_timesteps(steps).tolist() == respaced_timesteps(steps, LAST).tolist()


@given(st.sampled_from(sorted(STRIDES)).filter(lambda steps: steps > 1), st.integers(0, LAST))
def test_ddim_steps_have_the_smallest_integer_stride_from_zero_for_any_start(steps: int, start: int) -> None:
    kept = respaced_timesteps(f"ddim{steps}", start)
    assert kept.tolist() == list(range(0, TRAIN_STEPS, STRIDES[steps]))
    assert len(kept) == steps


@given(st.sampled_from(IMPOSSIBLE_STRIDES))
def test_ddim_steps_without_an_integer_stride_are_refused(steps: int) -> None:
    with pytest.raises(RequestError, match=f"'ddim{steps}'"):
        respaced_timesteps(f"ddim{steps}")


NUMBERS = [0, 1, 1001, -3, 2.5, math.nan, math.inf, True, False, np.float32(2.5)]
TEXTS = ["abc", "", "2.5", "-3", "1001", "ddim", "ddim0", "ddim1", "ddim1001", "ddim-5", "ddim2.5", "ddim" + "9" * 5000]


@pytest.mark.parametrize("steps", [*NUMBERS, *TEXTS, None, [20]], ids=lambda steps: repr(steps)[:20])
def test_impossible_diffusion_steps_are_refused_with_their_value(steps: int | str) -> None:
    with pytest.raises(RequestError) as refusal:
        respaced_timesteps(steps)
    assert "diffusion_steps" in str(refusal.value)
    assert repr(steps)[:40] in str(refusal.value)

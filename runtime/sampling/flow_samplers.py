"""Samplers of a rectified flow head, which predicts the velocity on a straight path from a token to noise.

On this path x = (1 - t) x0 + t noise, for t from 0 to 1 (arXiv 2209.03003). The first output of the head is the
velocity v = noise - x0, so x0 = x - t v: the same formula as for eps with a signal of 1 and a sigma of t. The second
output is the variance of DDPM, which a flow does not use. The timestep of the head is 1000 t. A chain runs from t = 1
in steps of equal size, and its last step returns x0.
"""

from __future__ import annotations

import numpy as np

from runtime.model.coefficients import Columns, Float64, columns_with_fixed_noise
from runtime.sampling.noise_schedule import TRAIN_STEPS


def flow_times(steps: int) -> Float64:
    """Return the time t of every step, from 1 downwards: float64 [T]."""
    return np.arange(steps, 0, -1) / steps


def euler(t: Float64, temperature: float, eta: float) -> tuple[Float64, Columns]:
    """Return the timesteps and coefficients of Euler steps, with fresh noise as in DDIM (arXiv 2010.02502).

    Args:
        t: The time of every step, from 1 downwards, [T].
        temperature: The factor on the noise.
        eta: The share of the noise of the posterior q(x' | x, x0). Without noise x' = x + (t' - t) v.

    Returns:
        Timesteps, float64 [T], and the coefficients by name.
    """
    after = _next(t)
    kept = (
        after / t * (1 - t) / (1 - after)
    )  # the share of the noise of x that x' would keep if it were sampled from the posterior
    noise = eta * after * np.sqrt(1 - np.square(kept))
    direction = np.sqrt(np.square(after) - np.square(noise)) / t
    columns = columns_with_fixed_noise(
        np.ones_like(t), t, direction, 1 - after - direction * (1 - t), np.zeros_like(t), temperature * noise
    )
    return TRAIN_STEPS * t, columns


def second_order(t: Float64, temperature: float, eta: float) -> tuple[Float64, Columns]:
    """Return the timesteps and coefficients of a multistep solver of second order.

    x0 is extrapolated linearly in t from the step before, and dx/dt = (x - x0) / t is integrated exactly. This is DEIS
    of second order (arXiv 2204.13902) with x0 in place of the noise. It is finite at both ends, where the logarithm of
    signal over noise of DPM-Solver++ is not. The first step has no step before it, and in the last one the errors of
    an extrapolation would end up in the token, so both are of first order.

    Args:
        t: The time of every step, from 1 downwards, [T].
        temperature: Not used: the solver adds no noise.
        eta: Not used.

    Returns:
        Timesteps, float64 [T], and the coefficients by name.
    """
    after, steps = _next(t), len(t)
    slope = np.zeros(steps)  # of x' as a function of x0 - previous x0
    inner = slice(1, steps - 1)
    share, step_before = after[inner] / t[inner], t[: max(steps - 2, 0)] - t[inner]
    slope[inner] = after[inner] * (1 / share - 1 + np.log(share)) / step_before
    columns = columns_with_fixed_noise(np.ones(steps), t, after / t, 1 - after / t + slope, -slope, np.zeros(steps))
    return TRAIN_STEPS * t, columns


FLOWS = {"flow-euler": euler, "flow-2m": second_order}
"""The samplers of a flow, by name."""


def _next(t: Float64) -> Float64:
    """Return the time of the step after each, which is 0 for the last."""
    return np.append(t[1:], 0.0)

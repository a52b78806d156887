"""Samplers of a rectified flow head, which predicts the velocity of a straight path from a token to noise.

On that path x = (1 - t) x0 + t noise, t from 0 to 1 (arXiv 2209.03003), and the head's first output is
v = noise - x0, so that x0 = x - t v, as if v were the eps of a signal of 1 and a sigma of t. Its second
output is for the variance of DDPM and not used here. The head is told 1000 t. A chain runs from t = 1 in
even steps, and its last step gives x0 itself.
"""

from __future__ import annotations

import numpy as np

from runtime.model.coefficients import Columns, Float64, columns_with_fixed_noise
from runtime.sampling.noise_schedule import TRAIN_STEPS


def flow_times(steps: int) -> Float64:
    """t of every step, from 1 down: [T]."""
    return np.arange(steps, 0, -1) / steps


def euler(steps: int, temperature: float, eta: float) -> tuple[Float64, Columns]:
    """Euler steps, with `eta` of the fresh noise of the posterior q(x' | x, x0), as DDIM has it (arXiv 2010.02502).

    Without noise x' = x + (t' - t) v.
    """
    t, after = _times(steps)
    kept = after / t * (1 - t) / (1 - after)  # of the noise of x, were x' drawn from the posterior
    noise = eta * after * np.sqrt(1 - np.square(kept))
    direction = np.sqrt(np.square(after) - np.square(noise)) / t
    columns = columns_with_fixed_noise(
        np.ones(steps), t, direction, 1 - after - direction * (1 - t), np.zeros(steps), temperature * noise
    )
    return TRAIN_STEPS * t, columns


def second_order(steps: int, temperature: float, eta: float) -> tuple[Float64, Columns]:
    """x0 extended along the line, in t, through the step before, and x integrated exactly along it.

    This is DEIS of second order (arXiv 2204.13902) for x0 in place of the noise: of dx/dt = (x - x0) / t,
    and finite at both ends, where the logarithm of signal over noise of DPM-Solver++ is not. The first
    step has no step before it, and the last would carry its errors into the token: both are of first order.
    """
    t, after = _times(steps)
    slope = np.zeros(steps)  # of x' by x0 - previous x0
    inner = slice(1, steps - 1)
    share, step_before = after[inner] / t[inner], t[: max(steps - 2, 0)] - t[inner]
    slope[inner] = after[inner] * (1 / share - 1 + np.log(share)) / step_before
    columns = columns_with_fixed_noise(np.ones(steps), t, after / t, 1 - after / t + slope, -slope, np.zeros(steps))
    return TRAIN_STEPS * t, columns


def _times(steps: int) -> tuple[Float64, Float64]:
    """t of every step and of the one after it, where the last is 0."""
    t = flow_times(steps)
    return t, np.append(t[1:], 0.0)

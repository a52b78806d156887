"""The coefficients that the `denoise` engine applies in one diffusion step.

`runtime.sampling.samplers` gives the formulas in which they are used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Columns = dict[str, Float64]
"""The coefficients of a chain by name, float64 [T] each."""

BOUNDS = ("x0_low", "x0_high")
"""The bounds of the predicted x0, infinite where a chain does not clamp it."""

COEFFICIENTS = (
    "x0_from_x",
    "x0_from_eps",
    "x_from_x",
    "x_from_x0",
    "x_from_previous_x0",
    "noise_scale",
    "log_variance_low",
    "log_variance_high",
    *BOUNDS,
)
"""The names of the coefficients, in the order in which the `denoise` engine reads them."""


def exact_rows(columns: Columns) -> Float64:
    """Return columns as rows of `COEFFICIENTS`, float64 [T, 10]. Bounds of x0 that are missing are infinite."""
    steps = len(columns["x0_from_x"])
    unbounded = {name: np.full(steps, bound) for name, bound in zip(BOUNDS, (-np.inf, np.inf), strict=True)}
    return np.stack([(unbounded | columns)[name] for name in COEFFICIENTS], axis=1)


def coefficient_rows(columns: Columns) -> NDArray[np.float32]:
    """Return `exact_rows` as the engine reads them, float32 [T, 10]."""
    return exact_rows(columns).astype(np.float32)


def columns_with_fixed_noise(
    signal: Float64, sigma: Float64, x: Float64, x0: Float64, previous_x0: Float64, noise: Float64
) -> Columns:
    """Return the coefficients of a sampler that sets the standard deviation of its noise instead of learning it.

    All arguments are float64 [T], one value for each step. The state of a step is x = signal * x0 + sigma * eps.

    Args:
        signal: The signal level of the state.
        sigma: The noise level of the state.
        x: The factor of x in the next state.
        x0: The factor of the predicted x0 in the next state.
        previous_x0: The factor of the x0 that the step before predicted.
        noise: The standard deviation of the fresh noise.
    """
    zeros = np.zeros_like(signal)
    return {
        "x0_from_x": 1 / signal,
        "x0_from_eps": -sigma / signal,
        "x_from_x": x,
        "x_from_x0": x0,
        "x_from_previous_x0": previous_x0,
        "noise_scale": noise,
        "log_variance_low": zeros,  # sigma(v) = 1
        "log_variance_high": zeros,
    }

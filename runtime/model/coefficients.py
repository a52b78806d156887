"""The columns of a row of coefficients, which the `denoise` engine applies in a diffusion step.

What each of them does stands in `runtime.sampling.samplers`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Columns = dict[str, Float64]  # [T] each

# In the order the `denoise` engine reads them.
COEFFICIENTS = (
    "x0_from_x",
    "x0_from_eps",
    "x_from_x",
    "x_from_x0",
    "x_from_previous_x0",
    "noise_scale",
    "log_variance_low",
    "log_variance_high",
)


def columns_of_own_noise(
    signal: Float64, sigma: Float64, x: Float64, x0: Float64, previous_x0: Float64, noise: Float64
) -> Columns:
    """Those of a sampler whose noise has a standard deviation of its own, `noise`; x = signal x0 + sigma eps."""
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

"""How far what engines compute lies from what is right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def relative_l2(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """|found - expected| / |expected|, in float64; infinite where a value is not finite."""
    difference = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    distance = float(difference / max(float(np.linalg.norm(expected.astype(np.float64))), 1e-30))
    return distance if np.isfinite(distance) else float("inf")


def decibels(distance: float) -> float:
    """The signal to quantization noise ratio, SQNR, in dB, of a relative L2 distance."""
    return -20 * math.log10(max(distance, 1e-15))

"""The relative L2 distance that tests compare arrays by; it does not use the product's implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def relative_l2(found: NDArray[Any], expected: NDArray[Any]) -> float:
    difference = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    return float(difference / np.linalg.norm(expected.astype(np.float64)))

"""The distance by which tests compare arrays, independent of the one in the product."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def relative_l2(found: NDArray[Any], expected: NDArray[Any]) -> float:
    difference = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    return float(difference / np.linalg.norm(expected.astype(np.float64)))

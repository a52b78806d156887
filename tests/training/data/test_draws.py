"""The random numbers of training: the distribution of mask ratios."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data.draws import draw_mask_ratio


def _truncated_normal(smallest: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(x, distribution function at x) of the normal around 1 with std 0.25 on smallest..1, integrated numerically."""
    x = np.linspace(smallest, 1, 200_001)
    density = np.exp(-0.5 * ((x - 1) / 0.25) ** 2)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return x, area / area[-1]


@pytest.mark.parametrize("smallest", [0.7, 0.0, 0.95])
def test_mask_ratios_are_drawn_from_the_truncated_normal(smallest: float) -> None:
    stream = np.random.default_rng(4)
    drawn = np.sort([draw_mask_ratio(smallest, stream) for _ in range(4000)])
    assert drawn[0] >= smallest
    assert drawn[-1] <= 1
    x, below = _truncated_normal(smallest)
    # Kolmogorov and Smirnov: all quantiles at once; a right generator exceeds this once in a thousand seeds.
    steps = np.arange(len(drawn) + 1) / len(drawn)
    expected = np.interp(drawn, x, below)
    distance = max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())
    assert distance < 1.95 / math.sqrt(len(drawn))
    mean = np.trapezoid(1 - below, x) + smallest
    spread = math.sqrt(2 * np.trapezoid((1 - below) * (x - smallest), x) - (mean - smallest) ** 2)
    assert abs(drawn.mean() - mean) < 4 * spread / math.sqrt(len(drawn))

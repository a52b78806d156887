"""The one distance that exports, calibration and the check on a GPU are judged by."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runtime.distance import decibels, relative_l2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_distance_from_what_is_no_number_is_infinite(value: float) -> None:
    one = np.ones(3, np.float32)
    assert relative_l2(np.array([1, value, 1], np.float32), one) == math.inf
    assert relative_l2(one, one) == 0
    assert relative_l2(2 * one, one) == 1


def test_a_distance_is_taken_in_float64_whatever_is_compared() -> None:
    large = np.full((2, 3), 1e30, np.float32)  # whose squares float32 does not hold
    assert relative_l2(large, 2 * large) == pytest.approx(0.5)


@pytest.mark.parametrize(("distance", "ratio"), [(1, 0), (0.1, 20), (1e-3, 60), (0, 300)])
def test_a_tenth_of_the_distance_is_twenty_decibels_and_none_at_all_is_300(distance: float, ratio: float) -> None:
    assert decibels(distance) == pytest.approx(ratio)

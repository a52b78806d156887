"""Which choice to make for every part of a plan, so that the errors are least within a budget of time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_PARTS = 2**14  # that the time to spare is counted in


def least_error(errors: Float64, seconds: Float64, budget: float) -> list[int]:
    """The column of each row with the least sum of `errors` [K, n] whose sum of `seconds` [K, n] is within `budget`.

    The multiple-choice knapsack problem by dynamic programming (Kellerer, Pferschy, Pisinger: Knapsack
    Problems, 2004, chapter 11). Every row takes its least time anyway; what is spent beyond is counted in
    2^14ths of what the budget leaves, rounded up. So no choice passes the budget, and none within a
    budget less by K of these parts is better. `budget` must not be less than the sum of the least times.
    """
    extra = seconds - seconds.min(axis=1, keepdims=True)  # [K, n]
    spare = budget - float(seconds.min(axis=1).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(extra > 0, np.ceil(extra / spare * _PARTS), 0)  # [K, n]
    least = np.zeros(_PARTS + 1)  # the least error of the rows so far that spend at most so many parts
    chosen = []
    for of_row, cost in zip(errors, parts, strict=True):
        totals = np.full((len(of_row), _PARTS + 1), np.inf)
        for column, spent in enumerate(cost):
            if spent <= _PARTS:
                totals[column, int(spent) :] = least[: _PARTS + 1 - int(spent)] + of_row[column]
        chosen.append(totals.argmin(axis=0))
        least = totals.min(axis=0)
    left, columns = _PARTS, []
    for of_parts, cost in zip(reversed(chosen), parts[::-1], strict=True):
        column = int(of_parts[left])
        columns.append(column)
        left -= int(cost[column])
    return columns[::-1]

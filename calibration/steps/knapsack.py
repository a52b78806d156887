"""The multiple-choice knapsack problem: one choice for each row, with the least total error within a time budget."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

_PARTS = 2**14  # the time left by the budget is divided into so many parts


def minimize_error(errors: Float64, seconds: Float64, budget: float) -> list[int]:
    """Choose one column in each row so that the sum of errors is least and the sum of seconds is within the budget.

    Solved by dynamic programming (Kellerer, Pferschy, Pisinger: Knapsack Problems, 2004, chapter 11). Each row takes
    at least its least time. Time beyond that is counted in 2^14ths of what the budget leaves, rounded up: the
    solution never exceeds the budget, and it is optimal for a budget that is smaller by I of these parts.

    Args:
        errors: The error of each choice, [I, n].
        seconds: The time of each choice, [I, n].
        budget: The total time; at least the sum of the least times of all rows.

    Returns:
        The column of each row, I of them.
    """
    extra = seconds - seconds.min(axis=1, keepdims=True)  # [I, n]
    spare = budget - float(seconds.min(axis=1).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(extra > 0, np.ceil(extra / spare * _PARTS), 0)  # [I, n]
    least = np.zeros(_PARTS + 1)  # [p]: the least error of the rows so far that take at most p parts
    choices = []
    for row_errors, row_parts in zip(errors, parts, strict=True):
        totals = np.full((len(row_errors), _PARTS + 1), np.inf)
        for column, needed in enumerate(row_parts):
            if needed <= _PARTS:
                totals[column, int(needed) :] = least[: _PARTS + 1 - int(needed)] + row_errors[column]
        choices.append(totals.argmin(axis=0))
        least = totals.min(axis=0)
    remaining, columns = _PARTS, []
    for choice, row_parts in zip(reversed(choices), parts[::-1], strict=True):
        column = int(choice[remaining])
        columns.append(column)
        remaining -= int(row_parts[column])
    return columns[::-1]

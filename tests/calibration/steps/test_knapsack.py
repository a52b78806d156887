"""The knapsack solver against a search of all choices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration.steps.knapsack import minimize_error

Matrix = NDArray[np.float64]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Matrix, Matrix, float]:
    """Errors and seconds [K, n], and a budget from the least time to beyond the most."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    errors, seconds = random.uniform(0, 1, (rows, columns)), random.uniform(0.1, 1, (rows, columns))
    if draw(st.booleans()):  # as in practice: more time, less error
        errors, seconds = -np.sort(-errors, axis=1), np.sort(seconds, axis=1)
    least, most = seconds.min(axis=1).sum(), seconds.max(axis=1).sum()
    return errors, seconds, float(least + draw(st.floats(0, 1.2)) * (most - least))


def best(errors: Matrix, seconds: Matrix, budget: float) -> float:
    """The least error of any choice within the budget, by trying them all."""
    rows = range(len(errors))
    choices = itertools.product(range(errors.shape[1]), repeat=len(errors))
    within = [choice for choice in choices if seconds[rows, choice].sum() <= budget]
    return float(min(errors[rows, choice].sum() for choice in within))


@given(problems())
def test_no_choice_within_the_budget_is_better(problem: tuple[Matrix, Matrix, float]) -> None:
    errors, seconds, budget = problem
    found, rows = minimize_error(errors, seconds, budget), range(len(errors))
    assert len(found) == len(errors)
    assert seconds[rows, found].sum() <= budget + 1e-12
    least = seconds.min(axis=1).sum()
    rounded = budget - len(errors) * (budget - least) / 2**14  # every row's time is rounded up by a part at most
    error = errors[rows, found].sum()
    assert error <= best(errors, seconds, rounded - 1e-12 if rounded - 1e-12 > least else least) + 1e-12
    assert error >= best(errors, seconds, budget + 1e-12) - 1e-12


def test_every_row_takes_its_least_time_if_the_budget_allows_no_more() -> None:
    errors, seconds = np.array([[9.0, 1.0], [9.0, 1.0]]), np.array([[0.25, 0.5], [0.5, 0.75]])
    assert minimize_error(errors, seconds, 0.75) == [0, 0]
    assert minimize_error(errors, seconds, 1.0) in ([1, 0], [0, 1])
    assert minimize_error(errors, seconds, 1.25) == [1, 1]


def test_a_choice_slightly_beyond_the_budget_is_not_taken() -> None:
    errors, seconds = np.array([[9.0, 1.0], [9.0, 1.0]]), np.array([[0.0, 0.5 + 1e-6], [0.0, 0.5 + 1e-6]])
    assert sum(minimize_error(errors, seconds, 1.0)) == 1


def test_a_better_choice_of_the_same_time_is_taken() -> None:
    assert minimize_error(np.array([[5.0, 1.0, 3.0]]), np.array([[1.0, 1.0, 2.0]]), 1.0) == [1]


def test_iterations_get_steps_in_proportion_to_the_cube_root_of_their_weights() -> None:
    """Errors w / n^2 at equal times: by Lagrange, steps in proportion to the cube root of w."""
    steps = np.arange(2, 200, dtype=np.float64)
    weights = np.repeat([27.0, 8.0, 1.0], 8)
    found = minimize_error(weights[:, None] / steps**2, np.tile(steps, (24, 1)), 24 * 60.0)
    assert steps[found].reshape(3, 8).mean(axis=1) == pytest.approx([90, 60, 30], rel=0.02)

"""The search for a solver and the steps of each iteration."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from calibration.steps import plan_search
from calibration.steps.error_model import ErrorModel
from calibration.steps.plan_search import find_steps
from calibration.steps.solvers import Solver, deterministic_solvers
from calibration.steps.timing import StepTimes
from runtime.errors import CalibrationError, RequestError
from runtime.generator import Generator
from tests.helpers.step_search import SCHEDULE


@contextlib.contextmanager
def no_bar(length: int, label: str) -> Iterator[Any]:
    """A progress bar that only checks that it is not overfilled."""

    class Bar:
        done = 0

        def update(self, steps: int) -> None:
            self.done += steps

    bar = Bar()
    yield bar
    assert bar.done <= length, label


@pytest.fixture(scope="module")
def error_model(small_generator: Generator) -> ErrorModel:
    """Measures errors on the images that plans are plan with here."""
    return ErrorModel.prepare(small_generator, SCHEDULE, 4, lambda done: None)


@pytest.fixture(scope="module", autouse=True)
def measured_once() -> Iterator[None]:
    """The errors of chains are measured once for each number of images: they do not depend on what a plan may cost."""
    measure, found = plan_search._measure_costs, dict[int, Any]()

    def measured(generator: Any, schedule: Any, images: int, *rest: Any) -> Any:
        if images not in found:
            found[images] = measure(generator, schedule, images, *rest)
        return found[images]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plan_search, "_measure_costs", measured)
        yield


@pytest.fixture
def step_times(monkeypatch: pytest.MonkeyPatch) -> StepTimes:
    """A step takes one millisecond in the first iteration and two in the others; everything else takes ten."""
    times = StepTimes(0.010, np.array([0.001, 0.002, 0.002]))
    monkeypatch.setattr("calibration.steps.plan_search.measure_times", lambda *arguments: times)
    return times


def test_a_plan_is_within_the_budget_and_no_worse_than_uniform_steps(
    small_generator: Generator, error_model: ErrorModel, step_times: StepTimes
) -> None:
    plan, times = find_steps(small_generator, SCHEDULE, 4, 0.0601, None, no_bar)
    assert times is step_times
    assert times.seconds(plan.steps) <= 0.0601
    assert plan.error == pytest.approx(error_model.image_error(plan.solver, plan.steps), rel=1e-3)
    for solver in deterministic_solvers():
        assert plan.error <= error_model.image_error(solver, 10) * 1.001  # which takes the same time
    slower, _ = find_steps(small_generator, SCHEDULE, 4, 0.1101, None, no_bar)
    assert slower.error < plan.error
    assert sum(slower.steps) > sum(plan.steps)


def test_a_plan_is_within_the_allowed_error_and_faster_than_uniform_steps(
    small_generator: Generator, error_model: ErrorModel, step_times: StepTimes
) -> None:
    allowed = error_model.image_error(Solver("ddim"), 20)
    plan, times = find_steps(small_generator, SCHEDULE, 4, None, allowed, no_bar)
    assert plan.error <= allowed
    assert error_model.image_error(plan.solver, plan.steps) <= allowed * 1.001
    assert times.seconds(plan.steps) < times.seconds([20] * 3)


def test_a_limit_that_no_plan_meets_is_refused(small_generator: Generator, step_times: StepTimes) -> None:
    with pytest.raises(
        RequestError, match=r"--budget-ms 19 is less than the fastest plan takes here, 20\.0 ms with 2 steps"
    ):
        find_steps(small_generator, SCHEDULE, 1, 0.019, None, no_bar)
    with pytest.raises(
        CalibrationError, match=r"no plan keeps the error within 1e-06: the best has 0\.\d+, with up to 50"
    ):
        find_steps(small_generator, SCHEDULE, 2, None, 1e-6, no_bar)

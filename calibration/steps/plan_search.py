"""Searches for the solver and the diffusion steps of each iteration with the least error in a time budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.steps.error_model import PROPAGATED_STEPS, STEPS, ErrorModel, batches
from calibration.steps.knapsack import minimize_error
from calibration.steps.solvers import Solver, deterministic_solvers
from calibration.steps.timing import ROUNDS, StepTimes, measure_times
from runtime.checks import pluralize
from runtime.errors import CalibrationError, RequestError
from runtime.generator import Generator
from runtime.sampling.constraints import plan_for
from runtime.sampling.settings import Sampling

Bar = Callable[[int, str], AbstractContextManager[Any]]
"""Opens a progress bar, given its length and a label."""

_FINALISTS = 3  # the solvers whose steps are chosen for each iteration
_HALVINGS = 7  # of the range of time budgets, if an error is allowed


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """The result of a search.

    Attributes:
        solver: The solver of all diffusion chains.
        steps: The number of steps in each iteration, I of them.
        error: The relative L2 distance of whole images from the reference, the geometric mean over images.
    """

    solver: Solver
    steps: tuple[int, ...]
    error: float


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """The measurements by which plans are chosen, for I iterations and the n numbers of `STEPS`.

    Attributes:
        errors: The squared error of each iteration's tokens by solver, [I, n]; see `ErrorModel.chain_errors`.
        propagation: The growth of these errors until the image is finished, [I]; see `ErrorModel.error_propagation`.
        times: The time of an image.
    """

    errors: Mapping[Solver, NDArray[np.float64]]
    propagation: NDArray[np.float64]
    times: StepTimes

    def predicted(self, solver: Solver) -> NDArray[np.float64]:
        """Return what each iteration adds to the squared error of the finished image, [I, n]."""
        return self.propagation[:, None] * self.errors[solver]

    @property
    def least_seconds(self) -> float:
        """The time of an image with the fewest steps in every iteration."""
        return self.times.seconds([STEPS[0]] * len(self.propagation))

    @property
    def most_seconds(self) -> float:
        """The time of an image with the most steps in every iteration."""
        return self.times.seconds([STEPS[-1]] * len(self.propagation))

    def uniform(self, budget: float) -> tuple[int, ...]:
        """Return the most steps, the same number in every iteration, within a budget in seconds."""
        iterations = len(self.propagation)
        affordable = (steps for steps in STEPS if self.times.seconds([steps] * iterations) <= budget)
        return (max(affordable),) * iterations

    def best(self, solver: Solver, budget: float) -> tuple[int, ...]:
        """Return the steps of each iteration with the least predicted error within a budget in seconds."""
        seconds = np.outer(self.times.step, STEPS)  # [I, n]
        columns = minimize_error(self.predicted(solver), seconds, budget - self.times.fixed)
        return tuple(STEPS[column] for column in columns)


def find_steps(
    generator: Generator, schedule: Sampling, images: int, budget: float | None, allowed: float | None, bar: Bar
) -> tuple[StepPlan, StepTimes]:
    """Find the plan with the least error within a time budget, or with the least time within an allowed error.

    Args:
        generator: Generates the images, and is timed.
        schedule: Iterations and guidance of the plan.
        images: Number of images that errors are measured on.
        budget: The time of one image that is generated alone, in seconds; None if `allowed` is given.
        allowed: The largest relative L2 distance of latents from long chains, the geometric mean over images.
        bar: Opens a progress bar for each stage.

    Raises:
        RequestError: If even the fewest steps exceed the budget.
        CalibrationError: If no plan is within the allowed error, or the reference is not finite.
    """
    iterations = len(plan_for(generator.manifest.model, schedule).iterations)
    with bar(2 * ROUNDS, "timing") as progress:
        times = measure_times(generator, schedule, progress.update)
    least = times.seconds([STEPS[0]] * iterations)
    if budget is not None and budget < least:
        raise RequestError(
            f"--budget-ms {1e3 * budget:g} is less than the fastest plan takes here, {1e3 * least:.1f} ms with "
            f"{pluralize(STEPS[0], 'step')} in each of {pluralize(iterations, 'iteration')}; give more time, or fewer "
            "--iterations"
        )
    error_model, costs = _measure_costs(generator, schedule, images, times, bar)
    searches = len(costs.errors) + _FINALISTS
    if budget is not None:
        with bar(searches, "plans") as progress:
            return _best_plan(error_model, costs, budget, progress.update), times
    assert allowed is not None
    with bar((_HALVINGS + 1) * searches, "plans") as progress:
        return _fastest_plan(error_model, costs, allowed, progress.update), times


def _measure_costs(
    generator: Generator, schedule: Sampling, images: int, times: StepTimes, bar: Bar
) -> tuple[ErrorModel, StepCosts]:
    iterations, solvers = len(times.step), deterministic_solvers()
    with bar(iterations * len(batches(images)), "reference") as progress:
        error_model = ErrorModel.prepare(generator, schedule, images, progress.update)
    with bar(len(solvers) * len(STEPS), "chains") as progress:
        errors = {solver: error_model.chain_errors(solver, progress.update) for solver in solvers}
    with bar(iterations * len(PROPAGATED_STEPS), "propagation") as progress:
        propagation = error_model.error_propagation(lambda steps: _best_solver(errors, steps), progress.update)
    return error_model, StepCosts(errors, propagation, times)


def _best_solver(errors: Mapping[Solver, NDArray[np.float64]], steps: int) -> Solver:
    """The solver with the least error of the tokens, with a number of steps in every iteration."""
    return min(errors, key=lambda solver: errors[solver][:, STEPS.index(steps)].sum())


def _best_plan(error_model: ErrorModel, costs: StepCosts, budget: float, advance: Callable[[int], None]) -> StepPlan:
    """The plan within the budget whose images are closest to the reference.

    The candidates are uniform steps with every solver, and with the best few solvers the steps of the least
    predicted error. The errors of whole images decide.
    """

    def measured(solver: Solver, steps: tuple[int, ...]) -> StepPlan:
        advance(1)
        return StepPlan(solver, steps, error_model.image_error(solver, steps))

    uniform = sorted((measured(solver, costs.uniform(budget)) for solver in costs.errors), key=lambda plan: plan.error)
    chosen = [measured(plan.solver, costs.best(plan.solver, budget)) for plan in uniform[:_FINALISTS]]
    return min([*chosen, *uniform], key=lambda plan: plan.error)


def _fastest_plan(
    error_model: ErrorModel, costs: StepCosts, allowed: float, advance: Callable[[int], None]
) -> StepPlan:
    """The best plan of the smallest budget with at most the `allowed` error, by bisection of the budget."""
    low, high = costs.least_seconds, costs.most_seconds
    best = _best_plan(error_model, costs, high, advance)
    if best.error > allowed:
        raise CalibrationError(
            f"no plan keeps the error within {allowed:g}: the best has {best.error:.4f}, with up to "
            f"{STEPS[-1]} steps in each iteration; allow a larger error"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        plan = _best_plan(error_model, costs, middle, advance)
        if plan.error <= allowed:
            best, high = plan, middle
        else:
            low = middle
    return best

"""The diffusion steps of each iteration, and their solver, that leave the least error within a budget of time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.steps.error_model import DISTURBED, STEPS, ErrorModel, batches
from calibration.steps.knapsack import least_error
from calibration.steps.solvers import Solver, solvers
from calibration.steps.timing import ROUNDS, StepTimes, measured_times
from runtime.errors import CalibrationError, RequestError
from runtime.generator import Generator
from runtime.sampling.plan import build_plan
from runtime.sampling.settings import Sampling

Bar = Callable[[int, str], AbstractContextManager[Any]]  # a progress bar: its length and what goes on

_FINALISTS = 3  # solvers for which steps are given out one by one
_HALVINGS = 7  # of the range of budgets, where an error is allowed


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """A solver and its steps in each iteration; `error` is that of a typical whole image, relative L2."""

    solver: Solver
    steps: tuple[int, ...]
    error: float


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """What plans are chosen by: errors [K, n] by solver with each of `STEPS`, gains [K], and times."""

    errors: Mapping[Solver, NDArray[np.float64]]
    gains: NDArray[np.float64]
    times: StepTimes

    def predicted(self, solver: Solver) -> NDArray[np.float64]:
        """What each iteration adds to the error of the finished image, [K, n]."""
        return self.gains[:, None] * self.errors[solver]

    @property
    def least_seconds(self) -> float:
        return self.times.seconds([STEPS[0]] * len(self.gains))

    @property
    def most_seconds(self) -> float:
        return self.times.seconds([STEPS[-1]] * len(self.gains))

    def uniform(self, budget: float) -> tuple[int, ...]:
        """The most steps, as many in every iteration, that the budget has."""
        rows = len(self.gains)
        return (max(steps for steps in STEPS if self.times.seconds([steps] * rows) <= budget),) * rows

    def best(self, solver: Solver, budget: float) -> tuple[int, ...]:
        """The steps of each iteration with the least predicted error within the budget."""
        seconds = np.outer(self.times.step, STEPS)  # [K, n]
        columns = least_error(self.predicted(solver), seconds, budget - self.times.fixed)
        return tuple(STEPS[column] for column in columns)


def find_steps(
    generator: Generator, schedule: Sampling, images: int, budget: float | None, allowed: float | None, bar: Bar
) -> tuple[StepPlan, StepTimes]:
    """The plan with the least error within `budget` seconds an image, or the least time within an `allowed` error.

    Errors are relative L2 distances of a typical image's latents from those of long chains, over
    `images` real trajectories; times are those of an image drawn alone here. Raises `RequestError` where no plan is
    within the budget, `CalibrationError` where none is within the error.
    """
    iterations = len(build_plan(generator.manifest.model.tokens, schedule).iterations)
    with bar(2 * ROUNDS, "timing") as progress:
        times = measured_times(generator, schedule, progress.update)
    least = times.seconds([STEPS[0]] * iterations)
    if budget is not None and budget < least:
        raise RequestError(
            f"--budget-ms {1e3 * budget:g} is less than the least plan takes here, {1e3 * least:.1f} ms with "
            f"{STEPS[0]} steps in each of {iterations} iterations; give more time, or fewer --iterations"
        )
    with bar(iterations * len(batches(images)), "reference") as progress:
        laboratory = ErrorModel.prepared(generator, schedule, images, progress.update)
    found = solvers()
    with bar(len(found) * len(STEPS), "chains") as progress:
        errors = {solver: laboratory.chain_errors(solver, progress.update) for solver in found}
    with bar(iterations * len(DISTURBED), "propagation") as progress:
        gains = laboratory.gains(lambda steps: _best_alone(errors, steps), progress.update)
    costs = StepCosts(errors, gains, times)
    if budget is not None:
        with bar(len(found) + _FINALISTS, "plans") as progress:
            return _best(laboratory, costs, budget, progress.update), times
    assert allowed is not None
    with bar((_HALVINGS + 1) * (len(found) + _FINALISTS), "plans") as progress:
        return _soonest(laboratory, costs, allowed, progress.update), times


def _best_alone(errors: Mapping[Solver, NDArray[np.float64]], steps: int) -> Solver:
    """The solver with the least error in the tokens, of so many steps."""
    return min(errors, key=lambda solver: errors[solver][:, STEPS.index(steps)].sum())


def _best(laboratory: ErrorModel, costs: StepCosts, budget: float, advance: Callable[[int], None]) -> StepPlan:
    """The plan within the budget whose whole images are nearest to the reference.

    Uniform steps of every solver are drawn, and of the best few solvers the steps that should do best.
    """

    def drawn(solver: Solver, steps: tuple[int, ...]) -> StepPlan:
        advance(1)
        return StepPlan(solver, steps, laboratory.image_error(solver, steps))

    uniform = sorted((drawn(solver, costs.uniform(budget)) for solver in costs.errors), key=lambda plan: plan.error)
    chosen = [drawn(plan.solver, costs.best(plan.solver, budget)) for plan in uniform[:_FINALISTS]]
    return min([*chosen, *uniform], key=lambda plan: plan.error)


def _soonest(laboratory: ErrorModel, costs: StepCosts, allowed: float, advance: Callable[[int], None]) -> StepPlan:
    """The best plan of the least budget whose whole images are within the `allowed` error."""
    low, high = costs.least_seconds, costs.most_seconds
    found = _best(laboratory, costs, high, advance)
    if found.error > allowed:
        raise CalibrationError(
            f"no plan keeps the error within {allowed:g}: the best has {found.error:.4f}, with up to "
            f"{STEPS[-1]} steps an iteration; allow more"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        plan = _best(laboratory, costs, middle, advance)
        if plan.error <= allowed:
            found, high = plan, middle
        else:
            low = middle
    return found

"""The errors of short diffusion chains, against images generated in full."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.steps.error_model import STEPS, ErrorModel, nonincreasing
from calibration.steps.plan_search import StepCosts
from calibration.steps.solvers import REFERENCE, REFERENCE_STEPS, Solver
from calibration.steps.timing import StepTimes
from calibration.steps.trajectories import TrajectorySampler
from runtime.errors import CalibrationError
from runtime.generator import Generator
from runtime.model.coefficients import COEFFICIENTS
from runtime.model.engine_spec import Array
from tests.helpers.distance import relative_l2
from tests.helpers.step_search import SCHEDULE

COUNT = 10  # more than one batch


@pytest.fixture(scope="module")
def error_model(small_generator: Generator) -> ErrorModel:
    return ErrorModel.prepare(small_generator, SCHEDULE, COUNT, lambda done: None)


def test_the_reference_has_long_chains_and_keeps_the_output_of_the_backbone(error_model: ErrorModel) -> None:
    plan = error_model.plan(REFERENCE, REFERENCE_STEPS)
    for trajectory in error_model.trajectories:
        assert relative_l2(error_model.sampler.sample(plan, trajectory.inputs), trajectory.tokens) < 1e-6
        for iteration, z in zip(plan.iterations, trajectory.vectors, strict=True):
            found = error_model.sampler.predict(iteration, trajectory.inputs, z)
            right = trajectory.tokens[iteration.known : iteration.known + iteration.count]
            assert relative_l2(found, right) < 1e-4
    assert error_model.image_error(REFERENCE, REFERENCE_STEPS) < 1e-5


def test_chain_errors_are_those_of_the_tokens_and_fall_with_more_steps(error_model: ErrorModel) -> None:
    solver = REFERENCE
    errors = error_model.chain_errors(solver, lambda done: None)
    assert errors.shape == (3, len(STEPS))
    assert (errors[:, STEPS.index(8)] > 4 * errors[:, STEPS.index(50)]).all()
    # One entry computed directly: all tokens but those of the last iteration are the reference's.
    plan = error_model.plan(solver, 5)
    decibels = []
    for trajectory in error_model.trajectories:
        known = trajectory.tokens[: plan.iterations[-1].known]
        difference = error_model.sampler.complete(plan, 2, trajectory.inputs, known) - trajectory.tokens
        for image in range(difference.shape[1]):
            error = np.linalg.norm(difference[:, image]) / np.linalg.norm(trajectory.tokens[:, image])
            decibels.append(20 * np.log10(error))
    assert len(decibels) == COUNT
    assert 10 * np.log10(errors[-1, STEPS.index(5)]) == pytest.approx(np.mean(decibels), abs=0.01)


def test_error_propagation_falls_to_one_at_the_last_iteration(error_model: ErrorModel) -> None:
    propagation = error_model.error_propagation(lambda steps: Solver("dpm++2m", 980), lambda done: None)
    assert propagation[-1] == pytest.approx(1)  # no token depends on it
    assert (np.diff(propagation) <= 0).all()
    assert propagation[0] > 1.01


def test_predicted_errors_rank_plans_as_measured_errors_do(error_model: ErrorModel) -> None:
    """Long chains in early iterations against long chains in late ones."""
    solver = Solver("dpm++2m", 980)
    errors = error_model.chain_errors(solver, lambda done: None)
    propagation = error_model.error_propagation(lambda steps: solver, lambda done: None)
    costs = StepCosts({solver: errors}, propagation, StepTimes(0.0, np.ones(3)))
    plans = list(itertools.permutations((4, 8, 32)))
    predicted = [sum(costs.predicted(solver)[k, STEPS.index(n)] for k, n in enumerate(steps)) for steps in plans]
    measured = [error_model.image_error(solver, steps) ** 2 for steps in plans]
    assert np.argmin(measured) == np.argmin(predicted)
    assert np.corrcoef(np.log(predicted), np.log(measured))[0, 1] > 0.8


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12))
def test_nonincreasing_values_are_the_nearest_ones(values: list[float]) -> None:
    given_values = np.array(values)
    found = nonincreasing(given_values)
    assert (np.diff(found) <= 1e-12).all()
    # The nearest point of a convex set (Moreau): tried in the direction of a step at every place.
    directions = [np.where(np.arange(len(values)) <= place, 1.0, 0.0) for place in range(len(values))]
    for direction in directions:
        assert float((given_values - found) @ direction) <= 1e-9
    assert float((given_values - found) @ found) == pytest.approx(0, abs=1e-9)


@pytest.fixture
def overflowing(small_generator: Generator) -> Generator:
    """Engines that overflow in chains that start as high as the reference."""

    def denoise(**inputs: Array) -> tuple[Array, ...]:
        x, x0 = small_generator.engines.denoise(**inputs)
        high = inputs["coefficients"][COEFFICIENTS.index("x0_from_x")] > 100
        return (np.full_like(x, np.inf) if high else x), x0

    return Generator(small_generator.manifest, dataclasses.replace(small_generator.engines, denoise=denoise), "")


def test_a_reference_with_values_that_are_not_finite_is_refused(overflowing: Generator) -> None:
    with pytest.raises(
        CalibrationError, match=r"the reference, 1,000 steps of dpm\+\+2m, has values that are not finite"
    ):
        ErrorModel.prepare(overflowing, SCHEDULE, 1, lambda done: None)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_chain_that_overflows_has_an_infinite_error(error_model: ErrorModel, overflowing: Generator) -> None:
    broken = dataclasses.replace(
        error_model, sampler=TrajectorySampler(overflowing.engines, overflowing.manifest.model)
    )
    for solver, finite in ((REFERENCE, False), (Solver("ddim"), True)):
        assert (np.isfinite(broken.chain_errors(solver, lambda done: None)) == finite).all()
        assert np.isfinite(broken.image_error(solver, 8)) == finite

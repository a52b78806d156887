"""The errors of short diffusion chains: in the tokens of one iteration, and in the finished image.

Errors are geometric means over images, which is the mean of their decibels. A small error sometimes turns an image
into a different one, and a few such images would dominate an arithmetic mean.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.seeds import STEP_SEARCH_SEED
from calibration.steps.solvers import REFERENCE, REFERENCE_STEPS, Solver
from calibration.steps.trajectories import Trajectory, TrajectoryInputs, TrajectorySampler, energies
from runtime.errors import CalibrationError
from runtime.generator import Generator
from runtime.model.family_config import FamilyConfig
from runtime.sampling.constraints import plan_for
from runtime.sampling.plan import Float, Plan
from runtime.sampling.settings import Sampling

Float64 = NDArray[np.float64]

STEPS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 25, 32, 40, 50)
"""The numbers of diffusion steps that an iteration can get."""

PROPAGATED_STEPS = (4, 8, 17)
"""The numbers of steps whose errors are propagated to the finished image."""

_REMAINING_STEPS = 10  # of the chains that complete an image while an error is propagated
_BATCH = 8
_MIN_ENERGY = 1e-30  # stands for an error of zero


@dataclasses.dataclass(frozen=True)
class ErrorModel:
    """Measures errors against reference images, which were generated with long chains.

    Attributes:
        sampler: Generates images.
        config: The model.
        schedule: Iterations and guidance of all images.
        trajectories: The reference images, in batches.
    """

    sampler: TrajectorySampler
    config: FamilyConfig
    schedule: Sampling
    trajectories: Sequence[Trajectory]

    @classmethod
    def prepare(
        cls, generator: Generator, schedule: Sampling, images: int, advance: Callable[[int], None]
    ) -> ErrorModel:
        """Generate the reference images.

        Args:
            generator: Its engines are used.
            schedule: Iterations and guidance.
            images: Number of reference images.
            advance: Called with 1 for every iteration of every batch.

        Raises:
            CalibrationError: If a value is not finite.
        """
        config = generator.manifest.model
        sampler = TrajectorySampler(generator.engines, config)
        plan = plan_for(config, REFERENCE.sampling(schedule, REFERENCE_STEPS))
        trajectories = [
            sampler.record(
                plan, TrajectoryInputs.seeded(STEP_SEARCH_SEED, numbers, config, schedule.token_order), advance
            )
            for numbers in batches(images)
        ]
        if not all(np.isfinite(trajectory.tokens).all() for trajectory in trajectories):
            raise CalibrationError(
                f"the reference, {REFERENCE_STEPS:,} steps of {REFERENCE}, has values that are not finite; "
                "check the artifact's parity report with mar inspect"
            )
        return cls(sampler, config, schedule, trajectories)

    def plan(self, solver: Solver, steps: int | Sequence[int]) -> Plan:
        """Return the plan of the schedule with this solver, and one number of steps or one for each iteration."""
        return plan_for(self.config, solver.sampling(self.schedule, steps))

    def chain_errors(self, solver: Solver, advance: Callable[[int], None]) -> Float64:
        """Measure the error in the tokens of each iteration alone, with the reference's output of the backbone.

        Args:
            solver: The solver of the short chains.
            advance: Called with 1 for every number of `STEPS`.

        Returns:
            Squared errors [I, n] for I iterations and the n numbers of `STEPS`, as shares of the squared norm of the
            whole image: the errors of different iterations add up.
        """
        errors = []
        for steps in STEPS:
            plan = self.plan(solver, steps)
            errors.append([self._chain_error(plan, number) for number in range(len(plan.iterations))])
            advance(1)
        return np.array(errors).T

    def error_propagation(self, best: Callable[[int], Solver], advance: Callable[[int], None]) -> Float64:
        """Measure how much larger the squared error of the finished image is than that of one iteration's tokens.

        The tokens of one iteration get the error of a short chain. The image is completed once with and once without
        that error. The factor is the geometric mean over the step numbers of `PROPAGATED_STEPS`, made non-increasing
        from iteration to iteration: the later the error, the fewer tokens depend on it.

        Args:
            best: Returns the best solver for a number of steps.
            advance: Called with 1 for every iteration and every number of `PROPAGATED_STEPS`.

        Returns:
            The factor of each iteration, [I].
        """
        logarithms = []
        for steps in PROPAGATED_STEPS:
            plan, remaining = self.plan(best(steps), steps), self.plan(best(_REMAINING_STEPS), _REMAINING_STEPS)
            undisturbed = [self.sampler.sample(remaining, trajectory.inputs) for trajectory in self.trajectories]
            of_iterations = []
            for number in range(len(plan.iterations)):
                errors = [self._token_error(plan, number, trajectory) for trajectory in self.trajectories]
                final_errors = [
                    self._disturbed(remaining, number, trajectory.inputs, tokens, error) - tokens
                    for trajectory, tokens, error in zip(self.trajectories, undisturbed, errors, strict=True)
                ]
                of_iterations.append(np.log(mean_energy(final_errors) / mean_energy(errors)))
                advance(1)
            logarithms.append(of_iterations)
        return np.exp(nonincreasing(np.mean(logarithms, axis=0)))

    def image_error(self, solver: Solver, steps: int | Sequence[int]) -> float:
        """Return the relative L2 distance of whole images from the reference, the geometric mean over images."""
        plan = self.plan(solver, steps)
        error = mean_energy([self.sampler.sample(plan, each.inputs) - each.tokens for each in self.trajectories])
        return float(np.sqrt(error / self._energy))

    @property
    def _energy(self) -> float:
        return mean_energy([trajectory.tokens for trajectory in self.trajectories])

    def _chain_error(self, plan: Plan, number: int) -> float:
        errors = [self._token_error(plan, number, trajectory) for trajectory in self.trajectories]
        return mean_energy(errors) / self._energy

    def _token_error(self, plan: Plan, number: int, trajectory: Trajectory) -> Float:
        """The error of the tokens [K, B, D] of one iteration of `plan` if all earlier tokens are the reference's."""
        iteration = plan.iterations[number]
        expected = trajectory.tokens[iteration.known : iteration.known + iteration.count]
        return self.sampler.predict(iteration, trajectory.inputs, trajectory.vectors[number]) - expected

    def _disturbed(self, plan: Plan, number: int, inputs: TrajectoryInputs, tokens: Float, error: Float) -> Float:
        """The finished tokens [L, B, D] of `plan` if those of iteration `number` get an error."""
        iteration = plan.iterations[number]
        known = tokens[: iteration.known + iteration.count].copy()
        known[iteration.known :] += error
        return self.sampler.complete(plan, number + 1, inputs, known)


def mean_energy(tokens: Sequence[Float]) -> float:
    """Return the geometric mean over images of the sum of squares of their tokens, from batches of [V, B, D]."""
    values = np.maximum(np.concatenate([energies(each) for each in tokens]), _MIN_ENERGY)
    if not np.isfinite(values).all():  # a few steps from a high start can overflow
        return math.inf
    return float(np.exp(np.log(values).mean()))


def batches(images: int) -> list[range]:
    """Return the numbers of `images` images, in batches."""
    return [range(start, min(start + _BATCH, images)) for start in range(0, images, _BATCH)]


def nonincreasing(values: Float64) -> Float64:
    """Return the nearest values, by squared distance, that never increase (isotonic regression).

    The algorithm is pooling of adjacent violators (Ayer et al., 1955).
    """
    pools: list[tuple[float, int]] = []  # mean and size
    for value in values:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-1][0] > pools[-2][0]:
            (last, n), (before, m) = pools.pop(), pools.pop()
            pools.append(((last * n + before * m) / (n + m), n + m))
    return np.repeat([mean for mean, _ in pools], [size for _, size in pools])

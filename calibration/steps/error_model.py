"""What short chains do to an image: the error in the tokens of one iteration, and what comes of it in the end.

Errors are those of a typical image, the geometric mean over images (the mean of their decibels). A small error
now and then turns an image into another one, and a few such images would decide any other mean.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.steps.solvers import REFERENCE, REFERENCE_STEPS, Solver
from calibration.steps.trajectories import Trajectory, TrajectoryInputs, TrajectorySampler, energies
from runtime.errors import CalibrationError
from runtime.generator import Generator
from runtime.model.config import ModelConfig
from runtime.sampling.plan import Float, Plan, build_plan
from runtime.sampling.settings import Sampling

Float64 = NDArray[np.float64]

STEPS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 25, 32, 40, 50)  # of a chain that may be chosen
DISTURBED = (4, 8, 17)  # steps of the chains whose errors are followed to the end
_FOLLOWED_STEPS = 10  # of all other chains then
_SEED = 2**29  # apart from those of calibration's other images, and those that people draw
_TOGETHER = 8  # images
_LEAST = 1e-30  # of an energy, where nothing is wrong


@dataclasses.dataclass(frozen=True)
class ErrorModel:
    """What errors are measured on: `trajectories` are the reference, by long chains, in batches."""

    artist: TrajectorySampler
    config: ModelConfig
    schedule: Sampling
    trajectories: Sequence[Trajectory]

    @classmethod
    def prepared(
        cls, generator: Generator, schedule: Sampling, images: int, advance: Callable[[int], None]
    ) -> ErrorModel:
        """Draw the reference of so many images; `advance` is told of every iteration of every batch.

        Raises `CalibrationError` where it is not finite.
        """
        config = generator.manifest.model
        artist = TrajectorySampler(generator.engines, config)
        plan = build_plan(config.tokens, REFERENCE.sampling(schedule, REFERENCE_STEPS))
        followed = [
            artist.follow(plan, TrajectoryInputs.seeded(_SEED, numbers, config, schedule.token_order), advance)
            for numbers in batches(images)
        ]
        if not all(np.isfinite(trajectory.tokens).all() for trajectory in followed):
            raise CalibrationError(
                f"{REFERENCE_STEPS:,} steps of {REFERENCE} end in values that are not finite; "
                "check the artifact's parity report"
            )
        return cls(artist, config, schedule, followed)

    def plan(self, solver: Solver, steps: int | Sequence[int]) -> Plan:
        return build_plan(self.config.tokens, solver.sampling(self.schedule, steps))

    def chain_errors(self, solver: Solver, advance: Callable[[int], None]) -> Float64:
        """The error in the tokens of each iteration, by the reference's z, with each number of `STEPS`: [K, n].

        Squared, in shares of the energy of the whole image, so that errors of iterations add up. `advance` is
        told of every number of steps.
        """
        found = []
        for steps in STEPS:
            plan = self.plan(solver, steps)
            found.append([self._missed(plan, number) for number in range(len(plan.iterations))])
            advance(1)
        return np.array(found).T

    def gains(self, best: Callable[[int], Solver], advance: Callable[[int], None]) -> Float64:
        """How many times larger the error of the finished image is than that of one iteration's tokens: [K].

        The tokens of an iteration are given the error that a short chain of `best` makes there, and the
        image is finished alike with and without it. The mean (in logarithms) over chains of `DISTURBED`
        steps, made to fall from iteration to iteration, since less and less is left to be spoilt. `advance` is
        told of every iteration.
        """
        logarithms = []
        for steps in DISTURBED:
            plan, going_on = self.plan(best(steps), steps), self.plan(best(_FOLLOWED_STEPS), _FOLLOWED_STEPS)
            undisturbed = [self.artist.draw(going_on, trajectory.images) for trajectory in self.trajectories]
            of_iterations = []
            for number in range(len(plan.iterations)):
                errors = [self._error(plan, number, trajectory) for trajectory in self.trajectories]
                finished = [
                    self._disturbed(going_on, number, trajectory.images, usual, error) - usual
                    for trajectory, usual, error in zip(self.trajectories, undisturbed, errors, strict=True)
                ]
                of_iterations.append(np.log(typical(finished) / typical(errors)))
                advance(1)
            logarithms.append(of_iterations)
        return np.exp(falling(np.mean(logarithms, axis=0)))

    def image_error(self, solver: Solver, steps: int | Sequence[int]) -> float:
        """Relative L2 distance of a typical whole image from the reference."""
        plan = self.plan(solver, steps)
        missed = typical([self.artist.draw(plan, each.images) - each.tokens for each in self.trajectories])
        return float(np.sqrt(missed / self._energy))

    @property
    def _energy(self) -> float:
        return typical([trajectory.tokens for trajectory in self.trajectories])

    def _missed(self, plan: Plan, number: int) -> float:
        return typical([self._error(plan, number, trajectory) for trajectory in self.trajectories]) / self._energy

    def _error(self, plan: Plan, number: int, trajectory: Trajectory) -> Float:
        """Of the tokens [K, B, D] of iteration `number` by the chain of `plan`, where all before it is right."""
        iteration = plan.iterations[number]
        right = trajectory.tokens[iteration.known : iteration.known + iteration.count]
        return self.artist.predict(iteration, trajectory.images, trajectory.vectors[number]) - right

    def _disturbed(self, plan: Plan, number: int, images: TrajectoryInputs, usual: Float, error: Float) -> Float:
        """The tokens [L, B, D] that `plan` ends in where those of iteration `number` have an error."""
        iteration = plan.iterations[number]
        tokens = usual[: iteration.known + iteration.count].copy()
        tokens[iteration.known :] += error
        return self.artist.go_on(plan, number + 1, images, tokens)


def typical(tokens: Sequence[Float]) -> float:
    """The geometric mean over images of the energy of their tokens, in batches of [V, B, D]."""
    found = np.maximum(np.concatenate([energies(each) for each in tokens]), _LEAST)
    if not np.isfinite(found).all():  # few steps from a high start may pass every bound
        return math.inf
    return float(np.exp(np.log(found).mean()))


def batches(images: int) -> list[range]:
    """The numbers of so many images, those that are drawn together at a time."""
    return [range(start, min(start + _TOGETHER, images)) for start in range(0, images, _TOGETHER)]


def falling(values: Float64) -> Float64:
    """The nearest values, by squared distance, that never rise: pooling adjacent violators (Ayer et al., 1955)."""
    pools: list[tuple[float, int]] = []  # mean and size
    for value in values:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-1][0] > pools[-2][0]:
            (last, n), (before, m) = pools.pop(), pools.pop()
            pools.append(((last * n + before * m) / (n + m), n + m))
    return np.repeat([mean for mean, _ in pools], [size for _, size in pools])

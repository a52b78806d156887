"""The time of one image: the part that does not depend on diffusion steps, and the time of a step."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.steps.solvers import Solver
from runtime.generator import Generator
from runtime.sampling.settings import Sampling

ROUNDS = 8
"""How often each plan is timed. The first round warms up and is not counted."""

_STEPS = (4, 20)  # the diffusion steps of the two plans that are timed


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """The time of an image that is generated alone, in seconds.

    Attributes:
        fixed: The time that does not depend on the number of diffusion steps.
        step: The time of one diffusion step in each iteration, [I].
    """

    fixed: float
    step: NDArray[np.float64]

    def seconds(self, steps: Sequence[int]) -> float:
        """Return the time of an image with these numbers of steps, one for each iteration."""
        return self.fixed + float(self.step @ np.asarray(steps))

    def uniform_steps(self, steps: Sequence[int]) -> int:
        """Return the least number of steps, the same in every iteration, that takes at least as long as `steps`."""
        return max(steps) if not self.step.any() else math.ceil(self.step @ np.asarray(steps) / self.step.sum() - 1e-9)


def measure_times(generator: Generator, schedule: Sampling, advance: Callable[[int], None]) -> StepTimes:
    """Time whole images with short and with long chains, in turn, and return what their medians say.

    No time is less than 0, also where other work made the short chains slow or fast.

    Args:
        generator: Generates the images, one at a time.
        schedule: Iterations and guidance.
        advance: Called with 1 after each image: 2 `ROUNDS` in all.
    """
    settings = [Solver("ddim").sampling(schedule, steps) for steps in _STEPS]
    seconds: list[list[NDArray[np.float64]]] = [[] for _ in settings]
    for number in range(ROUNDS):
        for sampling, measured in zip(settings, seconds, strict=True):
            timed = _iteration_seconds(generator, sampling, number)
            if number:
                measured.append(timed)
            advance(1)
    short, long = (np.median(measured, axis=0) for measured in seconds)
    step = np.maximum((long - short) / (_STEPS[1] - _STEPS[0]), 0)[:-1]  # [I]
    return StepTimes(max(0.0, float(long.sum() - _STEPS[1] * step.sum())), step)


def _iteration_seconds(generator: Generator, sampling: Sampling, number: int) -> NDArray[np.float64]:
    """The seconds of every iteration of an image, then of everything after the last one: [I + 1]."""
    times = [time.perf_counter()]
    generator.generate([0], index=[number], sampling=sampling, progress=lambda *_: times.append(time.perf_counter()))
    return np.diff([*times, time.perf_counter()])

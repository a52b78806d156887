"""How long an image takes, and what each diffusion step of each iteration adds to that."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.steps.solvers import Solver
from runtime.generator import Generator
from runtime.sampling.settings import Sampling

_STEPS = (4, 20)  # of the chains of the two plans that are timed
ROUNDS = 8  # the first warms up


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """Seconds of an image drawn alone: `fixed` whatever its chains, `step` [K] for a step of each iteration."""

    fixed: float
    step: NDArray[np.float64]

    def seconds(self, steps: Sequence[int]) -> float:
        """Of an image with so many steps in each iteration."""
        return self.fixed + float(self.step @ np.asarray(steps))

    def uniform_steps(self, steps: Sequence[int]) -> int:
        """How many steps, as many in every iteration, take no less time than these."""
        return max(steps) if not self.step.any() else math.ceil(self.step @ np.asarray(steps) / self.step.sum() - 1e-9)


def with_presets(generator: Generator, presets: Mapping[str, Sampling]) -> Generator:
    """A generator on the same engines that knows these presets as the artifact's own."""
    manifest = dataclasses.replace(generator.manifest, presets=presets)
    return Generator(manifest, generator.engines, generator.description, loop=generator.loop)


def measured_times(generator: Generator, schedule: Sampling, advance: Callable[[int], None]) -> StepTimes:
    """Draw whole images with short and with long chains, in turn; medians, so that others here do little harm."""
    plans = {f"{steps}-steps": Solver("ddim").sampling(schedule, steps) for steps in _STEPS}
    drawing = with_presets(generator, plans)
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in plans}
    for number in range(ROUNDS):
        for name in plans:
            seconds = _timed(drawing, name, number)
            if number:
                found[name].append(seconds)
            advance(1)
    short, long = (np.median(of_plan, axis=0) for of_plan in found.values())
    step = np.maximum((long - short) / (_STEPS[1] - _STEPS[0]), 0)[:-1]  # [K]
    return StepTimes(float(long.sum() - _STEPS[1] * step.sum()), step)


def _timed(generator: Generator, preset: str, number: int) -> NDArray[np.float64]:
    """Seconds of every iteration of an image, and of what comes after the last: [K + 1]."""
    times = [time.perf_counter()]
    generator.generate([0], index=[number], preset=preset, progress=lambda *_: times.append(time.perf_counter()))
    return np.diff([*times, time.perf_counter()])

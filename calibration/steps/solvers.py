"""Ways to run a diffusion chain without fresh noise, so that what it ends in can be right or wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from runtime.model.coefficients import COEFFICIENTS
from runtime.sampling.plan import Plan
from runtime.sampling.samplers import DIFFUSION_SAMPLERS, CoefficientTable, coefficient_table
from runtime.sampling.settings import Sampling

# Where a chain starts decides more than its solver does: low starts err less where steps are few, high ones
# leave less of the image's mean out.
_STARTS = (None, 950, 980, 990)
_NOISE_SCALE = COEFFICIENTS.index("noise_scale")


@dataclasses.dataclass(frozen=True)
class Solver:
    """`sampler` from timestep `start`, where None the sampler's own."""

    sampler: str
    start: int | None = None

    def sampling(self, schedule: Sampling, steps: int | Sequence[int]) -> Sampling:
        """`schedule` with chains of this solver, all of so many steps or each iteration's of its own number."""
        return dataclasses.replace(
            schedule,
            sampler=self.sampler,
            start_timestep=self.start,
            diffusion_steps=steps if isinstance(steps, int) else tuple(steps),
            last_diffusion_steps=None,
            eta=0.0,
        )

    def __str__(self) -> str:
        return self.sampler if self.start is None else f"{self.sampler} from {self.start}"


# What errors are measured against. It starts where little of the image is left in the noise and converges at
# second order: on the example 250 steps of it are 0.35% off. A thousand of DDIM could only start at t = 999.
REFERENCE = Solver("dpm++2m")
REFERENCE_STEPS = 1000


def deterministic(plan: Plan) -> bool:
    """Whether no chain of `plan` adds noise."""
    return not any(_adds_noise(iteration.table) for iteration in plan.iterations)


def solvers() -> list[Solver]:
    """Every deterministic sampler from every start, those that are the same table once."""
    found: dict[tuple[str, float], Solver] = {}
    for sampler in DIFFUSION_SAMPLERS:
        for start in _STARTS:
            table = coefficient_table(sampler, 10, start=start)
            if not _adds_noise(table):
                found.setdefault((sampler, float(table.timesteps[0])), Solver(sampler, start))
    return list(found.values())


def _adds_noise(table: CoefficientTable) -> bool:
    return bool(table.coefficients[:, _NOISE_SCALE].any())

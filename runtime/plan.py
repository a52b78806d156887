"""The whole schedule of an image as one value, made once from the request and then only executed.

Generation order: the tokens known so far are a prefix of the order, those predicted by an iteration
are the next slice, the rest is the tail. So every length is known before the first pass.
"""

from __future__ import annotations

import dataclasses
import math

from runtime.diffusion import CoefficientTable, coefficient_table
from runtime.errors import RequestError

CFG_SCHEDULES = ("linear", "constant")


@dataclasses.dataclass(frozen=True)
class Iteration:
    """One pass of the backbone and the diffusion chain of the tokens it predicts."""

    known: int  # V, tokens visible to the backbone
    count: int  # K, tokens predicted now
    guidance_scale: float
    table: CoefficientTable

    @property
    def guided(self) -> bool:
        """Whether the unconditional half is computed at all."""
        return self.guidance_scale != 1.0


@dataclasses.dataclass(frozen=True)
class Plan:
    length: int  # L
    iterations: tuple[Iteration, ...]

    @property
    def diffusion_steps(self) -> int:
        """T, the longest chain: the noise of an image has T + 1 rows."""
        return max(iteration.table.steps for iteration in self.iterations)

    @property
    def head_evaluations(self) -> int:
        return sum(iteration.table.steps for iteration in self.iterations)


def tokens_per_iteration(length: int, iterations: int) -> list[int]:
    """How many of `length` tokens each of K iterations predicts, under the cosine schedule.

    After iteration k, floor(L cos(pi/2 (k + 1)/K)) tokens stay masked (MaskGIT, arXiv 2202.04200),
    but every iteration predicts at least one and leaves at least one to those after it.
    """
    if not 1 <= iterations <= length:
        raise RequestError(f"iterations must lie in 1..{length}, the tokens of an image, found {iterations}")
    counts, masked = [], length
    for k in range(iterations - 1):
        stay = max(1, min(masked - 1, math.floor(length * math.cos(math.pi / 2 * (k + 1) / iterations))))
        counts.append(masked - stay)
        masked = stay
    return [*counts, masked]


def build_plan(
    length: int,
    *,
    iterations: int,
    cfg_scale: float,
    cfg_schedule: str,
    temperature: float,
    sampler: str,
    diffusion_steps: int | str,
) -> Plan:
    """The plan of the published sampler for images of `length` tokens. Raises `RequestError`."""
    if cfg_schedule not in CFG_SCHEDULES:
        raise RequestError(f"cfg_schedule must be one of {', '.join(CFG_SCHEDULES)}, found {cfg_schedule!r}")
    if not (math.isfinite(cfg_scale) and cfg_scale >= 0):
        raise RequestError(f"cfg_scale must be a finite number of at least 0, found {cfg_scale!r}")
    table = coefficient_table(sampler, diffusion_steps, temperature)
    planned, known = [], 0
    for count in tokens_per_iteration(length, iterations):
        # The published linear schedule counts what is known after the iteration, but never all of it.
        progress = min(known + count, length - 1) / length if cfg_schedule == "linear" else 1.0
        planned.append(Iteration(known, count, 1 + (cfg_scale - 1) * progress, table))
        known += count
    return Plan(length, tuple(planned))

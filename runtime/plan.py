"""The whole schedule of an image as one value, made once from the request and then only executed.

Generation order: the tokens known so far are a prefix of the order, those predicted by an iteration
are the next slice, the rest is the tail. So every length is known before the first pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from runtime.diffusion import CoefficientTable, check_scale, coefficient_table
from runtime.errors import RequestError

CFG_SCHEDULES = ("linear", "constant")
DEFAULT_ITERATIONS = 64


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw: what fills a plan. Checked where the plan is built.

    `iterations` is K, min(64, tokens) where None; `cfg_scale` the guidance scale, 1 for none, growing
    with the share of known tokens under the `linear` schedule; `temperature` scales the noise of each
    diffusion step; `diffusion_steps` is a number or `"ddimN"`, the published respacing.
    """

    iterations: int | None = None
    cfg_scale: float = 1.0
    cfg_schedule: str = "linear"
    temperature: float = 1.0
    sampler: str = "ddpm"
    diffusion_steps: int | str = 100

    def changed(self, settings: Mapping[str, Any]) -> Sampling:
        """These settings with those of `settings` that are not None. Raises `RequestError` on unknown names."""
        unknown = sorted(settings.keys() - {field.name for field in dataclasses.fields(self)})
        if unknown:
            known = ", ".join(field.name for field in dataclasses.fields(self))
            raise RequestError(f"unknown sampling settings {', '.join(unknown)}; known: {known}")
        return dataclasses.replace(self, **{name: value for name, value in settings.items() if value is not None})


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
    def guidance_scale(self) -> float:
        """The largest of any iteration."""
        return max(iteration.guidance_scale for iteration in self.iterations)

    @property
    def head_evaluations(self) -> int:
        return sum(iteration.table.steps for iteration in self.iterations)


def tokens_per_iteration(length: int, iterations: int) -> list[int]:
    """How many of `length` tokens each of K iterations predicts, under the cosine schedule.

    After iteration k, floor(L cos(pi/2 (k + 1)/K)) tokens stay masked (MaskGIT, arXiv 2202.04200),
    but every iteration predicts at least one and leaves at least one to those after it.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or not 1 <= iterations <= length:
        raise RequestError(f"iterations must lie in 1..{length}, the tokens of an image, found {iterations!r}")
    counts, masked = [], length
    for k in range(iterations - 1):
        stay = max(1, min(masked - 1, math.floor(length * math.cos(math.pi / 2 * (k + 1) / iterations))))
        counts.append(masked - stay)
        masked = stay
    return [*counts, masked]


def _guidance_scale(sampling: Sampling, known: int, length: int) -> float:
    """The guidance scale of the iteration after which `known` of `length` tokens are known."""
    if sampling.cfg_schedule == "constant":
        return float(sampling.cfg_scale)
    # The published linear schedule never counts all tokens, not even after the last iteration.
    return 1 + (sampling.cfg_scale - 1) * min(known, length - 1) / length


def build_plan(length: int, sampling: Sampling) -> Plan:
    """The plan of the published loop for images of `length` tokens. Raises `RequestError`."""
    if sampling.cfg_schedule not in CFG_SCHEDULES:
        raise RequestError(f"cfg_schedule must be one of {', '.join(CFG_SCHEDULES)}, found {sampling.cfg_schedule!r}")
    check_scale("cfg_scale", sampling.cfg_scale)
    iterations = min(DEFAULT_ITERATIONS, length) if sampling.iterations is None else sampling.iterations
    table = coefficient_table(sampling.sampler, sampling.diffusion_steps, sampling.temperature)
    planned, known = [], 0
    for count in tokens_per_iteration(length, iterations):
        planned.append(Iteration(known, count, _guidance_scale(sampling, known + count, length), table))
        known += count
    return Plan(length, tuple(planned))

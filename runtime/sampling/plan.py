"""The whole schedule of an image as one value, made once from the request and then only executed.

Generation order: the tokens known so far are a prefix of the order, those predicted by an iteration
are the next slice, the rest is the tail. So every length is known before the first pass.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.checks import check_choice, check_int, check_number, check_scale, truncate
from runtime.errors import RequestError
from runtime.sampling.noise_schedule import TRAIN_STEPS, step_count
from runtime.sampling.rng import TOKEN_ORDERS
from runtime.sampling.samplers import CoefficientTable, coefficient_table, least_steps
from runtime.sampling.settings import Sampling

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Progress = Callable[[int, int], None]  # (iterations done, iterations in all)

CFG_SCHEDULES = ("linear", "constant")
DEFAULT_ITERATIONS = 64

# The share of tokens that stays masked once a share s of the iterations is done.
_MASKED_SHARE: dict[str, Callable[[float], float]] = {
    "cosine": lambda s: math.cos(math.pi / 2 * s),  # MaskGIT, arXiv 2202.04200
    "exponential": lambda s: (1 - math.exp(-5 * (1 - s))) / (1 - math.exp(-5)),  # eMIGM, arXiv 2503.07197
    "linear": lambda s: 1 - s,
}
MASK_SCHEDULES = tuple(_MASKED_SHARE)

# How much of the shrinking of chains is left in iteration k of 0..last, from 1 to 0 (DiSA, arXiv 2505.20297).
_LEFT_SHARE: dict[str, Callable[[int, int], float]] = {
    "linear": lambda k, last: (last - k) / last,
    "cosine": lambda k, last: (math.cos(math.pi * k / last) + 1) / 2,
    "two-stage": lambda k, last: float(2 * k < last),
}
STEP_SCHEDULES = tuple(_LEFT_SHARE)


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
    token_order: str

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


# Executes a plan for labels [B], order [L, B], noise [T + 1, L, B, D] and the tokens known before the first
# iteration [V, B, D], all in generation order. Returns all tokens, [L, B, D].
PlanLoop = Callable[[Plan, Int, Int, Float, Float, "Progress | None"], Float]


def build_plan(length: int, sampling: Sampling, known: int = 0) -> Plan:
    """The plan of an image of `length` tokens. Raises `RequestError` on settings that make no sense.

    Where `known` of them are there before the first iteration, the others are spread over as many
    iterations as ever, but no more than one a token. Diffusion steps that are named for each iteration
    belong to what is known: each takes those of the iteration in which a whole image has come as far.
    """
    check_choice("token_order", sampling.token_order, TOKEN_ORDERS)
    check_choice("cfg_schedule", sampling.cfg_schedule, CFG_SCHEDULES)
    check_scale("cfg_scale", sampling.cfg_scale)
    _check_interval(sampling.cfg_interval)
    check_int("known_tokens", known, 0, length - 1)
    iterations = min(DEFAULT_ITERATIONS, length) if sampling.iterations is None else sampling.iterations
    whole = counts = tokens_per_iteration(length, iterations, sampling.mask_schedule)
    if known:
        counts = tokens_per_iteration(length - known, min(iterations, length - known), sampling.mask_schedule)
    before = [known + done for done in _running_totals(counts)]
    planned = []
    for start, count, steps in zip(before, counts, _steps_per_iteration(sampling, whole, before), strict=True):
        table = coefficient_table(sampling.sampler, steps, sampling.temperature, sampling.eta, sampling.start_timestep)
        planned.append(Iteration(start, count, _guidance_scale(sampling, start, count, length), table))
    return Plan(length, tuple(planned), sampling.token_order)


def tokens_per_iteration(length: int, iterations: int, mask_schedule: str = "cosine") -> list[int]:
    """How many of `length` tokens each of K iterations predicts.

    After iteration k, floor(L share((k + 1)/K)) tokens stay masked, but every iteration predicts at
    least one and leaves at least one to each of those after it.
    """
    check_choice("mask_schedule", mask_schedule, MASK_SCHEDULES)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or not 1 <= iterations <= length:
        raise RequestError(f"iterations must lie in 1..{length}, the tokens of an image, found {truncate(iterations)}")
    share, counts, masked = _MASKED_SHARE[mask_schedule], [], length
    for k in range(iterations - 1):
        stay = max(iterations - 1 - k, min(masked - 1, math.floor(length * share((k + 1) / iterations))))
        counts.append(masked - stay)
        masked = stay
    return [*counts, masked]


def _running_totals(counts: Sequence[int]) -> list[int]:
    """The sum of all counts before each."""
    return list(itertools.accumulate(counts[:-1], initial=0))


def _steps_per_iteration(sampling: Sampling, whole: Sequence[int], before: Sequence[int]) -> Sequence[int | str]:
    """The diffusion steps of each iteration's chain: all alike, shrinking towards the last, or one by one.

    `whole` are the tokens that each iteration of a whole image predicts, `before` those known before
    each iteration that is planned.
    """
    check_choice("step_schedule", sampling.step_schedule, STEP_SCHEDULES)
    first, last, iterations = sampling.diffusion_steps, sampling.last_diffusion_steps, len(before)
    if not isinstance(first, (int, str)):
        return _named_steps(sampling, whole, before)
    if last is None:
        return [first] * iterations
    if isinstance(first, str) and first.startswith("ddim"):
        raise RequestError(f"last_diffusion_steps needs a number of diffusion_steps to shrink from, found {first!r}")
    least = least_steps(sampling.sampler)
    most = step_count(first, least)
    check_int("last_diffusion_steps", last, least, most)
    left, final = _LEFT_SHARE[sampling.step_schedule], max(1, iterations - 1)
    return [last + int(left(k, final) * (most - last)) for k in range(iterations)]


def _named_steps(sampling: Sampling, whole: Sequence[int], before: Sequence[int]) -> list[int]:
    """Diffusion steps named for each iteration of a whole image, for iterations that begin at `before`."""
    named, last = sampling.diffusion_steps, sampling.last_diffusion_steps
    if not isinstance(named, tuple):
        raise RequestError(
            f"diffusion_steps must be a whole number, 'ddimN' or a list of them, found {truncate(named)}"
        )
    if len(named) != len(whole):
        raise RequestError(
            f"diffusion_steps names the steps of {len(named)} iterations, found {len(whole)} iterations and "
            f"{truncate(list(named))}; name as many, or one number for all"
        )
    if last is not None:
        raise RequestError(f"last_diffusion_steps needs one number of diffusion_steps, found {truncate(list(named))}")
    for steps in named:
        check_int("diffusion_steps of an iteration", steps, least_steps(sampling.sampler), TRAIN_STEPS)
    begins = _running_totals(whole)
    return [named[bisect.bisect_right(begins, known) - 1] for known in before]


def _guidance_scale(sampling: Sampling, known: int, count: int, length: int) -> float:
    """The guidance scale of the iteration that predicts `count` tokens where `known` are known."""
    low, high = sampling.cfg_interval
    if not low <= known / length <= high:
        return 1.0
    if sampling.cfg_schedule == "constant":
        return float(sampling.cfg_scale)
    # The published linear schedule never counts all tokens, not even after the last iteration.
    return 1 + (sampling.cfg_scale - 1) * min(known + count, length - 1) / length


def _check_interval(interval: object) -> None:
    if not isinstance(interval, (tuple, list)) or len(interval) != 2:
        raise RequestError(f"cfg_interval must be two shares of known tokens, low and high, found {truncate(interval)}")
    low, high = interval
    check_number("cfg_interval: low", low, 0, 1)
    check_number("cfg_interval: high", high, 0, 1)
    if low > high:
        raise RequestError(f"cfg_interval must be LOW and then HIGH, found {low} and {high}")

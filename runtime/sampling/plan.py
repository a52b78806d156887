"""The plan of an image: every iteration of its generation, made from the sampling settings before anything runs.

In generation order, the known tokens are a prefix, the tokens that an iteration predicts are the next slice, and the
others are the tail. So the sizes of all arrays are known before the first iteration.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.checks import check_bool, check_choice, check_int, check_number, check_scale, pluralize, truncate
from runtime.errors import RequestError
from runtime.sampling.noise_schedule import TRAIN_STEPS, step_count
from runtime.sampling.recap import Group, check_recap, iteration_groups, local_steps
from runtime.sampling.rng import TOKEN_ORDERS
from runtime.sampling.samplers import CoefficientTable, coefficient_table, least_steps
from runtime.sampling.settings import LOW_RES_SETTINGS, Sampling

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Condition = NDArray[Any]
"""What is drawn, as the backbone reads it: an entry for each image and guidance half, the conditional half first. With
guidance in any iteration both halves are there. Int64 [G*B] for classes; float32 [G*B, Lc, C] for a prefix."""
Progress = Callable[[int, int], None]
"""Called with the number of iterations done and their total."""
AfterIteration = Callable[[int, int, Callable[[], Float]], None]
"""Called by a loop after each iteration with the number of iterations done, their total, and a function that returns
all tokens [L, B, D] in generation order, of which those of later iterations have no meaning yet. An exception ends the
loop."""

CFG_SCHEDULES = ("linear", "constant", "ramp")
"""The values of `Sampling.cfg_schedule`."""

DEFAULT_ITERATIONS = 64
"""The number of iterations if `Sampling.iterations` is None and the image has that many tokens."""

# The share of tokens that is still masked after a share s of the iterations.
_MASKED_SHARE: dict[str, Callable[[float], float]] = {
    "cosine": lambda s: math.cos(math.pi / 2 * s),  # MaskGIT, arXiv 2202.04200
    "exponential": lambda s: (1 - math.exp(-5 * (1 - s))) / (1 - math.exp(-5)),  # eMIGM, arXiv 2503.07197
    "linear": lambda s: 1 - s,
    "cosine-rounded": lambda s: math.cos(math.pi / 2 * s),  # NOVA, arXiv 2412.14169
}
_ROUNDED = "cosine-rounded"
MASK_SCHEDULES = tuple(_MASKED_SHARE)
"""The values of `Sampling.mask_schedule`."""

# DiSA (arXiv 2505.20297): the share of the difference between the first and the last number of steps that iteration
# k of 0..last still has, from 1 to 0.
_EXTRA_SHARE: dict[str, Callable[[int, int], float]] = {
    "linear": lambda k, last: (last - k) / last,
    "cosine": lambda k, last: (math.cos(math.pi * k / last) + 1) / 2,
    "two-stage": lambda k, last: float(2 * k < last),
}
STEP_SCHEDULES = tuple(_EXTRA_SHARE)
"""The values of `Sampling.step_schedule`."""


@dataclasses.dataclass(frozen=True)
class Iteration:
    """One iteration: a run of the backbone, and the diffusion chain of the tokens it predicts.

    Attributes:
        known: V, the number of known tokens, which the backbone reads.
        count: K, the number of tokens that are predicted.
        guidance_scale: The scale of classifier-free guidance; 1 is none.
        table: The diffusion chain.
        phase: The number of the grid whose tokens it predicts, in the order in which a family draws them.
        noise_start: The first row of noise that the chain reads. Chains of different tokens share rows.
        group: The group of ReCAP that it belongs to; None if its pass neither leaves nor reads keys and values.
        of_class: Whether its pass knows no tokens and is a function of the class alone, which is kept.
    """

    known: int
    count: int
    guidance_scale: float
    table: CoefficientTable
    phase: int = 0
    noise_start: int = 0
    group: Group | None = None
    of_class: bool = False

    @property
    def stop(self) -> int:
        """The number of tokens that are known after it."""
        return self.known + self.count

    @property
    def local(self) -> bool:
        """Whether its pass of the backbone is local: it reads keys and values that a full pass left."""
        return self.group is not None and self.known > self.group.start

    @property
    def backbone_halves(self) -> int:
        """The guidance halves that the backbone computes, which a chain without guidance does not need."""
        return 2 if self.guided or (self.group is not None and self.group.guided) else 1

    @property
    def guided(self) -> bool:
        """Whether the unconditional half is computed."""
        return self.guidance_scale != 1.0

    @property
    def renormalized(self) -> bool:
        """Whether guidance is renormalized."""
        return self.guided and self.table.renorm is not None

    @property
    def denoised_halves(self) -> tuple[int, ...]:
        """The numbers of guidance halves with which `denoise` is called."""
        if not self.guided:
            return (1,)
        return (2, 1) if self.table.unguided or self.renormalized else (2,)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All iterations of the generation of an image.

    Attributes:
        lengths: The number of tokens of each grid, in the order in which they are drawn. The last is L, the image.
        iterations: The iterations of all grids in order.
        token_order: The kind of generation order, one of `runtime.sampling.rng.TOKEN_ORDERS`.
    """

    lengths: tuple[int, ...]
    iterations: tuple[Iteration, ...]
    token_order: str

    @property
    def length(self) -> int:
        """L, the number of tokens of the image."""
        return self.lengths[-1]

    def phase(self, number: int) -> tuple[Iteration, ...]:
        """Return the iterations that draw the grid `number`."""
        return tuple(iteration for iteration in self.iterations if iteration.phase == number)

    def keeping_first_pass(self) -> Plan:
        """Return the plan with the first pass kept by class, if it knows no tokens and leaves no keys and values."""
        first, *later = self.iterations
        if first.known or first.group is not None:
            return self
        return dataclasses.replace(self, iterations=(dataclasses.replace(first, of_class=True), *later))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of ReCAP in order."""
        return tuple(dict.fromkeys(each.group for each in self.iterations if each.group is not None))

    @property
    def noise_steps(self) -> int:
        """One less than the rows of noise of an image: T, or more where a later grid has rows for each iteration."""
        return max(iteration.noise_start + iteration.table.steps for iteration in self.iterations)

    @property
    def diffusion_steps(self) -> int:
        """T, the steps of the longest diffusion chain."""
        return max(iteration.table.steps for iteration in self.iterations)

    @property
    def guided(self) -> bool:
        """Whether any iteration computes the unconditional half."""
        return any(iteration.guided for iteration in self.iterations)

    @property
    def renormalized(self) -> bool:
        """Whether any iteration renormalizes its guidance."""
        return any(iteration.renormalized for iteration in self.iterations)

    @property
    def guidance_scale(self) -> float:
        """The largest guidance scale of all iterations."""
        return max(iteration.guidance_scale for iteration in self.iterations)

    @property
    def head_evaluations(self) -> int:
        """The number of diffusion steps of all iterations together."""
        return sum(iteration.table.steps for iteration in self.iterations)


PlanLoop = Callable[[Plan, Condition, Int, Float, Float, "AfterIteration | None"], Float]
"""Executes a plan for a condition [G*B, ...], order [L, B], noise [T + 1, L, B, D] and the tokens [V, B, D] that are
known before the first iteration, and calls the last argument after each iteration. All arrays are in generation order.
Returns all tokens, [L, B, D]. With several grids, their positions follow each other: P in place of L."""


def build_plan(
    length: int,
    sampling: Sampling,
    known: int = 0,
    chain: Callable[[int | str], CoefficientTable] | None = None,
) -> Plan:
    """Return the plan of an image. `runtime.sampling.constraints.plan_for` returns that of a model.

    Args:
        length: L, the number of tokens.
        sampling: The sampling settings.
        known: The number of tokens that an edit keeps. The others are spread over the same number of iterations, but
            at least one in each. If the settings have one number of diffusion steps for each iteration, an iteration
            of an edit takes the number of the iteration in which a complete image has as many known tokens.
        chain: Returns the coefficients of a chain of some steps. None: `chain_table` of the settings.

    Raises:
        RequestError: A setting has a wrong value.
    """
    check_choice("token_order", sampling.token_order, TOKEN_ORDERS)
    check_choice("cfg_schedule", sampling.cfg_schedule, CFG_SCHEDULES)
    check_scale("cfg_scale", sampling.cfg_scale)
    _check_ramp(sampling)
    _check_interval(sampling.cfg_interval)
    _check_one_grid(sampling)
    if sampling.reuse_first_pass is not None:
        check_bool("reuse_first_pass", sampling.reuse_first_pass)
    check_int("known_tokens", known, 0, length - 1)
    iterations = min(DEFAULT_ITERATIONS, length) if sampling.iterations is None else sampling.iterations
    check_recap(sampling, iterations, length)
    complete = counts = tokens_per_iteration(length, iterations, sampling.mask_schedule)
    if known:
        counts = tokens_per_iteration(length - known, min(iterations, length - known), sampling.mask_schedule)
    before = [known + done for done in _running_totals(counts)]
    table_of = chain or functools.partial(chain_table, sampling)
    groups = iteration_groups(sampling, len(counts))
    local = {number for group in groups for number in group[1:]}
    planned: list[Iteration] = []
    for start, count, steps in zip(before, counts, _steps_per_iteration(sampling, complete, before), strict=True):
        number = len(planned)
        scale = _guidance_scale(sampling, start, count, length, (number + 1) / len(counts))
        table = table_of(local_steps(sampling, steps) if number in local else steps)
        planned.append(Iteration(start, count, scale, table))
    return Plan((length,), _grouped(planned, groups, sampling.recap_cache_buffer is not False), sampling.token_order)


def _grouped(planned: Sequence[Iteration], groups: Sequence[range], cache_buffer: bool) -> tuple[Iteration, ...]:
    """Return the iterations, those whose numbers are in one of `groups` with their group."""
    grouped = list(planned)
    for numbers in groups:
        members = planned[numbers.start : numbers.stop]
        guided = any(iteration.guided for iteration in members)
        group = Group(members[0].known, members[-1].stop, guided, cache_buffer)
        grouped[numbers.start : numbers.stop] = [dataclasses.replace(each, group=group) for each in members]
    return tuple(grouped)


def chain_table(sampling: Sampling, steps: int | str) -> CoefficientTable:
    """Return the coefficients of a chain of `steps` steps by the sampler of the settings.

    Raises:
        RequestError: A setting has a wrong value.
    """
    for name in ("cfg_truncation", "cfg_renorm", "flow_shift"):
        if (value := getattr(sampling, name)) is not None:
            raise RequestError(f"{name} belongs to models of the family nova, found {truncate(value)}; leave it out")
    return coefficient_table(sampling.sampler, steps, sampling.temperature, sampling.eta, sampling.start_timestep)


def tokens_per_iteration(length: int, iterations: int, mask_schedule: str = "cosine") -> list[int]:
    """Return how many of `length` tokens each of I iterations predicts.

    After iteration i, floor(L share((i + 1) / I)) tokens are still masked, where the share is that of the mask schedule
    (MaskGIT, arXiv 2202.04200). Every iteration predicts at least one token and leaves at least one for each later one.
    The schedule `cosine-rounded` rounds instead, halves to even numbers, and has no iteration for no token: there may
    be fewer iterations than asked for.

    Raises:
        RequestError: There are more iterations than tokens, or none, or the schedule is unknown.
    """
    check_choice("mask_schedule", mask_schedule, MASK_SCHEDULES)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or not 1 <= iterations <= length:
        raise RequestError(f"iterations must lie in 1..{length}, the tokens of an image, found {truncate(iterations)}")
    share, counts, masked = _MASKED_SHARE[mask_schedule], [], length
    if mask_schedule == _ROUNDED:
        left = [round(length * share(k / iterations)) for k in range(iterations + 1)]
        return [before - after for before, after in itertools.pairwise(left) if before > after]
    for k in range(iterations - 1):
        still_masked = max(iterations - 1 - k, min(masked - 1, math.floor(length * share((k + 1) / iterations))))
        counts.append(masked - still_masked)
        masked = still_masked
    return [*counts, masked]


def _running_totals(counts: Sequence[int]) -> list[int]:
    """Return, for each count, the sum of all counts before it."""
    return list(itertools.accumulate(counts[:-1], initial=0))


def _steps_per_iteration(sampling: Sampling, complete: Sequence[int], before: Sequence[int]) -> Sequence[int | str]:
    """Return the diffusion steps of each planned iteration: the same for all, shrinking, or listed one by one.

    Args:
        sampling: The sampling settings.
        complete: The number of tokens that each iteration of a complete image predicts.
        before: The number of tokens that are known before each planned iteration.
    """
    check_choice("step_schedule", sampling.step_schedule, STEP_SCHEDULES)
    first, last, iterations = sampling.diffusion_steps, sampling.last_diffusion_steps, len(before)
    if not isinstance(first, (int, str)):
        return _listed_steps(sampling, complete, before)
    if last is None:
        return [first] * iterations
    if isinstance(first, str) and first.startswith("ddim"):
        raise RequestError(f"last_diffusion_steps needs a number of diffusion_steps to shrink from, found {first!r}")
    least = least_steps(sampling.sampler)
    most = step_count(first, least)
    check_int("last_diffusion_steps", last, least, most)
    extra, final = _EXTRA_SHARE[sampling.step_schedule], max(1, iterations - 1)
    return [last + int(extra(k, final) * (most - last)) for k in range(iterations)]


def _listed_steps(sampling: Sampling, complete: Sequence[int], before: Sequence[int]) -> list[int]:
    """Return the diffusion steps of each planned iteration from a list with one number for each of a complete image."""
    listed, last = sampling.diffusion_steps, sampling.last_diffusion_steps
    if not isinstance(listed, tuple):
        raise RequestError(
            f"diffusion_steps must be a whole number, 'ddimN' or a list of them, found {truncate(listed)}"
        )
    if len(listed) != len(complete):
        raise RequestError(
            f"diffusion_steps lists the steps of {pluralize(len(listed), 'iteration')}, found "
            f"{pluralize(len(complete), 'iteration')} and {truncate(list(listed))}; list one number for each "
            "iteration, or give one for all"
        )
    if last is not None:
        raise RequestError(f"last_diffusion_steps needs one number of diffusion_steps, found {truncate(list(listed))}")
    for steps in listed:
        check_int("diffusion_steps of an iteration", steps, least_steps(sampling.sampler), TRAIN_STEPS)
    begins = _running_totals(complete)
    return [listed[bisect.bisect_right(begins, known) - 1] for known in before]


def _guidance_scale(sampling: Sampling, known: int, count: int, length: int, share: float) -> float:
    """Return the guidance scale of the iteration that predicts `count` tokens after `known` of `length`.

    `share` is the share of the iterations that are done after it.
    """
    low, high = sampling.cfg_interval
    if not low <= known / length <= high:
        return 1.0
    if sampling.cfg_schedule == "constant":
        return float(sampling.cfg_scale)
    if sampling.cfg_schedule == "ramp":
        least = sampling.cfg_scale if sampling.cfg_min is None else sampling.cfg_min
        return float(least + (sampling.cfg_scale - least) * share)
    # The published linear schedule counts at most all tokens but one, even in the last iteration. ReCAP counts all.
    most = length if sampling.recap else length - 1
    return 1 + (sampling.cfg_scale - 1) * min(known + count, most) / length


def _check_one_grid(sampling: Sampling) -> None:
    for name in LOW_RES_SETTINGS:
        if (value := getattr(sampling, name)) is not None:
            raise RequestError(f"{name} belongs to models of the family himar, found {truncate(value)}; leave it out")


def _check_ramp(sampling: Sampling) -> None:
    if sampling.cfg_min is None:
        return
    check_scale("cfg_min", sampling.cfg_min)
    if sampling.cfg_schedule != "ramp":
        raise RequestError(f"cfg_min belongs to the cfg_schedule ramp, found cfg_schedule {sampling.cfg_schedule!r}")


def _check_interval(interval: object) -> None:
    if not isinstance(interval, (tuple, list)) or len(interval) != 2:
        raise RequestError(f"cfg_interval must be two shares of known tokens, low and high, found {truncate(interval)}")
    low, high = interval
    check_number("cfg_interval: low", low, 0, 1)
    check_number("cfg_interval: high", high, 0, 1)
    if low > high:
        raise RequestError(f"cfg_interval must be LOW and then HIGH, found {low} and {high}")

"""The plan of an edit: the iterations that generate the tokens that are not known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import RequestError
from runtime.sampling.plan import MASK_SCHEDULES, Plan, build_plan
from runtime.sampling.settings import Sampling

LENGTHS_AND_KNOWN = st.integers(2, 300).flatmap(lambda length: st.tuples(st.just(length), st.integers(0, length - 1)))


@given(LENGTHS_AND_KNOWN, st.data(), st.sampled_from(MASK_SCHEDULES))
def test_a_plan_with_known_tokens_generates_exactly_the_other_tokens(
    sizes: tuple[int, int], data: st.DataObject, mask_schedule: str
) -> None:
    length, known = sizes
    iterations = data.draw(st.integers(1, length))
    sampling = Sampling(iterations=iterations, mask_schedule=mask_schedule, diffusion_steps="ddim5")
    plan = build_plan(length, sampling, known)
    counts = [iteration.count for iteration in plan.iterations]
    assert plan.length == length
    # The rounded schedule leaves out iterations that would predict nothing.
    assert mask_schedule == "cosine-rounded" or len(counts) == min(iterations, length - known)
    assert min(counts) >= 1
    assert [iteration.known for iteration in plan.iterations] == [known + sum(counts[:k]) for k in range(len(counts))]
    assert known + sum(counts) == length


def scales(plan: Plan) -> list[float]:
    return [iteration.guidance_scale for iteration in plan.iterations]


def test_linear_guidance_counts_the_known_tokens_of_an_edit() -> None:
    sampling = Sampling(iterations=4, mask_schedule="linear", cfg_scale=3.0)
    # After each iteration 10, 12, 14 and 16 tokens are known, the last of which counts as one less, as published.
    assert scales(build_plan(16, sampling, 8)) == [1 + 2 * known / 16 for known in (10, 12, 14, 15)]


def test_a_guidance_interval_counts_the_known_tokens_of_an_edit() -> None:
    own = Sampling(iterations=4, mask_schedule="linear", cfg_scale=3.0, cfg_schedule="constant")
    # Known before each iteration: 8, 10, 12 and 14 of 16.
    assert scales(build_plan(16, dataclasses.replace(own, cfg_interval=(0.6, 0.8)), 8)) == [1.0, 3.0, 3.0, 1.0]
    assert scales(build_plan(16, dataclasses.replace(own, cfg_interval=(0.0, 0.4)), 8)) == [1.0] * 4


def test_chains_shrink_over_the_iterations_of_an_edit() -> None:
    sampling = Sampling(iterations=16, diffusion_steps=20, last_diffusion_steps=4)
    assert [iteration.table.steps for iteration in build_plan(16, sampling, 13).iterations] == [20, 12, 4]


@pytest.mark.parametrize("known", [-1, 16, 17, 1.0, "1", None, True, math.nan])
def test_a_wrong_number_of_known_tokens_is_refused(known: Any) -> None:
    with pytest.raises(RequestError, match=r"known_tokens must be a whole number in 0\.\.15, found") as refusal:
        build_plan(16, Sampling(), known)
    assert repr(known) in str(refusal.value)

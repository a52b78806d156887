"""The diffusion steps of a plan: the same in every iteration, shrinking, or listed one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import RequestError
from runtime.sampling.plan import STEP_SCHEDULES, Plan, build_plan
from runtime.sampling.samplers import coefficient_table
from runtime.sampling.settings import Sampling

LENGTHS = st.integers(1, 400)
LENGTHS_AND_ITERATIONS = LENGTHS.flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length)))


def plan(length: int, **changed: Any) -> Plan:
    return build_plan(length, Sampling(**({"iterations": 6, "diffusion_steps": "ddim5"} | changed)))


@pytest.mark.parametrize(("steps", "chain"), [(10, 10), ("ddim20", 20)])
def test_a_plan_counts_the_steps_of_its_chains(steps: int | str, chain: int) -> None:
    planned = plan(16, iterations=6, diffusion_steps=steps)
    assert planned.diffusion_steps == chain
    assert planned.head_evaluations == 6 * chain


# DiSA (arXiv 2505.20297): T_k for iteration k of K, from `up` steps to `lo`, as its authors' code has them.
SHRUNK: dict[str, Callable[[int, int, int, int], int]] = {
    "linear": lambda k, count, up, lo: lo + int((count - 1 - k) / (count - 1) * (up - lo)),
    "cosine": lambda k, count, up, lo: lo + int((math.cos(math.pi * k / (count - 1)) + 1) / 2 * (up - lo)),
    "two-stage": lambda k, count, up, lo: up if 2 * k < count - 1 else lo,
}
ANNEALED = [(2, 50, 5), (4, 50, 10), (6, 100, 10), (7, 50, 5), (16, 50, 5), (32, 50, 10), (64, 100, 5), (64, 50, 50)]


def chains(**changed: object) -> list[int]:
    return [iteration.table.steps for iteration in plan(64, **changed).iterations]


@pytest.mark.parametrize("schedule", STEP_SCHEDULES)
@pytest.mark.parametrize(("iterations", "up", "lo"), ANNEALED)
def test_steps_shrink_as_published(schedule: str, iterations: int, up: int, lo: int) -> None:
    found = chains(iterations=iterations, diffusion_steps=up, last_diffusion_steps=lo, step_schedule=schedule)
    assert found == [SHRUNK[schedule](k, iterations, up, lo) for k in range(iterations)]


@given(
    st.integers(2, 64),
    st.integers(2, 60).flatmap(lambda up: st.tuples(st.just(up), st.integers(2, up))),
    st.sampled_from(STEP_SCHEDULES),
)
def test_steps_shrink_from_the_first_iteration_to_the_last_and_never_grow(
    iterations: int, bounds: tuple[int, int], schedule: str
) -> None:
    up, lo = bounds
    found = chains(iterations=iterations, diffusion_steps=up, last_diffusion_steps=lo, step_schedule=schedule)
    assert found[0] == up
    assert found[-1] == lo
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("schedule", STEP_SCHEDULES)
def test_a_single_iteration_has_the_first_number_of_steps(schedule: str) -> None:
    assert chains(iterations=1, diffusion_steps=20, last_diffusion_steps=5, step_schedule=schedule) == [20]


def test_a_plan_counts_its_longest_chain_and_all_steps_of_shrinking_chains() -> None:
    planned = plan(16, iterations=3, diffusion_steps="20", last_diffusion_steps=4)
    assert [iteration.table.steps for iteration in planned.iterations] == [20, 12, 4]
    assert planned.diffusion_steps == 20
    assert planned.head_evaluations == 36


@pytest.mark.parametrize("schedule", STEP_SCHEDULES)
def test_steps_do_not_shrink_without_last_diffusion_steps(schedule: str) -> None:
    assert chains(iterations=4, diffusion_steps=20, step_schedule=schedule) == [20] * 4


def test_every_chain_has_the_requested_sampler_and_start() -> None:
    chosen: dict[str, Any] = {"diffusion_steps": 20, "last_diffusion_steps": 10, "start_timestep": 900}
    planned = plan(16, iterations=3, sampler="ddim", eta=0.5, temperature=0.9, **chosen)
    for iteration, steps in zip(planned.iterations, [20, 15, 10], strict=True):
        expected = coefficient_table("ddim", steps, 0.9, 0.5, 900)
        assert iteration.table.timesteps.tolist() == expected.timesteps.tolist()
        assert iteration.table.coefficients.tolist() == expected.coefficients.tolist()


LISTED = LENGTHS_AND_ITERATIONS.flatmap(
    lambda sizes: st.tuples(st.just(sizes), st.lists(st.integers(2, 90), min_size=sizes[1], max_size=sizes[1]))
)


@given(LISTED)
def test_listed_steps_are_those_of_the_iterations(given: tuple[tuple[int, int], list[int]]) -> None:
    (length, iterations), steps = given
    planned = plan(length, iterations=iterations, diffusion_steps=steps)
    assert [iteration.table.steps for iteration in planned.iterations] == steps


@given(LISTED, st.data())
def test_an_iteration_of_an_edit_takes_the_listed_steps_for_its_known_tokens(
    given: tuple[tuple[int, int], list[int]], data: st.DataObject
) -> None:
    (length, iterations), steps = given
    known = data.draw(st.integers(0, length - 1))
    sampling = Sampling(iterations=iterations, diffusion_steps=steps)
    complete, edit = build_plan(length, sampling).iterations, build_plan(length, sampling, known).iterations
    for iteration in edit:
        as_far = [other.table.steps for other in complete if other.known <= iteration.known][-1]
        assert iteration.table.steps == as_far


def test_an_edit_of_few_tokens_takes_the_last_listed_steps() -> None:
    # Four tokens are left: one an iteration, of which a complete image knows 12 and more only in its last two.
    sampling = Sampling(iterations=8, mask_schedule="linear", diffusion_steps=[9, 8, 7, 6, 5, 4, 3, 2])
    found = build_plan(16, sampling, known=12).iterations
    assert [iteration.table.steps for iteration in found] == [3, 3, 2, 2]


def test_listed_steps_from_json_equal_a_tuple() -> None:
    assert Sampling(diffusion_steps=[3, 4]) == Sampling(diffusion_steps=(3, 4))


@pytest.mark.parametrize(
    ("steps", "changed", "message"),
    [
        ([5, 5], {}, "diffusion_steps lists the steps of 2 iterations, found 6 iterations and [5, 5]"),
        ([], {}, "found 6 iterations and []"),
        ([5] * 7, {}, "diffusion_steps lists the steps of 7 iterations, found 6"),
        ([5] * 5 + [1], {}, "diffusion_steps of an iteration must be a whole number in 2..1000, found 1"),
        ([5] * 5 + ["5"], {}, "found '5'"),
        ([5] * 5 + [True], {}, "found True"),
        ([5] * 5 + [1001], {}, "found 1001"),
        ([5] * 6, {"last_diffusion_steps": 3}, "last_diffusion_steps needs one number of diffusion_steps"),
        ({"5": 6}, {}, "diffusion_steps must be a whole number, 'ddimN' or a list of them"),
    ],
    ids=str,
)
def test_wrong_listed_steps_are_refused(steps: Any, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as refusal:
        plan(16, **({"diffusion_steps": steps} | changed))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["last_diffusion_steps", "start_timestep"])
def test_steps_by_an_integer_stride_cannot_shrink_or_have_another_start(name: str) -> None:
    with pytest.raises(RequestError) as refusal:
        plan(16, diffusion_steps="ddim20", **{name: 19})
    assert name in str(refusal.value)
    assert "'ddim20'" in str(refusal.value)

"""The schedule of an image: how many tokens an iteration predicts, under how much guidance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import RequestError
from runtime.sampling.plan import MASK_SCHEDULES, STEP_SCHEDULES, Plan, build_plan, tokens_per_iteration
from runtime.sampling.rng import TOKEN_ORDERS
from runtime.sampling.samplers import coefficient_table
from runtime.sampling.settings import Sampling
from tests.helpers.golden_cases import GoldenCase

untimed = settings(deadline=None)  # how long an example takes on a busy machine proves nothing
SETTINGS: dict[str, Any] = {
    "iterations": 6,
    "cfg_scale": 1.0,
    "cfg_schedule": "linear",
    "temperature": 1.0,
    "sampler": "ddpm",
    "diffusion_steps": "ddim5",
}

LENGTHS = st.integers(1, 400)
LENGTHS_AND_ITERATIONS = LENGTHS.flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length)))
SCALES = st.floats(0, 100)
SHARES = st.floats(0, 1)


def plan(length: int, **changed: object) -> Plan:
    return build_plan(length, Sampling(**(SETTINGS | changed)))


def scales(length: int, **changed: object) -> list[float]:
    return [iteration.guidance_scale for iteration in plan(length, **changed).iterations]


def test_a_golden_case_predicts_as_many_tokens_an_iteration_as_the_published_code(golden_case: GoldenCase) -> None:
    planned = plan(golden_case.order.shape[1], **golden_case.settings)
    assert [iteration.count for iteration in planned.iterations] == golden_case.tokens_per_step


@untimed
@given(LENGTHS_AND_ITERATIONS, st.sampled_from(MASK_SCHEDULES))
def test_every_iteration_predicts_something_and_together_they_predict_everything(
    sizes: tuple[int, int], schedule: str
) -> None:
    length, iterations = sizes
    planned = plan(length, iterations=iterations, mask_schedule=schedule)
    counts = [iteration.count for iteration in planned.iterations]
    assert planned.length == length
    assert len(counts) == iterations
    assert min(counts) >= 1
    assert sum(counts) == length
    assert [iteration.known for iteration in planned.iterations] == [sum(counts[:k]) for k in range(iterations)]


@untimed
@given(LENGTHS, st.data())
def test_an_impossible_number_of_iterations_is_refused(length: int, data: st.DataObject) -> None:
    iterations = data.draw(st.integers(max_value=0) | st.integers(min_value=length + 1))
    with pytest.raises(RequestError) as refusal:
        plan(length, iterations=iterations)
    assert f"iterations must lie in 1..{length}" in str(refusal.value)
    assert str(iterations) in str(refusal.value)


# How tokens spread over the iterations.

BY_HAND = {
    "cosine": [2, 3, 5, 6],  # 16 cos(22.5, 45 and 67.5 degrees) = 14.8, 11.3, 6.1 stay masked
    "exponential": [1, 1, 3, 11],  # 16 (1 - e^-5(1 - s)) / (1 - e^-5) = 15.7, 14.8, 11.5
    "linear": [4, 4, 4, 4],
}


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
def test_sixteen_tokens_spread_over_four_iterations_as_counted_by_hand(schedule: str) -> None:
    assert tokens_per_iteration(16, 4, schedule) == BY_HAND[schedule]
    assert [iteration.count for iteration in plan(16, iterations=4, mask_schedule=schedule).iterations] == (
        BY_HAND[schedule]
    )


@pytest.mark.parametrize(("length", "iterations"), [(64, 16), (256, 64), (256, 16), (256, 10)])
def test_an_exponential_schedule_predicts_fewer_tokens_early_and_more_late(length: int, iterations: int) -> None:
    exponential, cosine = (tokens_per_iteration(length, iterations, name) for name in ("exponential", "cosine"))
    half = iterations // 2
    assert sum(exponential[:half]) < sum(cosine[:half])
    assert exponential[-1] > cosine[-1]


@untimed
@given(LENGTHS_AND_ITERATIONS)
def test_a_linear_schedule_spreads_tokens_evenly(sizes: tuple[int, int]) -> None:
    length, iterations = sizes
    counts = tokens_per_iteration(length, iterations, "linear")
    done = [sum(counts[: k + 1]) for k in range(iterations)]
    assert all(abs(done[k] - length * (k + 1) / iterations) <= 1 for k in range(iterations))


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
@pytest.mark.parametrize("length", [1, 16, 300])
def test_as_many_iterations_as_tokens_predict_one_each(schedule: str, length: int) -> None:
    assert tokens_per_iteration(length, length, schedule) == [1] * length


@pytest.mark.parametrize("order", TOKEN_ORDERS)
def test_a_plan_tells_the_order_of_its_tokens(order: str) -> None:
    assert plan(16, token_order=order).token_order == order


# How much guidance.


def test_linear_guidance_grows_with_the_tokens_known_after_the_iteration() -> None:
    # By hand from the published formula: floor(16 cos(pi/2 (k + 1)/6)) tokens stay masked, and at least one.
    masked_after = [15, 13, 11, 8, 4, 1]
    assert scales(16, cfg_scale=2.5) == [1 + 1.5 * (16 - masked) / 16 for masked in masked_after]


@untimed
@given(LENGTHS_AND_ITERATIONS, SCALES)
def test_linear_guidance_moves_from_none_towards_its_scale(sizes: tuple[int, int], scale: float) -> None:
    length, iterations = sizes
    found = scales(length, iterations=iterations, cfg_scale=scale, cfg_schedule="linear")
    assert found == sorted(found, reverse=scale < 1)
    assert min(1, scale) <= min(found)
    assert max(found) <= max(1, scale)


@untimed
@given(LENGTHS_AND_ITERATIONS, SCALES)
def test_constant_guidance_is_its_scale(sizes: tuple[int, int], scale: float) -> None:
    length, iterations = sizes
    found = scales(length, iterations=iterations, cfg_scale=scale, cfg_schedule="constant")
    assert found == [scale] * iterations


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize("iterations", [1, 6, 16])
def test_a_scale_of_one_guides_no_iteration(schedule: str, iterations: int) -> None:
    planned = plan(16, iterations=iterations, cfg_scale=1.0, cfg_schedule=schedule)
    assert not any(iteration.guided for iteration in planned.iterations)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 4.0])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_any_other_scale_guides_every_iteration(schedule: str, scale: float) -> None:
    planned = plan(16, cfg_scale=scale, cfg_schedule=schedule)
    assert all(iteration.guided for iteration in planned.iterations)


@pytest.mark.parametrize(
    ("interval", "guided"),
    [
        ((0.0, 1.0), [True, True, True, True]),
        ((0.25, 0.5), [False, True, True, False]),  # both ends belong to it
        ((0.26, 0.5), [False, False, True, False]),
        ((0.25, 0.49), [False, True, False, False]),
        ((0.0, 0.0), [True, False, False, False]),
        ((0.3, 0.4), [False, False, False, False]),
        ([0.5, 1], [False, False, True, True]),
    ],
    ids=str,
)
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_outside_its_interval_there_is_no_guidance_at_all(schedule: str, interval: Any, guided: list[bool]) -> None:
    """A quarter of the tokens is known before each iteration after the first."""
    asked: dict[str, Any] = {"iterations": 4, "mask_schedule": "linear", "cfg_schedule": schedule, "cfg_scale": 3.0}
    inside = scales(16, **asked)
    assert min(inside) > 1
    planned = plan(16, **asked, cfg_interval=interval)
    assert [iteration.guided for iteration in planned.iterations] == guided
    assert scales(16, **asked, cfg_interval=interval) == [
        scale if on else 1.0 for scale, on in zip(inside, guided, strict=True)
    ]


@untimed
@given(LENGTHS_AND_ITERATIONS, st.sampled_from(MASK_SCHEDULES), SHARES, SHARES)
def test_guidance_depends_on_the_share_of_tokens_known_before_the_iteration(
    sizes: tuple[int, int], mask_schedule: str, one: float, other: float
) -> None:
    length, iterations = sizes
    low, high = sorted((one, other))
    planned = plan(
        length,
        iterations=iterations,
        mask_schedule=mask_schedule,
        cfg_scale=3.0,
        cfg_schedule="constant",
        cfg_interval=(low, high),
    )
    for iteration in planned.iterations:
        inside = low <= iteration.known / length <= high
        assert iteration.guidance_scale == (3.0 if inside else 1.0)
        assert iteration.guided == inside


def test_an_interval_reads_the_same_from_json() -> None:
    assert Sampling(cfg_interval=[0.1, 0.9]) == Sampling(cfg_interval=(0.1, 0.9))


# How long the chains are.


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
def test_chains_shrink_as_published(schedule: str, iterations: int, up: int, lo: int) -> None:
    found = chains(iterations=iterations, diffusion_steps=up, last_diffusion_steps=lo, step_schedule=schedule)
    assert found == [SHRUNK[schedule](k, iterations, up, lo) for k in range(iterations)]


@untimed
@given(
    st.integers(2, 64),
    st.integers(2, 60).flatmap(lambda up: st.tuples(st.just(up), st.integers(2, up))),
    st.sampled_from(STEP_SCHEDULES),
)
def test_chains_shrink_from_the_first_to_the_last_and_never_grow(
    iterations: int, bounds: tuple[int, int], schedule: str
) -> None:
    up, lo = bounds
    found = chains(iterations=iterations, diffusion_steps=up, last_diffusion_steps=lo, step_schedule=schedule)
    assert found[0] == up
    assert found[-1] == lo
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("schedule", STEP_SCHEDULES)
def test_a_single_iteration_has_all_its_steps(schedule: str) -> None:
    assert chains(iterations=1, diffusion_steps=20, last_diffusion_steps=5, step_schedule=schedule) == [20]


def test_a_plan_with_shrinking_chains_counts_its_longest_and_all_of_them() -> None:
    planned = plan(16, iterations=3, diffusion_steps="20", last_diffusion_steps=4)
    assert [iteration.table.steps for iteration in planned.iterations] == [20, 12, 4]
    assert planned.diffusion_steps == 20
    assert planned.head_evaluations == 36


@pytest.mark.parametrize("schedule", STEP_SCHEDULES)
def test_chains_do_not_shrink_unless_that_is_asked_for(schedule: str) -> None:
    assert chains(iterations=4, diffusion_steps=20, step_schedule=schedule) == [20] * 4


def test_every_chain_is_of_the_sampler_and_the_start_that_are_asked_for() -> None:
    asked: dict[str, Any] = {"diffusion_steps": 20, "last_diffusion_steps": 10, "start_timestep": 900}
    planned = plan(16, iterations=3, sampler="ddim", eta=0.5, temperature=0.9, **asked)
    for iteration, steps in zip(planned.iterations, [20, 15, 10], strict=True):
        expected = coefficient_table("ddim", steps, 0.9, 0.5, 900)
        assert iteration.table.timesteps.tolist() == expected.timesteps.tolist()
        assert iteration.table.coefficients.tolist() == expected.coefficients.tolist()


NAMED = LENGTHS_AND_ITERATIONS.flatmap(
    lambda sizes: st.tuples(st.just(sizes), st.lists(st.integers(2, 90), min_size=sizes[1], max_size=sizes[1]))
)


@untimed
@given(NAMED)
def test_steps_named_one_by_one_are_those_of_the_iterations(given: tuple[tuple[int, int], list[int]]) -> None:
    (length, iterations), steps = given
    planned = plan(length, iterations=iterations, diffusion_steps=steps)
    assert [iteration.table.steps for iteration in planned.iterations] == steps


@untimed
@given(NAMED, st.data())
def test_an_edit_takes_named_steps_by_how_many_tokens_are_known(
    given: tuple[tuple[int, int], list[int]], data: st.DataObject
) -> None:
    (length, iterations), steps = given
    known = data.draw(st.integers(0, length - 1))
    sampling = Sampling(iterations=iterations, diffusion_steps=steps)
    whole, edit = build_plan(length, sampling).iterations, build_plan(length, sampling, known).iterations
    for iteration in edit:
        as_far = [other.table.steps for other in whole if other.known <= iteration.known][-1]
        assert iteration.table.steps == as_far


def test_an_edit_with_fewer_iterations_has_the_steps_of_the_last_ones() -> None:
    # Four tokens are left: one an iteration, of which a whole image knows 12 and more only in its last two.
    sampling = Sampling(iterations=8, mask_schedule="linear", diffusion_steps=[9, 8, 7, 6, 5, 4, 3, 2])
    found = build_plan(16, sampling, known=12).iterations
    assert [iteration.table.steps for iteration in found] == [3, 3, 2, 2]


def test_named_steps_read_the_same_from_json() -> None:
    assert Sampling(diffusion_steps=[3, 4]) == Sampling(diffusion_steps=(3, 4))


@pytest.mark.parametrize(
    ("steps", "changed", "told"),
    [
        ([5, 5], {}, "diffusion_steps names the steps of 2 iterations, found 6 iterations and [5, 5]"),
        ([], {}, "found 6 iterations and []"),
        ([5] * 7, {}, "diffusion_steps names the steps of 7 iterations, found 6"),
        ([5] * 5 + [1], {}, "diffusion_steps of an iteration must be a whole number in 2..1000, found 1"),
        ([5] * 5 + ["5"], {}, "found '5'"),
        ([5] * 5 + [True], {}, "found True"),
        ([5] * 5 + [1001], {}, "found 1001"),
        ([5] * 6, {"last_diffusion_steps": 3}, "last_diffusion_steps needs one number of diffusion_steps"),
        ({"5": 6}, {}, "diffusion_steps must be a whole number, 'ddimN' or a list of them"),
    ],
    ids=str,
)
def test_named_steps_that_make_no_chain_are_refused(steps: Any, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError) as refusal:
        plan(16, **({"diffusion_steps": steps} | changed))
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


# What is asked for.


@pytest.mark.parametrize(("length", "iterations"), [(1, 1), (16, 16), (64, 64), (256, 64)])
def test_an_image_takes_64_iterations_or_one_a_token_where_nothing_else_is_asked(length: int, iterations: int) -> None:
    planned = build_plan(length, Sampling())
    assert len(planned.iterations) == iterations
    assert planned.diffusion_steps == 100
    assert planned.guidance_scale == 1


def test_settings_change_by_name_and_none_keeps_what_is() -> None:
    own = Sampling(iterations=5, cfg_scale=2.0)
    assert own.changed({}) == own
    assert own.changed({"iterations": None, "cfg_scale": 3.0}) == Sampling(iterations=5, cfg_scale=3.0)
    with pytest.raises(RequestError, match=r"unknown sampling settings .*cfg_scal;"):
        own.changed({"cfg_scal": 3.0})


NO_NUMBERS = (math.nan, math.inf, -math.inf, "hot", None, [1.0])
NO_CHOICES = ("Linear", "", 3, None, True, ["linear"])
BAD_SETTINGS = [
    *(("iterations", value) for value in (2.5, math.nan, "4", True)),
    *(("cfg_scale", value) for value in (-0.5, *NO_NUMBERS)),
    *(("cfg_schedule", value) for value in ("cosine", *NO_CHOICES)),
    *(("mask_schedule", value) for value in ("two-stage", *NO_CHOICES)),
    *(("step_schedule", value) for value in ("exponential", *NO_CHOICES)),
    *(("token_order", value) for value in ("spiral", *NO_CHOICES)),
    *(("temperature", value) for value in (-1.0, *NO_NUMBERS)),
    *(("sampler", value) for value in ("euler", "DDPM", 3, None, ["ddpm"])),
    *(("diffusion_steps", value) for value in (0, "ddim7000", None, [20])),
    *(("last_diffusion_steps", value) for value in (0, 1, 21, 5.0, math.nan, "5", True, [5])),
    *(("start_timestep", value) for value in (-1, 18, 1000, 950.0, math.nan, "950", True, [950])),
    *(("eta", value) for value in (0.5, 1, *NO_NUMBERS)),  # the sampler is not ddim
    *(("cfg_interval", value) for value in (0.5, None, "ab", (), (0.5,), (0.0, 0.5, 1.0), {"low": 0.0})),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS, ids=str)
def test_a_bad_setting_is_refused_by_name_and_value(name: str, value: object) -> None:
    with pytest.raises(RequestError) as refusal:
        plan(16, **({"diffusion_steps": 20} | {name: value}))
    assert name in str(refusal.value)
    assert str(value) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("interval", "told"),
    [
        ((-0.1, 1.0), "a number in 0..1, found -0.1"),
        ((0.0, 1.1), "found 1.1"),
        ((0.7, 0.2), "found 0.7 and 0.2"),
        ((math.nan, 1.0), "found nan"),
        ((0.0, math.nan), "found nan"),
        (("0", 1.0), "found '0'"),
        ((0.0, True), "found True"),
        (([0.0], 1.0), "found [0.0]"),
    ],
    ids=str,
)
def test_an_interval_that_is_none_is_refused_by_the_share_that_is_wrong(interval: Any, told: str) -> None:
    with pytest.raises(RequestError) as refusal:
        plan(16, cfg_interval=interval)
    assert "cfg_interval" in str(refusal.value)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["last_diffusion_steps", "start_timestep"])
def test_chains_by_an_integer_stride_neither_shrink_nor_start_elsewhere(name: str) -> None:
    with pytest.raises(RequestError) as refusal:
        plan(16, diffusion_steps="ddim20", **{name: 19})
    assert name in str(refusal.value)
    assert "'ddim20'" in str(refusal.value)

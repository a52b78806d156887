"""The schedule of an image: how many tokens an iteration predicts, under how much guidance."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import RequestError
from runtime.sampling.plan import MASK_SCHEDULES, Plan, build_plan, tokens_per_iteration
from runtime.sampling.rng import TOKEN_ORDERS
from runtime.sampling.settings import Sampling
from tests.helpers.golden_cases import GoldenCase

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


def test_a_golden_case_predicts_as_many_tokens_in_each_iteration_as_the_published_code(golden_case: GoldenCase) -> None:
    planned = plan(golden_case.order.shape[1], **golden_case.settings)
    assert [iteration.count for iteration in planned.iterations] == golden_case.tokens_per_step


# The rounded schedule leaves out iterations that would predict nothing; all others have as many as asked for.
EXACT_SCHEDULES = [schedule for schedule in MASK_SCHEDULES if schedule != "cosine-rounded"]


@given(LENGTHS_AND_ITERATIONS, st.sampled_from(EXACT_SCHEDULES))
def test_every_iteration_predicts_some_tokens_and_together_they_predict_all(
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


@given(LENGTHS, st.data())
def test_an_impossible_number_of_iterations_is_refused(length: int, data: st.DataObject) -> None:
    iterations = data.draw(st.integers(max_value=0) | st.integers(min_value=length + 1))
    with pytest.raises(RequestError) as refusal:
        plan(length, iterations=iterations)
    assert f"iterations must lie in 1..{length}" in str(refusal.value)
    assert str(iterations) in str(refusal.value)


# The number of tokens of each iteration.

BY_HAND = {
    "cosine": [2, 3, 5, 6],  # 16 cos(22.5, 45 and 67.5 degrees) = 14.8, 11.3, 6.1 stay masked
    "exponential": [1, 1, 3, 11],  # 16 (1 - e^-5(1 - s)) / (1 - e^-5) = 15.7, 14.8, 11.5
    "linear": [4, 4, 4, 4],
    "cosine-rounded": [1, 4, 5, 6],  # 15, 11 and 6
}


@pytest.mark.parametrize("schedule", MASK_SCHEDULES)
def test_four_iterations_predict_the_numbers_of_tokens_calculated_by_hand(schedule: str) -> None:
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


@given(LENGTHS_AND_ITERATIONS)
def test_a_linear_schedule_spreads_tokens_evenly(sizes: tuple[int, int]) -> None:
    length, iterations = sizes
    counts = tokens_per_iteration(length, iterations, "linear")
    done = [sum(counts[: k + 1]) for k in range(iterations)]
    assert all(abs(done[k] - length * (k + 1) / iterations) <= 1 for k in range(iterations))


@pytest.mark.parametrize(
    ("length", "iterations", "left", "largest"),
    [(4096, 64, 64, 101), (1024, 64, 63, 25), (4096, 128, 127, 51), (1024, 128, 125, 13)],
)
def test_the_rounded_schedule_leaves_out_empty_iterations_as_published(
    length: int, iterations: int, left: int, largest: int
) -> None:
    """The numbers left are those of the published code (NOVA 2cd254a); the largest of 128 by hand: L pi / 2 / 128."""
    counts = tokens_per_iteration(length, iterations, "cosine-rounded")
    assert (len(counts), max(counts), sum(counts), min(counts) >= 1) == (left, largest, length, True)


@pytest.mark.parametrize("schedule", EXACT_SCHEDULES)
@pytest.mark.parametrize("length", [1, 16, 300])
def test_as_many_iterations_as_tokens_predict_one_token_each(schedule: str, length: int) -> None:
    assert tokens_per_iteration(length, length, schedule) == [1] * length


@pytest.mark.parametrize("order", TOKEN_ORDERS)
def test_a_plan_has_the_token_order_of_its_settings(order: str) -> None:
    assert plan(16, token_order=order).token_order == order


# Guidance.


def test_linear_guidance_grows_with_the_tokens_known_after_the_iteration() -> None:
    # By hand from the published formula: floor(16 cos(pi/2 (k + 1)/6)) tokens stay masked, and at least one.
    masked_after = [15, 13, 11, 8, 4, 1]
    assert scales(16, cfg_scale=2.5) == [1 + 1.5 * (16 - masked) / 16 for masked in masked_after]


@given(LENGTHS_AND_ITERATIONS, SCALES)
def test_linear_guidance_moves_from_none_towards_its_scale(sizes: tuple[int, int], scale: float) -> None:
    length, iterations = sizes
    found = scales(length, iterations=iterations, cfg_scale=scale, cfg_schedule="linear")
    assert found == sorted(found, reverse=scale < 1)
    assert min(1, scale) <= min(found)
    assert max(found) <= max(1, scale)


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
def test_iterations_outside_the_guidance_interval_have_no_guidance(
    schedule: str, interval: Any, guided: list[bool]
) -> None:
    """A quarter of the tokens is known before each iteration after the first."""
    chosen: dict[str, Any] = {"iterations": 4, "mask_schedule": "linear", "cfg_schedule": schedule, "cfg_scale": 3.0}
    inside = scales(16, **chosen)
    assert min(inside) > 1
    planned = plan(16, **chosen, cfg_interval=interval)
    assert [iteration.guided for iteration in planned.iterations] == guided
    assert scales(16, **chosen, cfg_interval=interval) == [
        scale if on else 1.0 for scale, on in zip(inside, guided, strict=True)
    ]


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


def test_an_interval_from_json_equals_a_tuple() -> None:
    assert Sampling(cfg_interval=[0.1, 0.9]) == Sampling(cfg_interval=(0.1, 0.9))


@pytest.mark.parametrize(("length", "iterations"), [(1, 1), (16, 16), (64, 64), (256, 64)])
def test_the_default_is_64_iterations_or_one_for_each_token(length: int, iterations: int) -> None:
    planned = build_plan(length, Sampling())
    assert len(planned.iterations) == iterations
    assert planned.diffusion_steps == 100
    assert planned.guidance_scale == 1


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
def test_a_wrong_setting_is_refused_with_its_name_and_value(name: str, value: object) -> None:
    with pytest.raises(RequestError) as refusal:
        plan(16, **({"diffusion_steps": 20} | {name: value}))
    assert name in str(refusal.value)
    assert str(value) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("interval", "message"),
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
def test_a_wrong_interval_is_refused_with_the_wrong_share(interval: Any, message: str) -> None:
    with pytest.raises(RequestError) as refusal:
        plan(16, cfg_interval=interval)
    assert "cfg_interval" in str(refusal.value)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)

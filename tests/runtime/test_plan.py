"""The schedule of an image: how many tokens an iteration predicts, under how much guidance."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import RequestError
from runtime.plan import Plan, Sampling, build_plan
from tests.conftest import GoldenCase

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


def plan(length: int, **changed: object) -> Plan:
    return build_plan(length, Sampling(**(SETTINGS | changed)))


def scales(length: int, **changed: object) -> list[float]:
    return [iteration.guidance_scale for iteration in plan(length, **changed).iterations]


def test_a_golden_case_predicts_as_many_tokens_an_iteration_as_the_published_code(golden_case: GoldenCase) -> None:
    planned = plan(golden_case.order.shape[1], **golden_case.settings)
    assert [iteration.count for iteration in planned.iterations] == golden_case.tokens_per_step


@untimed
@given(LENGTHS_AND_ITERATIONS)
def test_every_iteration_predicts_something_and_together_they_predict_everything(sizes: tuple[int, int]) -> None:
    length, iterations = sizes
    planned = plan(length, iterations=iterations)
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


@pytest.mark.parametrize(("steps", "chain"), [(10, 10), ("ddim20", 20)])
def test_a_plan_counts_the_steps_of_its_chains(steps: int | str, chain: int) -> None:
    planned = plan(16, iterations=6, diffusion_steps=steps)
    assert planned.diffusion_steps == chain
    assert planned.head_evaluations == 6 * chain


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


NO_NUMBERS = (math.nan, math.inf, -math.inf, "hot", None)
BAD_SETTINGS = [
    *(("iterations", value) for value in (2.5, math.nan, "4", True)),
    *(("cfg_scale", value) for value in (-0.5, *NO_NUMBERS)),
    *(("cfg_schedule", value) for value in ("cosine", "Linear", 3, None)),
    *(("temperature", value) for value in (-1.0, *NO_NUMBERS)),
    *(("sampler", value) for value in ("euler", "DDPM", 3, None)),
    *(("diffusion_steps", value) for value in (0, "ddim7000", None)),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS, ids=str)
def test_a_bad_setting_is_refused_by_name_and_value(name: str, value: object) -> None:
    with pytest.raises(RequestError) as refusal:
        plan(16, **{name: value})
    assert name in str(refusal.value)
    assert str(value) in str(refusal.value)

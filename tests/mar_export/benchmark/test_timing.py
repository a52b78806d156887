"""Timing of runners: the order of the measurements, and their statistics."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from mar_export.benchmark.timing import Case, Measurement, Timing, better_wait_policies, measure, warm_up_settings
from runtime.cost.operations import Machine
from runtime.sampling.plan import build_plan
from runtime.sampling.presets import resolve_sampling
from runtime.sampling.samplers import DIFFUSION_SAMPLERS
from runtime.sampling.settings import Sampling
from training.models.model_sizes import model_config

SMALL = model_config("pixel_small", img_size=16)  # of 16 tokens, as that model


def test_cases_run_in_turn_and_the_machine_is_measured_between_rounds() -> None:
    events: list[Any] = []
    clock = itertools.count(1)
    rates = iter([30.0, 10.0, 20.0, 40.0])

    class Drawer:
        def __init__(self, name: str) -> None:
            self.name = name

        def generate(self, settings: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
            events.append((self.name, dict(settings)))
            seconds = float(next(clock))
            return seconds, {"work": seconds / 2, "never called": 0.0, "rest": seconds / 2}

    def machine() -> Machine:
        events.append("machine")
        rate = next(rates)
        return Machine(rate, rate / 10)

    cases = [Case("a", "own"), Case("a", "fast"), Case("b", "own")]
    settings: dict[str, dict[str, Any]] = {"own": {"iterations": 3}, "fast": {"preset": "fast"}}
    runners: Any = {(name, None): Drawer(name) for name in ("a", "b")}
    steps: list[None] = []
    warm_ups = {name: {"warming up": name} for name in settings}
    measurements, rate = measure(runners, cases, settings, warm_ups, 3, machine, lambda: steps.append(None))
    a_round = [("a", settings["own"]), ("a", settings["fast"]), ("b", settings["own"])]
    untimed = [(case.runner, warm_ups[case.preset]) for case in cases]
    assert events == [*untimed, *["machine", *a_round] * 3, "machine"]
    assert len(steps) == 9
    assert rate == Machine(25.0, 2.5)
    assert [measurement.case for measurement in measurements] == cases
    # The warm-up took seconds 1, 2 and 3; the first case had 4, 7 and 10.
    assert measurements[0].total == Timing.of([4.0, 7.0, 10.0])
    assert measurements[2].total.median == 9.0
    assert measurements[0].stages == {name: Timing.of([2.0, 3.5, 5.0]) for name in ("work", "rest")}


def test_of_two_wait_policies_the_better_median_counts_case_by_case() -> None:
    seconds = {("a", "own", None): 9, ("b", "own", "active"): 3, ("b", "own", "passive"): 4}
    seconds |= {("b", "fast", "active"): 2, ("b", "fast", "passive"): 1}
    measured = [Measurement(Case(*case), Timing.of([taken]), {}) for case, taken in seconds.items()]
    assert better_wait_policies(measured) == [measured[0], measured[1], measured[4]]


@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS)
def test_warm_up_is_short_whatever_the_settings_of_the_artifact(sampler: str) -> None:
    own = Sampling(sampler=sampler, diffusion_steps=400, last_diffusion_steps=50, cfg_scale=2.0)
    plan = build_plan(16, resolve_sampling(own, SMALL, warm_up_settings(SMALL, own)))
    assert plan.head_evaluations == 2 * len(plan.iterations) == 32
    assert plan.iterations[1].guided


def test_timing_has_mean_median_and_percentiles() -> None:
    timing = Timing.of([float(number) for number in range(1, 12)])
    assert timing == Timing(mean=6.0, median=6.0, p10=2.0, p90=10.0)

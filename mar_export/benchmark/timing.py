"""Timing of runners in turn: the seconds of complete generations and of their stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mar_export.benchmark.runners import Runner, Stages
from runtime.cost.operations import Machine
from runtime.model.family_config import FamilyConfig
from runtime.sampling.constraints import short_chain_settings
from runtime.sampling.settings import Sampling


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the benchmark: a runner that generates with one sampling preset.

    Attributes:
        runner: A key of `mar_export.benchmark.runners.RUNNERS`.
        preset: The name of the sampling preset; `own` stands for the artifact's own settings.
        wait_policy: A wait policy of the runner, see `mar_export.benchmark.runners.wait_policies`.
    """

    runner: str
    preset: str
    wait_policy: str | None = None

    @property
    def process(self) -> tuple[str, str | None]:
        """What names the process of the runner: its name and its wait policy."""
        return self.runner, self.wait_policy


@dataclasses.dataclass(frozen=True)
class Timing:
    """Statistics of the seconds that repeated runs of the same work took.

    Attributes:
        mean: The arithmetic mean, in seconds.
        median: The median, in seconds.
        p10: The 10th percentile, in seconds.
        p90: The 90th percentile, in seconds.
    """

    mean: float
    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Compute the statistics of a list of at least one measured time, in seconds."""
        p10, median, p90 = np.percentile(seconds, [10, 50, 90])
        return cls(float(np.mean(seconds)), float(median), float(p10), float(p90))


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The measured times of one case.

    Attributes:
        case: What was timed.
        total: The time of a complete generation of one batch.
        stages: The part of that time spent in each stage, by the stage's name.
    """

    case: Case
    total: Timing
    stages: Mapping[str, Timing]


def warm_up_settings(model: FamilyConfig, sampling: Sampling) -> dict[str, Sampling]:
    """Return settings of a generation that calls every engine of `sampling` in every iteration, with short chains."""
    short_chains: dict[str, Any] = short_chain_settings(model, 2)
    return {"sampling": dataclasses.replace(sampling, last_diffusion_steps=None, **short_chains)}


def measure(
    runners: Mapping[tuple[str, str | None], Runner],
    cases: list[Case],
    settings: Mapping[str, Mapping[str, Any]],
    warm_ups: Mapping[str, Mapping[str, Any]],
    repeats: int,
    measure_machine: Callable[[], Machine],
    progress: Callable[[], None],
) -> tuple[list[Measurement], Machine]:
    """Time every case `repeats` times, all cases in turn, so that other load on the machine affects all alike.

    Args:
        runners: The started runners, by `Case.process`.
        cases: The rows to measure, in the order of the report.
        settings: The sampling settings of each preset, by the preset's name.
        warm_ups: The settings of one untimed generation with which each case starts, by the name of its preset.
        repeats: How often each case is timed.
        measure_machine: Measures the rates of this machine now; called before each round and after the last.
        progress: Called after each timed generation.

    Returns:
        A measurement for each case, and the median rates of the machine.
    """
    for case in cases:
        runners[case.process].generate(warm_ups[case.preset])
    totals: dict[Case, list[float]] = {case: [] for case in cases}
    stages: dict[Case, list[Stages]] = {case: [] for case in cases}
    machines = []
    for _ in range(repeats):
        machines.append(measure_machine())
        for case in cases:
            seconds, stage_seconds = runners[case.process].generate(settings[case.preset])
            totals[case].append(seconds)
            stages[case].append(stage_seconds)
            progress()
    machines.append(measure_machine())
    measurements = [Measurement(case, Timing.of(totals[case]), _stage_timings(stages[case])) for case in cases]
    rates = np.median([dataclasses.astuple(machine) for machine in machines], axis=0)
    return measurements, Machine(*map(float, rates))


def _stage_timings(repeats: Sequence[Stages]) -> dict[str, Timing]:
    """Return the timing of each stage; none for engines that a preset never calls, such as those of ReCAP."""
    seconds = {stage: [repeat[stage] for repeat in repeats] for stage in repeats[0]}
    return {stage: Timing.of(taken) for stage, taken in seconds.items() if any(taken)}


def better_wait_policies(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Return the measurements with, of cases that differ in the wait policy only, the one of the least median."""
    best: dict[tuple[str, str], Measurement] = {}
    for one in measurements:
        work = one.case.runner, one.case.preset
        best[work] = min(best.get(work, one), one, key=lambda measurement: measurement.total.median)
    return list(best.values())

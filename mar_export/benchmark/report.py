"""Latency side by side: runners in turn, stage by stage, beside the least time the machine allows."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mar_export.benchmark.runners import Runner, Stages
from runtime import __version__
from runtime.cost.operations import Machine, plan_costs, roofline_seconds
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import DEVICE
from runtime.provenance import commit, processor_name
from runtime.sampling.constraints import short_chain_settings
from runtime.sampling.plan import Plan
from runtime.sampling.settings import Sampling


@dataclasses.dataclass(frozen=True)
class Case:
    """One runner drawing one plan; `sampling` is the plan's name."""

    runner: str
    preset: str

    @property
    def name(self) -> str:
        return f"{self.runner} {self.preset}"


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds over repeated draws."""

    mean: float
    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        p10, median, p90 = np.percentile(seconds, [10, 50, 90])
        return cls(float(np.mean(seconds)), float(median), float(p10), float(p90))


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One case's times in all (`image`: of a draw, whatever its batch) and stage by stage."""

    case: Case
    image: Timing
    stages: Mapping[str, Timing]


@dataclasses.dataclass(frozen=True)
class Work:
    """What is drawn in every case: the model, the images together, and each plan with its settings."""

    config: ModelConfig
    batch: int
    samplings: Mapping[str, Sampling]
    plans: Mapping[str, Plan]


def warm_up(model: ModelConfig) -> dict[str, Any]:
    """Settings of an image so short that it only loads and touches everything before the first one is timed."""
    return {"preset": "exact", "iterations": min(2, model.tokens), **short_chain_settings(model, 2)}


def measure(
    runners: Mapping[str, Runner],
    cases: list[Case],
    settings: Mapping[str, Mapping[str, Any]],
    first: Mapping[str, Any],
    repeats: int,
    measure_machine: Callable[[], Machine],
    progress: Callable[[], None],
) -> tuple[list[Measurement], Machine]:
    """Run every case in turn, `repeats` times over, so that whatever else the machine does hits all alike.

    Every runner draws `first` once before. The machine's own rates are taken in every round too,
    and are medians like the times.
    """
    for runner in runners.values():
        runner.draw(first)
    totals: dict[Case, list[float]] = {case: [] for case in cases}
    stages: dict[Case, list[Stages]] = {case: [] for case in cases}
    machines = []
    for _ in range(repeats):
        machines.append(measure_machine())
        for case in cases:
            seconds, of_stages = runners[case.runner].draw(settings[case.preset])
            totals[case].append(seconds)
            stages[case].append(of_stages)
            progress()
    machines.append(measure_machine())
    measurements = [
        Measurement(
            case,
            Timing.of(totals[case]),
            {stage: Timing.of([one[stage] for one in stages[case]]) for stage in stages[case][0]},
        )
        for case in cases
    ]
    rates = np.median([dataclasses.astuple(machine) for machine in machines], axis=0)
    return measurements, Machine(*map(float, rates))


def report(
    measurements: list[Measurement],
    machine: Machine,
    work: Work,
    descriptions: Mapping[str, str],
    peaks: Mapping[str, int],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything a reader needs to believe the figures or to repeat them; `about` is added as it is."""
    slowest = max(measurements, key=lambda one: one.image.median)
    baseline = next((one for one in measurements if one.case.runner == "eager"), slowest)
    return {
        **about,
        "batch": work.batch,
        "baseline": dataclasses.asdict(baseline.case),
        "machine": {
            "processor": processor_name(),
            "system": platform.platform(),
            "gflops": machine.operations / 1e9,
            "read_gb_per_second": machine.bytes / 1e9,
        },
        "versions": {"mar": __version__, "commit": commit(), "python": platform.python_version(), **_versions()},
        "runners": {name: {"runs_on": told, "peak_memory_bytes": peaks[name]} for name, told in descriptions.items()},
        "plans": {name: _plan(work, name, machine) for name in work.plans},
        "cases": [_case(one, work, machine, baseline) for one in measurements],
    }


def _plan(work: Work, name: str, machine: Machine) -> dict[str, Any]:
    plan = work.plans[name]
    costs = plan_costs(work.config, plan, work.batch)
    return {
        "sampling": dataclasses.asdict(work.samplings[name]),
        "tokens": plan.length,
        "iterations": len(plan.iterations),
        "head_evaluations": plan.head_evaluations,
        "largest_guidance_scale": plan.guidance_scale,
        "operations": {stage: cost.operations for stage, cost in costs.items()},
        "bytes": {stage: cost.bytes for stage, cost in costs.items()},
        "roofline_seconds": roofline_seconds(work.config, plan, machine, work.batch),
    }


def _case(one: Measurement, work: Work, machine: Machine, baseline: Measurement) -> dict[str, Any]:
    plan = work.plans[one.case.preset]
    costs = plan_costs(work.config, plan, work.batch).values()
    least = sum(roofline_seconds(work.config, plan, machine, work.batch).values())
    return {
        **dataclasses.asdict(one.case),
        "seconds": dataclasses.asdict(one.image),
        "seconds_an_image": one.image.median / work.batch,
        "stage_seconds": {name: dataclasses.asdict(timing) for name, timing in one.stages.items()},
        "useful_gflops": sum(cost.operations for cost in costs) / one.image.median / 1e9,
        "useful_gb_per_second": sum(cost.bytes for cost in costs) / one.image.median / 1e9,
        # The roofline is the processor's, and no measure of another device.
        "share_of_roofline": None if DEVICE in one.stages else least / one.image.median,
        "times_the_baseline": baseline.image.median / one.image.median,
    }


def table(value: Mapping[str, Any]) -> str:
    """A report as text, milliseconds an image."""
    cases, batch = value["cases"], value["batch"]
    wide = max(len(_label(case)) for case in cases) + 4
    lines = [
        f"{'ms an image':{wide}}{'median':>10}{'p10':>10}{'p90':>10}{'roofline':>10}{'reached':>9}"
        f"{'GFLOP/s':>9}{'GB/s':>7}{'speed':>8}"
    ]
    for case in cases:
        least = value["plans"][case["preset"]]["roofline_seconds"]
        lines.append(
            f"{_label(case):{wide}}{_milliseconds(case['seconds'], batch)}"
            f"{_roofline(case, sum(least.values()) / batch)}"
            f"{case['useful_gflops']:9.0f}{case['useful_gb_per_second']:7.1f}"
            f"{case['times_the_baseline']:7.2f}x"
        )
        for stage, seconds in case["stage_seconds"].items():
            limit = (
                f"{1e3 * least[stage] / batch:10.1f}{least[stage] / seconds['median']:9.0%}" if stage in least else ""
            )
            lines.append(f"{'  ' + stage:{wide}}{_milliseconds(seconds, batch)}{limit}")
    lines.append("")
    lines += [
        f"{name:{wide}}peak memory {one['peak_memory_bytes'] / 2**20:,.0f} MiB; {one['runs_on']}"
        for name, one in value["runners"].items()
    ]
    machine = value["machine"]
    lines.append(
        f"roofline: {machine['gflops']:.0f} GFLOP/s and {machine['read_gb_per_second']:.1f} GB/s, measured between the "
        "cases; it, GFLOP/s and GB/s count the work that has to be done in float32, whatever a runner does; "
        f"speed against {_label(value['baseline'])}"
    )
    return "\n".join(lines)


def _label(case: Mapping[str, Any]) -> str:
    return f"{case['runner']}, {case['preset']}"


def _roofline(case: Mapping[str, Any], least: float) -> str:
    share = case["share_of_roofline"]
    return f"{'':19}" if share is None else f"{1e3 * least:10.1f}{share:9.0%}"


def _milliseconds(seconds: Mapping[str, float], batch: int) -> str:
    return "".join(f"{1e3 * seconds[name] / batch:10.1f}" for name in ("median", "p10", "p90"))


def _versions() -> dict[str, str]:
    found = {}
    for name in ("numpy", "onnxruntime", "openvino", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found

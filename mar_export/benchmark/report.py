"""The report of `mar bench`: times of all cases beside the least time that the processor allows, as JSON and text."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from mar_export.benchmark.timing import Measurement
from runtime.cost.operations import Machine, plan_costs, roofline_seconds
from runtime.model.engine_spec import DEVICE
from runtime.model.family_config import FamilyConfig
from runtime.provenance import commit, processor_name
from runtime.sampling.plan import Plan
from runtime.sampling.settings import Sampling
from runtime.version import __version__

_LIBRARIES = ("numpy", "onnxruntime", "openvino", "torch")


@dataclasses.dataclass(frozen=True)
class Workload:
    """What every runner generates.

    Attributes:
        config: The model.
        batch: The number of images that are generated together.
        samplings: The complete sampling settings of each preset, by name.
        plans: The plan of each preset, by name.
    """

    config: FamilyConfig
    batch: int
    samplings: Mapping[str, Sampling]
    plans: Mapping[str, Plan]


def build_report(
    measurements: Sequence[Measurement],
    machine: Machine,
    workload: Workload,
    runners: Mapping[str, Mapping[str, Any]],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Build the JSON report of a benchmark.

    Speeds are relative to the first case of the runner `eager`, or to the slowest case where `eager` is not measured.

    Args:
        measurements: The times of every case.
        machine: The rates that the processor reached during the benchmark.
        workload: What was generated.
        runners: For each runner its description, `runs_on`, and its peak memory in bytes, `peak_memory_bytes`.
        about: Further entries of the report, which are copied as they are.
    """
    slowest = max(measurements, key=lambda measurement: measurement.total.median)
    baseline = next((measurement for measurement in measurements if measurement.case.runner == "eager"), slowest)
    measured_on = provenance(_LIBRARIES)
    rates = {"gflops": machine.operations / 1e9, "read_gb_per_second": machine.bytes / 1e9}
    return {
        **about,
        "batch": workload.batch,
        "baseline": dataclasses.asdict(baseline.case),
        **measured_on,
        "machine": {**measured_on["machine"], **rates},
        "runners": dict(runners),
        "plans": {name: _plan_entry(workload, name, machine) for name in workload.plans},
        "cases": [_case_entry(measurement, workload, machine, baseline) for measurement in measurements],
    }


def provenance(libraries: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the machine that a benchmark runs on, and the versions of this project, Python and some libraries."""
    return {
        "machine": {"processor": processor_name(), "system": platform.platform()},
        "versions": {
            "mar": __version__,
            "commit": commit(),
            "python": platform.python_version(),
            **{name: _version(name) for name in libraries},
        },
    }


def _plan_entry(workload: Workload, name: str, machine: Machine) -> dict[str, Any]:
    plan = workload.plans[name]
    costs = plan_costs(workload.config, plan, workload.batch)
    return {
        "sampling": dataclasses.asdict(workload.samplings[name]),
        "tokens": plan.length,
        "iterations": len(plan.iterations),
        "head_evaluations": plan.head_evaluations,
        "largest_guidance_scale": plan.guidance_scale,
        "operations": {stage: cost.operations for stage, cost in costs.items()},
        "bytes": {stage: cost.bytes for stage, cost in costs.items()},
        "roofline_seconds": roofline_seconds(workload.config, plan, machine, workload.batch),
    }


def _case_entry(
    measurement: Measurement, workload: Workload, machine: Machine, baseline: Measurement
) -> dict[str, Any]:
    plan, median = workload.plans[measurement.case.preset], measurement.total.median
    costs = plan_costs(workload.config, plan, workload.batch).values()
    least = sum(roofline_seconds(workload.config, plan, machine, workload.batch).values())
    return {
        **dataclasses.asdict(measurement.case),
        "seconds": dataclasses.asdict(measurement.total),
        "seconds_an_image": median / workload.batch,
        "stage_seconds": {name: dataclasses.asdict(timing) for name, timing in measurement.stages.items()},
        "useful_gflops": sum(cost.operations for cost in costs) / median / 1e9,
        "useful_gb_per_second": sum(cost.bytes for cost in costs) / median / 1e9,
        # The roofline is the processor's, so it says nothing about another device.
        "share_of_roofline": None if DEVICE in measurement.stages else least / median,
        "times_the_baseline": baseline.total.median / median,
    }


def format_report(report: Mapping[str, Any]) -> str:
    """Format a report of `build_report` as a text table, in milliseconds an image."""
    cases, batch = report["cases"], report["batch"]
    width = max(len(_label(case)) for case in cases) + 4
    lines = [
        f"{'ms an image':{width}}{'median':>10}{'p10':>10}{'p90':>10}{'roofline':>10}{'reached':>9}"
        f"{'GFLOP/s':>9}{'GB/s':>7}{'speed':>8}"
    ]
    for case in cases:
        least = report["plans"][case["preset"]]["roofline_seconds"]
        lines.append(
            f"{_label(case):{width}}{_milliseconds(case['seconds'], batch)}"
            f"{_roofline(case, sum(least.values()) / batch)}"
            f"{case['useful_gflops']:9.0f}{case['useful_gb_per_second']:7.1f}"
            f"{case['times_the_baseline']:7.2f}x"
        )
        for stage, seconds in case["stage_seconds"].items():
            limit = (
                f"{1e3 * least[stage] / batch:10.1f}{least[stage] / seconds['median']:9.0%}" if stage in least else ""
            )
            lines.append(f"{'  ' + stage:{width}}{_milliseconds(seconds, batch)}{limit}")
    lines.append("")
    lines += [
        f"{name:{width}}peak memory {runner['peak_memory_bytes'] / 2**20:,.0f} MiB; {runner['runs_on']}"
        for name, runner in report["runners"].items()
    ]
    machine = report["machine"]
    lines.append(
        f"roofline: {machine['gflops']:.0f} GFLOP/s and {machine['read_gb_per_second']:.1f} GB/s, measured between the "
        "rounds; roofline, GFLOP/s and GB/s count the work that is necessary in float32, whatever a runner computes; "
        f"speed against {_label(report['baseline'])}"
    )
    return "\n".join(lines)


def _label(case: Mapping[str, Any]) -> str:
    return f"{case['runner']}, {case['preset']}"


def _roofline(case: Mapping[str, Any], least: float) -> str:
    share = case["share_of_roofline"]
    return f"{'':19}" if share is None else f"{1e3 * least:10.1f}{share:9.0%}"


def _milliseconds(seconds: Mapping[str, float], batch: int) -> str:
    return "".join(f"{1e3 * seconds[name] / batch:10.1f}" for name in ("median", "p10", "p90"))


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

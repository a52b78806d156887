"""Latency of this runtime against eager PyTorch: alternating in one process, stage by stage."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pathlib
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from runtime import Generator, __version__
from runtime.artifact import Manifest
from runtime.backends import Array, Engine
from runtime.errors import RequestError
from runtime.loop import Engines
from runtime.noise import seeded_noise, seeded_order
from runtime.plan import Plan

Stages = dict[str, float]  # stage -> seconds


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Something that draws the same picture: `draw` returns the seconds of each of its stages."""

    name: str
    draw: Callable[[], Stages]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds over repeated pictures."""

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
    """One contestant's times per picture, in all (`image`) and stage by stage."""

    name: str
    image: Timing
    stages: Mapping[str, Timing]


def measure(contestants: list[Contestant], repeats: int, progress: Callable[[], None]) -> list[Measurement]:
    """Draw in turn, so that whatever else the machine does hits all alike; one round first to warm up."""
    totals: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    stages: dict[str, list[Stages]] = {contestant.name: [] for contestant in contestants}
    for round_ in range(repeats + 1):
        for contestant in contestants:
            started = time.perf_counter()
            of_stages = contestant.draw()
            seconds = time.perf_counter() - started
            if round_ > 0:
                totals[contestant.name].append(seconds)
                stages[contestant.name].append({**of_stages, "rest": seconds - sum(of_stages.values())})
            progress()
    return [
        Measurement(
            name,
            Timing.of(totals[name]),
            {stage: Timing.of([one[stage] for one in stages[name]]) for stage in stages[name][0]},
        )
        for name in totals
    ]


def runtime_contestant(generator: Generator, label: int, settings: Mapping[str, Any]) -> Contestant:
    """This runtime, each engine wrapped in a clock."""
    clocks = {
        field.name: _Clock(getattr(generator.engines, field.name)) for field in dataclasses.fields(generator.engines)
    }
    generator.engines = Engines(**clocks)

    def draw() -> Stages:
        for clock in clocks.values():
            clock.seconds = 0.0
        generator.generate([label], **settings)
        return {name: clock.seconds for name, clock in clocks.items()}

    return Contestant("runtime", draw)


def eager_contestant(
    checkpoint_path: pathlib.Path, config_file: pathlib.Path | None, manifest: Manifest, label: int, plan: Plan
) -> Contestant:
    """The published loop in eager PyTorch, with the same weights, plan, order and noise."""
    from training.checkpoint import load_checkpoint
    from training.published import sample

    checkpoint = load_checkpoint(checkpoint_path, config_file)
    if checkpoint.sha256 != manifest.provenance.get("checkpoint_sha256"):
        raise RequestError(
            f"{checkpoint_path} is not the checkpoint that the artifact was exported from; export it first"
        )
    model = checkpoint.model
    order = seeded_order(0, [0], model.config)
    noise = seeded_noise(0, [0], plan.diffusion_steps, model.config)

    def draw() -> Stages:
        times: Stages = {}
        sample(model, np.array([label]), plan, order, noise, times=times)
        return times

    return Contestant("eager PyTorch", draw)


class _Clock:
    """An engine that adds up the time spent in it."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.seconds = engine, 0.0

    def __call__(self, **inputs: Array) -> tuple[Array, ...]:
        started = time.perf_counter()
        outputs = self._engine(**inputs)
        self.seconds += time.perf_counter() - started
        return outputs


def report(
    measurements: list[Measurement], generator: Generator, settings: Mapping[str, Any], repeats: int, threads: int
) -> dict[str, Any]:
    """Everything a reader needs to believe the figures or to repeat them."""
    plan = generator.plan(**settings)
    value: dict[str, Any] = {
        "contestants": {
            one.name: {
                "image_seconds": dataclasses.asdict(one.image),
                "stage_seconds": {name: dataclasses.asdict(timing) for name, timing in one.stages.items()},
            }
            for one in measurements
        },
        "plan": {
            "tokens": plan.length,
            "iterations": len(plan.iterations),
            "head_evaluations": plan.head_evaluations,
            "largest_guidance_scale": plan.guidance_scale,
        },
        "sampling": dataclasses.asdict(generator.sampling(**settings)),
        "backend": generator.description,
        "provenance": dict(generator.manifest.provenance),
        "batch": 1,
        "repeats": repeats,
        "threads": threads,
        "machine": {"processor": _processor(), "system": platform.platform()},
        "versions": {"mar": __version__, "commit": _commit(), "python": platform.python_version(), **_versions()},
    }
    if len(measurements) > 1:
        value["ratio"] = measurements[1].image.median / measurements[0].image.median
    return value


def table(measurements: list[Measurement]) -> str:
    """The same as text: milliseconds a picture."""
    lines = [f"{'milliseconds a picture':26}{'mean':>10}{'median':>10}{'p10':>10}{'p90':>10}"]
    for one in measurements:
        rows = {one.name: one.image, **{f"  {name}": timing for name, timing in one.stages.items()}}
        for name, timing in rows.items():
            figures = (timing.mean, timing.median, timing.p10, timing.p90)
            lines.append(f"{name:26}" + "".join(f"{1e3 * figure:10.1f}" for figure in figures))
    if len(measurements) > 1:
        ours, theirs = measurements
        lines.append(
            f"\n{ours.name} is {theirs.image.median / ours.image.median:.2f}x as fast as {theirs.name} (medians)"
        )
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("numpy", "onnxruntime", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    """The commit of the checkout this runs from, with `+` if files were changed, or `unknown`."""
    here = pathlib.Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return "unknown"  # installed elsewhere, perhaps inside some other checkout
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()

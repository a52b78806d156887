"""Runners without processes, and reports of invented times, for the tests of the benchmark."""

from __future__ import annotations

import multiprocessing
import pathlib
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mar_export.benchmark import machine_probe, startup_time
from mar_export.benchmark.report import Workload, build_report
from mar_export.benchmark.runners import RunnerInputs
from mar_export.benchmark.timing import Case, Measurement, Timing
from mar_export.cli import bench as bench_cli
from runtime.cost.operations import Machine
from runtime.sampling.plan import build_plan
from runtime.sampling.settings import Sampling
from tests.helpers.golden_cases import GOLDEN
from training.models.model_sizes import model_config

CHECKPOINT, CONFIG = GOLDEN / "small" / "checkpoint-last.pth", GOLDEN / "small" / "meta.json"
WEIGHTS = f"--checkpoint {CHECKPOINT} --model-config {CONFIG}"
MACHINE = Machine(operations=5e9, bytes=2e9)
STARTUP = {"interpreter": 0.1, "import_runtime": 0.2, "first_backbone_call": 0.75}
BACKBONE_COLOUR, DENOISE_COLOUR, REST_COLOUR = (0x31, 0x68, 0x8E), (0xFD, 0xE7, 0x25), (0xBB, 0xBB, 0xBB)
WORKLOAD = Workload(
    model_config("pixel_small"),
    batch=2,
    samplings={"own": Sampling(cfg_scale=2.0), "turbo": Sampling(iterations=5, sampler="dpm++2m", diffusion_steps=8)},
    plans={
        "own": build_plan(64, Sampling(cfg_scale=2.0)),
        "turbo": build_plan(64, Sampling(iterations=5, sampler="dpm++2m", diffusion_steps=8)),
    },
)


@pytest.fixture
def no_leftover_processes() -> Iterator[None]:
    """No test may leave the process of a runner; one that failed may need a moment to end."""
    yield
    deadline = time.monotonic() + 20
    while left := multiprocessing.active_children():
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.fixture(scope="session")
def small_artifact(golden_artifacts: dict[str, pathlib.Path]) -> pathlib.Path:
    """The golden model of 16 tokens and 6 classes, exported. Read only."""
    return golden_artifacts["small"]


def runner_inputs(artifact: pathlib.Path, **changes: Any) -> RunnerInputs:
    """Inputs of a runner for the small golden model, with `changes`."""
    values: dict[str, Any] = {
        "artifact": artifact,
        "checkpoint": CHECKPOINT,
        "config_file": CONFIG,
        "random_model": None,
        "naive": artifact / "none",
        "packages": artifact / "none",
        "request": {"labels": (2, 0)},
        "batch": 2,
        "threads": 1,
    }
    return RunnerInputs(**values | changes)


class FakeRunner:
    """A runner without a process, which reports the time that `seconds` returns."""

    instances: list[FakeRunner]
    seconds: Callable[[FakeRunner, Mapping[str, Any]], float]

    def __init__(self, name: str, inputs: RunnerInputs, wait_policy: str | None) -> None:
        self.name, self.inputs, self.wait_policy = name, inputs, wait_policy
        self.description = f"{name}, {wait_policy}, on nothing"
        self.requests: list[dict[str, Any]] = []
        self.stopped = self.finished = False
        self.instances.append(self)

    def generate(self, settings: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
        self.requests.append(dict(settings))
        seconds = type(self).seconds(self, settings)
        stage = "denoise" if self.name.startswith("runtime") else "head"
        return seconds, {"backbone": seconds / 4, stage: seconds / 2, "rest": seconds / 4}

    def finish(self) -> int:
        self.finished = True
        return 2**20 * len(self.instances)

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def fake_runners(monkeypatch: pytest.MonkeyPatch) -> type[FakeRunner]:
    """The command uses `FakeRunner`, an invented machine and invented start-up times."""
    for_this_test = type("FakeRunner", (FakeRunner,), {"instances": [], "seconds": staticmethod(lambda runner, _: 1.0)})
    monkeypatch.setattr(bench_cli, "Runner", for_this_test)
    without_machine(monkeypatch)
    return for_this_test


def without_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement of this machine with `MACHINE` and `STARTUP`."""
    probe = types.SimpleNamespace(measure=lambda: MACHINE)
    monkeypatch.setattr(machine_probe, "Probe", lambda threads: probe)
    monkeypatch.setattr(startup_time, "startup_seconds", lambda artifact, threads, backend, device, repeats: STARTUP)


def timing_of(seconds: float) -> Timing:
    """Statistics around a median."""
    return Timing(mean=1.1 * seconds, median=seconds, p10=0.5 * seconds, p90=2 * seconds)


def measurement(runner: str, preset: str, seconds: float) -> Measurement:
    """Invented times of one case, with the stages of its runner."""
    stages = {"backbone": timing_of(seconds / 4), "denoise": timing_of(seconds / 2), "rest": timing_of(seconds / 4)}
    if not runner.startswith("runtime"):
        stages["head"] = stages.pop("denoise")
    return Measurement(Case(runner, preset), timing_of(seconds), stages)


def report_of(*measurements: Measurement) -> dict[str, Any]:
    """A report of invented times for `WORKLOAD`."""
    names = dict.fromkeys(measurement.case.runner for measurement in measurements)
    runners = {
        name: {"runs_on": f"{name} on nothing", "peak_memory_bytes": 1000 * number}
        for number, name in enumerate(names, start=1)
    }
    about = {"title": "a model", "repeats": 3, "threads": 7}
    return build_report(measurements, MACHINE, WORKLOAD, runners, about)


def assert_table_agrees(text: str, value: Mapping[str, Any]) -> None:
    """Every case and stage of a report has its line, in milliseconds an image."""
    lines, batch = text.splitlines(), value["batch"]
    start = next(number for number, line in enumerate(lines) if line.startswith("ms an image"))
    rows = iter(lines[start + 1 :])
    for case in value["cases"]:
        label = f"{case['runner']}, {case['preset']}"
        row = next(rows)
        assert row.startswith(label)
        least = value["plans"][case["preset"]]["roofline_seconds"]
        times = [f"{1e3 * case['seconds'][name] / batch:.1f}" for name in ("median", "p10", "p90")]
        assert row.removeprefix(label).split() == [
            *times,
            f"{1e3 * sum(least.values()) / batch:.1f}",
            f"{case['share_of_roofline']:.0%}",
            f"{case['useful_gflops']:.0f}",
            f"{case['useful_gb_per_second']:.1f}",
            f"{case['times_the_baseline']:.2f}x",
        ]
        for stage, seconds in case["stage_seconds"].items():
            times = [f"{1e3 * seconds[name] / batch:.1f}" for name in ("median", "p10", "p90")]
            if stage in least:
                times += [f"{1e3 * least[stage] / batch:.1f}", f"{least[stage] / seconds['median']:.0%}"]
            assert next(rows).split() == [stage, *times]
    assert next(rows) == ""
    for name, one in value["runners"].items():
        memory = f"peak memory {one['peak_memory_bytes'] / 2**20:,.0f} MiB; {one['runs_on']}"
        assert next(rows).split(maxsplit=1) == [name, memory]
    last, baseline = next(rows), value["baseline"]
    assert last.startswith(f"roofline: {value['machine']['gflops']:.0f} GFLOP/s and ")
    assert last.endswith(f"speed against {baseline['runner']}, {baseline['preset']}")


def colours(path: pathlib.Path) -> dict[tuple[int, ...], int]:
    """How many pixels each colour of a PNG has."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    values, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(value): int(count) for value, count in zip(values.tolist(), counts, strict=True)}

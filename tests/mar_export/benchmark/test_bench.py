"""The benchmark: who is timed when, what is reported, and that all runners draw the same image."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import shlex
import shutil
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from mar_export.benchmark import report, naive_graphs, naive_onnx, machine_probe, runners, startup_time
from mar_export.benchmark.bench_chart import save_chart
from mar_export.benchmark.runners import RUNNERS, Entry, Runner
from mar_export.cli import bench as bench_cli
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.cost.operations import Machine, plan_costs, roofline_seconds
from runtime.errors import BackendError, ConfigError, MarError
from runtime.files import write_json
from runtime.generator import Generator, Result
from runtime.loops.host_loop import Engines, run_plan
from runtime.model.engine_spec import DEVICE, Array, Engine
from runtime.sampling.plan import build_plan
from runtime.sampling.presets import PRESETS, resolve_sampling
from runtime.sampling.samplers import DIFFUSION_SAMPLERS
from runtime.sampling.settings import Sampling
from tests.helpers.command_line import Mar
from tests.helpers.distance import relative_l2
from tests.helpers.golden_cases import GOLDEN, GOLDEN_TOLERANCE
from training.checkpoints.checkpoint import Checkpoint
from training.checkpoints.random_weights import random_checkpoint
from training.models import reference_loop as published
from training.models.model_sizes import model_config

CHECKPOINT, CONFIG = GOLDEN / "small" / "checkpoint-last.pth", GOLDEN / "small" / "meta.json"
WEIGHTS = f"--checkpoint {CHECKPOINT} --config {CONFIG}"
SMALL = model_config("pixel_small", img_size=16)  # of 16 tokens, as that model
MACHINE = Machine(operations=5e9, bytes=2e9)
STARTUP = {"interpreter": 0.1, "import_runtime": 0.2, "first_backbone_call": 0.75}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    """No test may leave a runner's process; one that failed may need a moment to end."""
    yield
    deadline = time.monotonic() + 20
    while left := multiprocessing.active_children():
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.fixture(scope="module")
def artifact(golden_artifacts: dict[str, pathlib.Path]) -> pathlib.Path:
    """The model of 16 tokens and 6 classes."""
    return golden_artifacts["small"]


def entry_of(artifact: pathlib.Path, **changes: Any) -> Entry:
    values: dict[str, Any] = {
        "artifact": artifact,
        "checkpoint": CHECKPOINT,
        "config_file": CONFIG,
        "random_model": None,
        "naive": artifact / "none",
        "labels": (2, 0),
        "threads": 1,
    }
    return Entry(**values | changes)


class FakeRunner:
    """Draws in no time, and says that it took as long as `seconds` has it."""

    made: list[FakeRunner]
    seconds: Callable[[str, Mapping[str, Any]], float]

    def __init__(self, name: str, entry: Entry) -> None:
        self.name, self.entry, self.description = name, entry, f"{name} on nothing"
        self.drawn: list[dict[str, Any]] = []
        self.stopped = self.finished = False
        self.made.append(self)

    def draw(self, settings: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
        self.drawn.append(dict(settings))
        seconds = type(self).seconds(self.name, settings)
        stage = "denoise" if self.name.startswith("runtime") else "head"
        return seconds, {"backbone": seconds / 4, stage: seconds / 2, "rest": seconds / 4}

    def finish(self) -> int:
        self.finished = True
        return 2**20 * len(self.made)

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeRunner]:
    """Runners, machine and start-up without any process."""
    of_test = type("FakeRunner", (FakeRunner,), {"made": [], "seconds": staticmethod(lambda name, _: 1.0)})
    monkeypatch.setattr(bench_cli, "Runner", of_test)
    _without_machine(monkeypatch)
    return of_test


def _without_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = types.SimpleNamespace(measure=lambda: MACHINE)
    monkeypatch.setattr(machine_probe, "Probe", lambda threads: probe)
    monkeypatch.setattr(startup_time, "startup_seconds", lambda artifact, threads, backend, device, repeats: STARTUP)


# Cases.


def test_races_run_in_turn_with_the_machine_measured_between_rounds() -> None:
    events: list[Any] = []
    clock = itertools.count(1)
    rates = iter([30.0, 10.0, 20.0, 40.0])

    class Drawer:
        def __init__(self, name: str) -> None:
            self.name = name

        def draw(self, settings: Mapping[str, Any]) -> tuple[float, dict[str, float]]:
            events.append((self.name, dict(settings)))
            seconds = float(next(clock))
            return seconds, {"work": seconds / 2, "rest": seconds / 2}

    def machine() -> Machine:
        events.append("machine")
        rate = next(rates)
        return Machine(rate, rate / 10)

    cases = [report.Case("a", "own"), report.Case("a", "fast"), report.Case("b", "own")]
    settings: dict[str, dict[str, Any]] = {"own": {"iterations": 3}, "fast": {"preset": "fast"}}
    runners: Any = {name: Drawer(name) for name in ("a", "b")}
    steps: list[None] = []
    found, rate = report.measure(runners, cases, settings, {"iterations": 1}, 3, machine, lambda: steps.append(None))
    a_round = [("a", settings["own"]), ("a", settings["fast"]), ("b", settings["own"])]
    warm_up = [("a", {"iterations": 1}), ("b", {"iterations": 1})]
    assert events == [*warm_up, *["machine", *a_round] * 3, "machine"]
    assert len(steps) == 9
    assert rate == Machine(25.0, 2.5)
    assert [one.case for one in found] == cases
    # The warm-up took seconds 1 and 2; the first case had 3, 6 and 9.
    assert found[0].image == report.Timing.of([3.0, 6.0, 9.0])
    assert found[2].image.median == 8.0
    assert found[0].stages == {name: report.Timing.of([1.5, 3.0, 4.5]) for name in ("work", "rest")}


@pytest.mark.parametrize("sampler", DIFFUSION_SAMPLERS)
def test_the_warm_up_is_short_whatever_the_artifact_draws_with(sampler: str) -> None:
    own = Sampling(sampler=sampler, diffusion_steps=400, last_diffusion_steps=50, cfg_scale=2.0)
    plan = build_plan(16, resolve_sampling(own, SMALL, report.warm_up(SMALL)))
    assert plan.head_evaluations == 4
    assert plan.iterations[1].guided


def test_a_timing_is_mean_median_and_percentiles() -> None:
    timing = report.Timing.of([float(number) for number in range(1, 12)])
    assert timing == report.Timing(mean=6.0, median=6.0, p10=2.0, p90=10.0)


# Reports.


def timing(seconds: float) -> report.Timing:
    return report.Timing(mean=1.1 * seconds, median=seconds, p10=0.5 * seconds, p90=2 * seconds)


def measurement(runner: str, sampling: str, seconds: float) -> report.Measurement:
    stages = {"backbone": timing(seconds / 4), "denoise": timing(seconds / 2), "rest": timing(seconds / 4)}
    if not runner.startswith("runtime"):
        stages["head"] = stages.pop("denoise")
    return report.Measurement(report.Case(runner, sampling), timing(seconds), stages)


WORK = report.Work(
    model_config("pixel_small"),
    batch=2,
    samplings={"own": Sampling(cfg_scale=2.0), "turbo": Sampling(iterations=5, sampler="dpm++2m", diffusion_steps=8)},
    plans={
        "own": build_plan(64, Sampling(cfg_scale=2.0)),
        "turbo": build_plan(64, Sampling(iterations=5, sampler="dpm++2m", diffusion_steps=8)),
    },
)


def report_of(*measurements: report.Measurement) -> dict[str, Any]:
    names = dict.fromkeys(one.case.runner for one in measurements)
    descriptions = {name: f"{name} on nothing" for name in names}
    peaks = {name: 1000 * number for number, name in enumerate(names, start=1)}
    about = {"title": "a model", "repeats": 3, "threads": 7}
    return report.report(list(measurements), MACHINE, WORK, descriptions, peaks, about)


def test_a_report_has_every_race_its_plan_and_its_share_of_the_roofline() -> None:
    value = report_of(measurement("runtime", "own", 40.0), measurement("runtime", "turbo", 5.0))
    assert (value["title"], value["repeats"], value["threads"], value["batch"]) == ("a model", 3, 7, 2)
    assert value["machine"]["gflops"] == 5
    assert value["machine"]["read_gb_per_second"] == 2
    assert value["runners"] == {"runtime": {"runs_on": "runtime on nothing", "peak_memory_bytes": 1000}}
    assert list(value["plans"]) == ["own", "turbo"]
    for case, seconds in zip(value["cases"], (40.0, 5.0), strict=True):
        plan, told = WORK.plans[case["preset"]], value["plans"][case["preset"]]
        costs = plan_costs(WORK.config, plan, 2)
        least = roofline_seconds(WORK.config, plan, MACHINE, 2)
        assert told["operations"] == {name: cost.operations for name, cost in costs.items()}
        assert told["bytes"] == {name: cost.bytes for name, cost in costs.items()}
        assert told["roofline_seconds"] == least
        assert (told["tokens"], told["iterations"]) == (64, len(plan.iterations))
        assert told["head_evaluations"] == plan.head_evaluations
        assert told["largest_guidance_scale"] == plan.guidance_scale
        assert told["sampling"]["sampler"] == WORK.samplings[case["preset"]].sampler
        assert case["seconds"]["median"] == seconds
        assert case["seconds_an_image"] == seconds / 2
        assert case["share_of_roofline"] == pytest.approx(sum(least.values()) / seconds)
        assert case["useful_gflops"] == pytest.approx(sum(told["operations"].values()) / seconds / 1e9)
        assert case["useful_gb_per_second"] == pytest.approx(sum(told["bytes"].values()) / seconds / 1e9)
        assert case["stage_seconds"]["denoise"]["median"] == seconds / 2
    json.dumps(value, allow_nan=False)


def test_the_baseline_is_eager_pytorch_where_it_takes_part() -> None:
    cases = [
        measurement("runtime", "own", 4.0),
        measurement("eager", "own", 12.0),
        measurement("naive-onnx", "own", 20),
    ]
    value = report_of(*cases)
    assert value["baseline"] == {"runner": "eager", "preset": "own"}
    assert [case["times_the_baseline"] for case in value["cases"]] == pytest.approx([3.0, 1.0, 0.6])


def test_the_baseline_is_the_slowest_where_eager_pytorch_does_not() -> None:
    cases = [
        measurement("runtime", "turbo", 2.0),
        measurement("runtime", "own", 8.0),
        measurement("naive-onnx", "own", 5),
    ]
    value = report_of(*cases)
    assert value["baseline"] == {"runner": "runtime", "preset": "own"}
    assert [case["times_the_baseline"] for case in value["cases"]] == pytest.approx([4.0, 1.0, 1.6])


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


def test_the_table_says_what_the_report_says() -> None:
    cases = [measurement(name, "own", seconds) for name, seconds in (("runtime", 40.0), ("eager", 90.0))]
    value = report_of(*cases, measurement("runtime", "turbo", 5.0))
    assert_table_agrees(report.table(value), value)
    assert "   20000.0   10000.0   40000.0" in report.table(value)  # 40 s for two images


def colours(path: pathlib.Path) -> dict[tuple[int, ...], int]:
    """How many pixels each colour of a PNG has."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    values, counts = np.unique(pixels, axis=0, return_counts=True)
    return {tuple(value): int(count) for value, count in zip(values.tolist(), counts, strict=True)}


BACKBONE_COLOUR, DENOISE_COLOUR, REST_COLOUR = (0x31, 0x68, 0x8E), (0xFD, 0xE7, 0x25), (0xBB, 0xBB, 0xBB)


def test_the_chart_has_a_bar_a_race_as_long_as_its_stages(tmp_path: pathlib.Path) -> None:
    save_chart(report_of(measurement("runtime", "own", 40.0), measurement("eager", "own", 80.0)), tmp_path / "c.png")
    area = colours(tmp_path / "c.png")
    assert min(area[colour] for colour in (BACKBONE_COLOUR, DENOISE_COLOUR, REST_COLOUR)) > 1000
    with Image.open(tmp_path / "c.png") as image:
        beside_the_legend = np.asarray(image.convert("RGB"))[:, : int(0.85 * image.width)]
    backbone = (beside_the_legend == BACKBONE_COLOUR).all(axis=-1).sum(axis=1)
    bars = backbone[backbone > 0]  # lines of pixels that cross a bar
    assert bars[-1] == pytest.approx(2 * bars[0], rel=0.1)  # the first case is on top


# The machine and the start.


def test_the_probe_counts_operations_and_bytes_over_the_median_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = types.SimpleNamespace(now=0.0)
    takes = {(4, 8, 16): 2.0, (1, 32, 64): 4.0}
    shapes: list[tuple[int, ...]] = []

    def session(shape: tuple[int, int, int], threads: int) -> Callable[[NDArray[np.float32]], None]:
        assert threads == 3
        durations = itertools.chain([500.0, 100.0], itertools.repeat(takes[shape]))  # the first calls are slow

        def call(x: NDArray[np.float32]) -> None:
            shapes.append(x.shape)
            clock.now += next(durations)

        return call

    monkeypatch.setattr(machine_probe, "_PRODUCT", (4, 8, 16))
    monkeypatch.setattr(machine_probe, "_READ", (1, 32, 64))
    monkeypatch.setattr(machine_probe, "_session", session)
    monkeypatch.setattr(machine_probe, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    assert machine_probe.Probe(3).measure() == Machine(operations=2 * 4 * 8 * 16 / 2.0, bytes=4 * 32 * 64 / 4.0)
    assert set(shapes) == {(4, 8), (1, 32)}


def test_the_probe_runs_products_of_its_shapes() -> None:
    (found,) = machine_probe._session((3, 40, 5), threads=1)(np.ones((3, 40), np.float32))
    assert found.shape == (3, 5)
    assert (found == found[:1]).all()
    assert 40 * 0.3 < found[0].mean() < 40 * 0.7  # sums of 40 weights between 0 and 1


def test_the_start_of_a_process_is_timed_up_to_the_first_backbone_call(artifact: pathlib.Path) -> None:
    found = startup_time.startup_seconds(artifact, 1, "onnxruntime", "cpu", repeats=1)
    assert set(found) == {"interpreter", "import_runtime", "first_backbone_call"}
    assert min(found["interpreter"], found["first_backbone_call"]) > 0


def test_a_start_that_fails_is_told_in_one_line(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackendError, match=r"a fresh process failed.*not an artifact") as caught:
        startup_time._run(startup_time._GENERATE, "0", str(tmp_path), "1", "onnxruntime", "cpu")
    assert "\n" not in str(caught.value)


# Runners.


class Process(NamedTuple):
    """A runner in its process, and that process's number."""

    runner: Runner
    pid: int


@pytest.fixture
def runtime(artifact: pathlib.Path) -> Iterator[Process]:
    runner = Runner("runtime", entry_of(artifact, checkpoint=None))
    pid = runner._process.pid
    assert pid is not None
    yield Process(runner, pid)
    runner.stop()


QUICK = {"iterations": 2, "diffusion_steps": 3}


def test_the_runtime_draws_in_a_process_that_never_loads_pytorch(runtime: Process) -> None:
    assert runtime.runner.description.startswith("onnxruntime ")
    seconds, stages = runtime.runner.draw(QUICK)
    assert list(stages) == ["backbone", "conditioning", "denoise", "rest"]
    assert min(stages.values()) > 0
    assert sum(stages.values()) == pytest.approx(seconds)
    maps = pathlib.Path(f"/proc/{runtime.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert "torch" not in maps
    status = pathlib.Path(f"/proc/{runtime.pid}/status").read_text()
    held = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    peak = runtime.runner.finish()
    assert held <= peak < 1.2 * held
    assert not pathlib.Path(f"/proc/{runtime.pid}").exists()


def test_each_draw_is_timed_on_its_own(artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By engines that take a known time: no seconds of an earlier draw are left in a stage."""
    clock = types.SimpleNamespace(now=0.0)

    def slowed(engine: Engine, seconds: float) -> Engine:
        def call(**inputs: Array) -> tuple[Array, ...]:
            clock.now += seconds
            return engine(**inputs)

        return call

    monkeypatch.setattr(runners, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    with Generator.load(artifact, threads=1) as generator:
        engines = generator.engines
        generator.engines = Engines(
            slowed(engines.backbone, 1.0), slowed(engines.conditioning, 10.0), slowed(engines.denoise, 100.0)
        )
        _, draw = runners._clocked(generator, entry_of(artifact))
        few, many = {"backbone": 2.0, "conditioning": 20.0, "denoise": 600.0}, QUICK | {"diffusion_steps": 5}
        assert draw(QUICK) == few
        assert draw(many) == {**few, "denoise": 1000.0}
        assert draw(QUICK) == few


def test_a_contestant_that_cannot_start_is_one_line_with_its_name(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackendError, match=r"^runtime: .*not an artifact") as caught:
        Runner("runtime", entry_of(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_contestant_that_fails_while_drawing_is_one_line_with_its_name(runtime: Process) -> None:
    with pytest.raises(BackendError, match=r"^runtime: iterations must lie in 1\.\.16") as caught:
        runtime.runner.draw({"iterations": 99})
    assert "\n" not in str(caught.value)


def test_a_contestant_that_is_killed_while_drawing_is_one_line_with_its_name(runtime: Process) -> None:
    killer = threading.Timer(1.0, os.kill, (runtime.pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(BackendError, match=r"^the process of runtime ended; not enough memory\?"):
        for _ in range(1000):
            runtime.runner.draw({"iterations": 16, "diffusion_steps": 1000})
    killer.join()


def test_a_contestant_that_is_killed_while_waiting_is_one_line_with_its_name(runtime: Process) -> None:
    os.kill(runtime.pid, signal.SIGKILL)
    runtime.runner._process.join()
    with pytest.raises(BackendError, match="runtime"):
        runtime.runner.draw(QUICK)


# The command, on runners that are real.


class Ran(NamedTuple):
    output: str
    value: dict[str, Any]
    folder: pathlib.Path  # work/, bench.json and bench.png


ON_A_GPU = ("onnxruntime-cuda", "tensorrt-cuda", "tensorrt-rtx-cuda")


@pytest.fixture(scope="module")
def ran(artifact: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("bench")
    # All but one that takes minutes, and those that need a GPU.
    names = ["runtime", "runtime-openvino-cpu", "naive-onnx", "eager", "eager-optimized"]
    assert {*RUNNERS} - {*names} == {"compile", *(f"runtime-{name}" for name in ON_A_GPU)}
    options = [
        *itertools.chain.from_iterable(("--runner", name) for name in names),
        *("--plan", "own", "--plan", "turbo", "--class", 2, "--batch-size", 2, "--repeats", 2, "--threads", 1),
        *("--iterations", 4, "--diffusion-steps", 5, "--cfg-scale", 2),
        *("--work", folder / "work", "--json", folder / "bench.json", "--chart", folder / "bench.png"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        _without_machine(patch)
        line = [str(artifact), *shlex.split(WEIGHTS), *map(str, options)]
        result = CliRunner().invoke(bench_cli.bench, line, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return Ran(result.output, json.loads((folder / "bench.json").read_text()), folder)


def test_the_command_races_the_runtime_on_every_plan_and_the_others_on_the_first(ran: Ran) -> None:
    assert [(case["runner"], case["preset"]) for case in ran.value["cases"]] == [
        ("runtime", "own"),
        ("runtime", "turbo"),
        ("runtime-openvino-cpu", "own"),
        ("runtime-openvino-cpu", "turbo"),
        ("naive-onnx", "own"),
        ("eager", "own"),
        ("eager-optimized", "own"),
    ]
    assert ran.value["baseline"]["runner"] == "eager"
    own, turbo = ran.value["plans"]["own"], ran.value["plans"]["turbo"]
    assert own["sampling"]["sampler"] == "ddpm"
    assert turbo["sampling"]["sampler"] == PRESETS["turbo"]["sampler"] != "ddpm"
    for told in (own, turbo):
        assert (told["tokens"], told["iterations"], told["head_evaluations"]) == (16, 4, 20)
        assert told["largest_guidance_scale"] == 1.9375
    assert (ran.value["batch"], ran.value["repeats"], ran.value["threads"]) == (2, 2, 1)
    assert ran.value["startup_seconds"] == STARTUP


def test_the_command_prints_what_it_writes(ran: Ran) -> None:
    assert_table_agrees(ran.output, ran.value)
    assert "first call of the backbone 0.75 s" in ran.output
    assert f"written to {ran.folder / 'bench.json'}" in ran.output
    assert f"drawn to {ran.folder / 'bench.png'}" in ran.output
    for case in ran.value["cases"]:
        times = case["seconds"]
        assert 0 < times["p10"] <= times["median"] <= times["p90"]
        stages = sum(seconds["mean"] for seconds in case["stage_seconds"].values())
        assert stages == pytest.approx(times["mean"])


def test_the_command_draws_a_chart_of_every_stage(ran: Ran) -> None:
    area = colours(ran.folder / "bench.png")
    assert area[(255, 255, 255)] < 0.95 * sum(area.values())
    assert min(area[BACKBONE_COLOUR], area[DENOISE_COLOUR]) > 100


def test_peaks_of_memory_are_those_of_each_process(ran: Ran) -> None:
    """This process has PyTorch loaded, and so has eager's; the runtime's has not."""
    peaks = {name: one["peak_memory_bytes"] for name, one in ran.value["runners"].items()}
    assert peaks["eager"] > 150 * 2**20
    assert 20 * 2**20 < peaks["runtime"] < 0.6 * peaks["eager"]


def test_every_contestant_says_what_it_runs_on(ran: Ran, artifact: pathlib.Path) -> None:
    told = {name: one["runs_on"] for name, one in ran.value["runners"].items()}
    assert list(told) == ["runtime", "runtime-openvino-cpu", "naive-onnx", "eager", "eager-optimized"]
    assert told["runtime-openvino-cpu"].startswith("openvino ")
    for name, library in {"runtime": "onnxruntime", "naive-onnx": "onnxruntime", "eager": "torch"}.items():
        assert told[name].startswith(f"{library} {ran.value['versions'][library]}")
    manifest = Artifact(artifact).manifest
    assert ran.value["engine_bytes"] == sum((artifact / name).stat().st_size for name in manifest.files)
    assert ran.value["provenance"] == manifest.provenance


def test_all_contestants_draw_the_same_image(ran: Ran, artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each of them is timed on, here in this process."""
    drawn: list[NDArray[Any]] = []
    stages = {
        "runtime": {"backbone", "conditioning", "denoise"},
        "runtime-openvino-cpu": {"backbone", "conditioning", "denoise"},
        "eager-optimized": {"backbone", "conditioning", "denoise"},
        "naive-onnx": {"backbone", "head"},
        "eager": {"backbone", "head"},
    }
    generate, sample, sample_naive = Generator.generate, published.sample, naive_onnx.sample_naive

    def spy(call: Callable[..., Any], image: Callable[[Any], NDArray[Any]]) -> Callable[..., Any]:
        def spied(*arguments: Any, **named: Any) -> Any:
            result = call(*arguments, **named)
            drawn.append(image(result))
            return result

        return spied

    def raster(latents: NDArray[Any]) -> NDArray[Any]:
        return latents.transpose(0, 2, 3, 1).reshape(2, 16, 8)  # patches of one latent

    def of_result(result: Result) -> NDArray[Any]:
        return raster(result.latents)

    monkeypatch.setattr(Generator, "generate", spy(generate, of_result))
    monkeypatch.setattr(published, "sample", spy(sample, raster))
    monkeypatch.setattr(naive_onnx, "sample_naive", spy(sample_naive, lambda tokens: tokens))
    settings: dict[str, Any] = {
        "iterations": 4,
        "diffusion_steps": 5,
        "cfg_scale": 2.0,
        "start_timestep": 900,
        "preset": "balanced",
    }
    settings["token_order"] = "checkerboard"
    entry = entry_of(artifact, naive=next(ran.folder.rglob("naive-head.onnx")).parent)
    for name, expected in stages.items():
        _, draw = RUNNERS[name](entry)
        assert draw(settings).keys() == expected
    assert len(drawn) == 5
    for other in drawn[1:]:
        assert relative_l2(other, drawn[0]) <= GOLDEN_TOLERANCE
    with Generator.load(artifact, threads=1) as generator:
        expected_result = generate(generator, [2, 0], **settings)
    assert relative_l2(drawn[0], of_result(expected_result)) <= 1e-6


def test_a_device_that_executes_plans_itself_is_timed_as_a_whole(artifact: pathlib.Path) -> None:
    with Generator.load(artifact, threads=1) as host:
        loop = functools.partial(run_plan, host.engines, host.manifest.model)
        device = Generator(host.manifest, host.engines, "a device", loop=loop)
        told, draw = runners._clocked(device, entry_of(artifact))
        stages = draw({"iterations": 2, "diffusion_steps": 2})
    assert told == "a device"
    assert stages.keys() == {DEVICE}
    assert stages[DEVICE] > 0


def test_a_device_is_not_held_against_the_roofline_of_the_processor(tmp_path: pathlib.Path) -> None:
    whole = {DEVICE: timing(0.09), "rest": timing(0.01)}
    on_device = report.Measurement(report.Case("runtime-tensorrt-cuda", "own"), timing(0.1), whole)
    value = report_of(on_device, measurement("eager", "own", 80.0))
    case, eager = value["cases"]
    assert case["share_of_roofline"] is None
    assert eager["share_of_roofline"] > 0
    line = next(line for line in report.table(value).splitlines() if line.startswith("runtime-tensorrt-cuda, own"))
    assert "%" not in line
    assert line.endswith("800.00x")
    save_chart(value, tmp_path / "c.png")


@pytest.mark.parametrize("name", ["eager", "eager-optimized"])
def test_pytorch_runs_on_as_many_threads_as_all(artifact: pathlib.Path, name: str) -> None:
    RUNNERS[name](entry_of(artifact, threads=3))
    assert torch.get_num_threads() == 3


# The command, on runners that only pretend.


def run(line: str) -> str:
    result = CliRunner().invoke(bench_cli.bench, line, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(("weights", "expected"), [("", ["runtime"]), (WEIGHTS, ["runtime", "eager"])])
def test_eager_pytorch_takes_part_where_there_are_weights(
    fake: type[FakeRunner], artifact: pathlib.Path, weights: str, expected: list[str]
) -> None:
    run(f"{artifact} {weights} --repeats 1 --threads 3 --class 5 --batch-size 2")
    assert [one.name for one in fake.made] == expected
    for one in fake.made:
        assert one.entry.artifact == artifact
        assert (one.entry.labels, one.entry.threads) == ((5, 5), 3)
        assert one.finished
        assert one.stopped


def test_sampling_options_go_to_every_plan(fake: type[FakeRunner], artifact: pathlib.Path) -> None:
    run(f"{artifact} --plan fast --plan own --repeats 2 --iterations 3 --cfg-scale 1.5")
    (runner,) = fake.made
    warm_up, *drawn = [{key: value for key, value in one.items() if value is not None} for one in runner.drawn]
    assert warm_up == report.warm_up(SMALL)
    asked = {"iterations": 3, "cfg_scale": 1.5}
    assert drawn == [{**asked, "preset": "fast"}, asked] * 2


def test_a_preset_of_the_artifact_can_be_raced(
    fake: type[FakeRunner], artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = pathlib.Path(shutil.copytree(artifact, tmp_path / "artifact"))
    manifest = Artifact(path).manifest
    own = dataclasses.replace(manifest, presets={"mine": Sampling(iterations=2, diffusion_steps=(7, 4))})
    write_json(path / MANIFEST, own.to_dict())
    assert "mine: 16 tokens, 2 iterations, 11 head evaluations" in run(f"{path} --plan mine --repeats 1")
    assert fake.made[0].drawn[-1]["preset"] == "mine"


def test_the_figures_of_the_command_are_those_of_its_contestants(
    fake: type[FakeRunner], artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    fake.seconds = staticmethod(lambda name, settings: {"runtime": 2.0, "eager": 7.0}[name])
    output = run(f"{artifact} {WEIGHTS} --repeats 3 --json {tmp_path / 'new' / 'b.json'} --chart {tmp_path / 'b.png'}")
    value = json.loads((tmp_path / "new" / "b.json").read_text())
    assert [case["times_the_baseline"] for case in value["cases"]] == [3.5, 1.0]
    assert value["machine"]["gflops"] == 5
    assert [one["peak_memory_bytes"] for one in value["runners"].values()] == [2 * 2**20] * 2
    assert_table_agrees(output, value)
    assert colours(tmp_path / "b.png")[BACKBONE_COLOUR] > 100
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b.json", "b.png", "new"]


def test_a_model_with_random_weights_is_exported_once_into_the_work_folder(
    fake: type[FakeRunner], pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[Any] = []

    def export(checkpoint: Checkpoint, out: pathlib.Path, say: Callable[[str], None], sampling: Sampling) -> None:
        exported.append((checkpoint.source, sampling.cfg_scale))
        shutil.copytree(pixel_artifact, out)

    def export_naive(model: nn.Module, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True)
        exported.append(sum(parameter.numel() for parameter in model.parameters()))
        for name in ("naive-backbone", "naive-head"):
            (folder / f"{name}.onnx").touch()

    monkeypatch.setattr("mar_export.artifact.export.export_artifact", export)
    monkeypatch.setattr(naive_graphs, "export_naive", export_naive)
    parameters = sum(p.numel() for p in random_checkpoint("pixel_small").model.parameters())
    for _ in range(2):
        run(f"--preset pixel_small --random-weights --work {tmp_path / 'work'} --repeats 1")
    assert exported == [("random weights, pixel_small", 2.9), parameters]
    assert [one.name for one in fake.made] == ["runtime", "naive-onnx", "eager"] * 2
    entry = fake.made[0].entry
    assert entry.random_model == "pixel_small"
    assert (entry.artifact / "manifest.json").is_file()
    assert (entry.naive / "naive-head.onnx").is_file()
    assert entry.artifact.is_relative_to(tmp_path / "work")
    assert entry.naive.is_relative_to(tmp_path / "work")


def test_a_work_folder_that_nobody_named_is_gone_afterwards(
    fake: type[FakeRunner], artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[pathlib.Path] = []

    def export_naive(model: nn.Module, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True)
        folders.append(folder)

    monkeypatch.setattr(naive_graphs, "export_naive", export_naive)
    run(f"{artifact} {WEIGHTS} --runner naive-onnx --repeats 1")
    assert fake.made[0].entry.naive == folders[0]
    assert not folders[0].exists()


def test_whoever_started_is_stopped_when_another_fails(
    fake: type[FakeRunner], artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    def seconds(name: str, settings: Mapping[str, Any]) -> float:
        if name == "eager" and settings != report.warm_up(SMALL):
            raise BackendError("eager: RuntimeError: out of luck")
        return 1.0

    fake.seconds = staticmethod(seconds)
    with pytest.raises(BackendError, match="out of luck"):
        run(f"{artifact} {WEIGHTS} --json {tmp_path / 'b.json'}")
    assert [one.stopped for one in fake.made] == [True, True]
    assert list(tmp_path.iterdir()) == []


# Wrong uses.


NOT_BOTH = "give an ARTIFACT, or --preset MODEL with --random-weights, or all three"
WRONG = [
    ("", NOT_BOTH, 2),
    ("--preset pixel_small", NOT_BOTH, 2),
    ("--random-weights", NOT_BOTH, 2),
    ("{artifact} --preset pixel_small", NOT_BOTH, 2),
    ("{artifact} --random-weights", NOT_BOTH, 2),
    ("--preset nope --random-weights", "unknown preset 'nope'", 2),
    ("{artifact} --runner eager", "eager: these need --checkpoint", 2),
    ("{artifact} --runner naive-onnx --runner compile", "compile, naive-onnx: these need --checkpoint", 2),
    ("{artifact} --runner nope", "'nope'", 2),
    ("{artifact} --plan nope", "--plan must be one of own, exact, balanced, fast, turbo, found 'nope'", 2),
    ("{artifact} --repeats 0", "--repeats must lie in 1..1000, found 0", 2),
    ("{artifact} --class 6", "class 6 is out of range; this model has classes 0..5", 2),
    ("{artifact} --iterations 17", "iterations must lie in 1..16", 2),
    (
        "{artifact} --batch-size 5000",
        "images drawn together at 100 diffusion steps must be a whole number in 1..4096, found 5000",
        2,
    ),
    ("{artifact} --json {folder}", "it is a folder", 1),
    ("{artifact} --chart {folder}", "it is a folder", 1),
    ("{folder}/nothing", "nothing: not an artifact", 1),
    ("{artifact} --runner naive-onnx --checkpoint {folder}/none.pth", "no checkpoint at", 1),
]


@pytest.mark.parametrize(("line", "told", "code"), WRONG, ids=[line.split("} ")[-1][:40] for line, _, _ in WRONG])
def test_a_wrong_use_is_one_line_before_anything_starts(
    mar: Mar,
    artifact: pathlib.Path,
    tmp_path: pathlib.Path,
    fake: type[FakeRunner],
    line: str,
    told: str,
    code: int,
) -> None:
    ended = mar("bench " + line.format(artifact=artifact, folder=tmp_path))
    assert ended.code == code
    assert ended.err.startswith("mar: ")
    assert ended.err.count("\n") == 1
    assert told in ended.err
    assert ended.out.strip() in ("", "naive-onnx: exporting")
    assert fake.made == []
    assert list(tmp_path.iterdir()) == []


def test_another_checkpoint_than_the_artifacts_is_one_line_and_stops_the_others(
    mar: Mar, artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_machine(monkeypatch)
    other = GOLDEN / "patch2"
    ended = mar(f"bench {artifact} --checkpoint {other / 'checkpoint-last.pth'} --config {other / 'meta.json'}")
    assert ended.code in (1, 2)
    assert ended.err.startswith("mar: eager: ")
    assert ended.err.count("\n") == 1
    assert "not the checkpoint that the artifact was exported from" in ended.err


def test_the_plain_export_is_of_the_artifacts_own_checkpoint(
    fake: type[FakeRunner], artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = GOLDEN / "patch2"
    monkeypatch.setattr(naive_graphs, "export_naive", lambda model, folder: pytest.fail("exported another model"))
    with pytest.raises(MarError, match="not the checkpoint"):
        run(
            f"{artifact} --runner naive-onnx --checkpoint {other / 'checkpoint-last.pth'} "
            f"--config {other / 'meta.json'}"
        )


# Random weights.


def test_random_weights_are_the_same_every_time_and_leave_pytorchs_own_random_numbers_alone() -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = random_checkpoint("pixel_small")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(12)
    second = random_checkpoint("pixel_small").model.state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.model.state_dict().items())
    assert not first.model.training
    assert first.model.config == model_config("pixel_small")
    assert (first.tokenizer, first.class_names) == ("pixel", ())


def test_no_layer_of_a_head_with_random_weights_is_zero() -> None:
    model = random_checkpoint("pixel_small").model
    layers = [module for module in model.diffloss.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 2 + 1 + 1 + 3 * 3 + 2
    for layer in layers:
        assert (layer.weight != 0).float().mean() > 0.99
        assert 0.01 < layer.weight.std() < 0.2


def test_an_unknown_size_of_random_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'mar_tiny'"):
        random_checkpoint("mar_tiny")

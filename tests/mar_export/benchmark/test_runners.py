"""Runners in their processes: stages, memory, and failures."""

from __future__ import annotations

import functools
import os
import pathlib
import signal
import threading
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mar_export.benchmark import runners
from mar_export.benchmark.runners import RUNNERS, WAIT_POLICIES, Runner
from runtime import engine_clocks
from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.loops.host_loop import Engines, run_plan
from runtime.model.engine_spec import DEVICE, Array, Engine
from tests.helpers.benchmarks import (
    runner_inputs,
)
from training.models import reference_loop

pytestmark = pytest.mark.usefixtures("no_leftover_processes")


QUICK = {"iterations": 2, "diffusion_steps": 3}


class Process(NamedTuple):
    """A runner in its process, and that process's number."""

    runner: Runner
    pid: int


@pytest.fixture
def runtime(small_artifact: pathlib.Path) -> Iterator[Process]:
    runner = Runner("runtime", runner_inputs(small_artifact, checkpoint=None))
    pid = runner._process.pid
    assert pid is not None
    yield Process(runner, pid)
    runner.stop()


def test_runtime_generates_in_a_process_that_never_loads_pytorch(runtime: Process) -> None:
    assert runtime.runner.description.startswith("onnxruntime ")
    seconds, stages = runtime.runner.generate(QUICK)
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


def test_each_generation_is_timed_separately(small_artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By engines that take a known time: no seconds of an earlier draw are left in a stage."""
    clock = types.SimpleNamespace(now=0.0)

    def slowed(engine: Engine, seconds: float) -> Engine:
        def call(**inputs: Array) -> tuple[Array, ...]:
            clock.now += seconds
            return engine(**inputs)

        return call

    monkeypatch.setattr(engine_clocks, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    with Generator.load(small_artifact, threads=1) as generator:
        engines = generator.engines
        generator.engines = Engines(
            slowed(engines.backbone, 1.0), slowed(engines.conditioning, 10.0), slowed(engines.denoise, 100.0)
        )
        _, draw = runners._timed_generator(generator, runner_inputs(small_artifact))
        few, many = {"backbone": 2.0, "conditioning": 20.0, "denoise": 600.0}, QUICK | {"diffusion_steps": 5}
        assert draw(QUICK) == few
        assert draw(many) == {**few, "denoise": 1000.0}
        assert draw(QUICK) == few


def test_runner_that_cannot_start_is_one_line_with_its_name(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BackendError, match=r"^runtime: .*not an artifact") as caught:
        Runner("runtime", runner_inputs(tmp_path))
    assert "\n" not in str(caught.value)


def test_failure_during_a_generation_is_one_line_with_the_runner_name(runtime: Process) -> None:
    with pytest.raises(BackendError, match=r"^runtime: iterations must lie in 1\.\.16") as caught:
        runtime.runner.generate({"iterations": 99})
    assert "\n" not in str(caught.value)


def test_runner_killed_during_a_generation_is_one_line_with_its_name(runtime: Process) -> None:
    killer = threading.Timer(1.0, os.kill, (runtime.pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(BackendError, match=r"^the process of runtime ended; not enough memory\?"):
        for _ in range(1000):
            runtime.runner.generate({"iterations": 16, "diffusion_steps": 1000})
    killer.join()


def test_runner_killed_between_generations_is_one_line_with_its_name(runtime: Process) -> None:
    os.kill(runtime.pid, signal.SIGKILL)
    runtime.runner._process.join()
    with pytest.raises(BackendError, match="runtime"):
        runtime.runner.generate(QUICK)


def test_loop_on_a_device_is_timed_as_one_stage(small_artifact: pathlib.Path) -> None:
    with Generator.load(small_artifact, threads=1) as host:
        loop = functools.partial(run_plan, host.engines, host.manifest.model)
        device = Generator(host.manifest, host.engines, "a device", loop=loop)
        description, draw = runners._timed_generator(device, runner_inputs(small_artifact))
        stages = draw({"iterations": 2, "diffusion_steps": 2})
    assert description == "a device"
    assert stages.keys() == {DEVICE}
    assert stages[DEVICE] > 0


def test_no_runner_decodes(kl_artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager PyTorch draws latents, so the decoder must not count for this runtime, as a stage or as the rest."""
    images: list[object] = []
    generate = Generator.generate

    def generated(self: Generator, **named: Any) -> Any:
        result = generate(self, **named)
        images.append(result.images)
        return result

    with Generator.load(kl_artifact, threads=1) as generator:
        assert generator.generate([2], **QUICK).images is not None
    monkeypatch.setattr(Generator, "generate", generated)
    _, draw = RUNNERS["runtime"](runner_inputs(kl_artifact, checkpoint=None))
    assert "decoder" not in draw(QUICK)
    assert images == [None]


@pytest.mark.parametrize("wait_policy", WAIT_POLICIES)
def test_pytorch_waits_as_told_and_is_stopped_between_its_turns(
    small_artifact: pathlib.Path, wait_policy: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_DISPLAY_ENV", "TRUE")  # OpenMP then says what it read
    runner = Runner("eager", runner_inputs(small_artifact), wait_policy)
    try:
        assert f"OMP_WAIT_POLICY = '{wait_policy.upper()}'" in capfd.readouterr().err
        assert runner.description.endswith(f", OMP_WAIT_POLICY={wait_policy}")
        for _ in range(2):
            assert os.waitid(os.P_PID, runner._process.pid or 0, os.WSTOPPED) is not None
            seconds, _ = runner.generate(QUICK)
            assert seconds > 0
    finally:
        runner.stop()


@pytest.mark.parametrize("name", ["eager", "eager-optimized"])
def test_pytorch_runs_on_the_requested_number_of_threads(small_artifact: pathlib.Path, name: str) -> None:
    RUNNERS[name](runner_inputs(small_artifact, threads=3))
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("name", ["runtime", "eager", "eager-optimized"])
def test_a_request_among_the_settings_replaces_that_of_the_inputs(
    small_artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    drawn: list[tuple[int, ...]] = []
    generate, sample = Generator.generate, reference_loop.sample

    def generated(self: Generator, **named: Any) -> Any:
        drawn.append(tuple(named["labels"]))
        return generate(self, **named)

    def sampled(model: Any, labels: NDArray[np.int64], *arguments: Any, **named: Any) -> Any:
        latents = sample(model, labels, *arguments, **named)
        assert len(latents) == len(labels)
        drawn.append(tuple(labels.tolist()))
        return latents

    monkeypatch.setattr(Generator, "generate", generated)
    monkeypatch.setattr(reference_loop, "sample", sampled)
    _, draw = RUNNERS[name](runner_inputs(small_artifact))
    draw({**QUICK, "labels": [1, 3, 5]})
    draw(QUICK)
    assert drawn == [(1, 3, 5), (2, 0)]

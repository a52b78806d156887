"""`mar plan`: the table it prints, and the time it predicts from a few iterations."""

from __future__ import annotations

import dataclasses
import pathlib
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.cli import plan as plan_cli
from runtime.cost.operations import iteration_costs, plan_costs, predict
from runtime.errors import ArtifactError, RequestError
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE, ENGINES, EngineSpec, engine_specs
from runtime.sampling.plan import Plan, build_plan
from runtime.sampling.presets import resolve_sampling
from runtime.sampling.settings import Sampling

Call = dict[str, tuple[int, ...]]  # input -> shape


@pytest.fixture(scope="module")
def artifact(golden_artifacts: dict[str, pathlib.Path]) -> pathlib.Path:
    """The model of 16 tokens and 6 classes."""
    return golden_artifacts["small"]


@pytest.fixture(scope="module")
def manifest(artifact: pathlib.Path) -> Manifest:
    return Artifact(artifact).manifest


# The table.


def run(artifact: pathlib.Path, line: str) -> str:
    result = CliRunner().invoke(plan_cli.plan, f"{artifact} {line}", catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rows_of(output: str) -> list[list[str]]:
    """The cells of every iteration's line."""
    header = next(number for number, line in enumerate(output.splitlines()) if line.lstrip().startswith("iteration "))
    cells = [line.split() for line in output.splitlines()[header + 1 :]]
    return cells[: cells.index([])]


def expected_rows(manifest: Manifest, plan: Plan, batch: int) -> list[list[str]]:
    rows, evaluations = [], 0
    for number, iteration in enumerate(plan.iterations, start=1):
        evaluations += iteration.table.steps
        costs = iteration_costs(manifest.model, iteration, batch).values()
        rows.append(
            [
                str(number),
                str(iteration.known),
                str(iteration.count),
                f"{iteration.guidance_scale:.2f}" if iteration.guidance_scale != 1 else "none",
                str(iteration.table.steps),
                str(evaluations),
                f"{sum(calls * cost.operations for calls, cost in costs) / 1e9:.1f}",
            ]
        )
    return rows


# What is asked for, and the same as settings of a request. The batch is large, or all figures would be 0.0.
LINES: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("--preset fast --cfg-scale 3", {"preset": "fast", "cfg_scale": 3.0}),
    ("--preset balanced --iterations 7", {"preset": "balanced", "iterations": 7}),
    (
        "--iterations 5 --mask-schedule linear --cfg-scale 2.5 --cfg-schedule constant --cfg-interval 0.2 0.7 "
        "--sampler ddim --eta 0.5 --diffusion-steps 20 --last-diffusion-steps 4 --step-schedule two-stage "
        "--start-timestep 900 --temperature 0.9 --token-order checkerboard",
        {
            "iterations": 5,
            "mask_schedule": "linear",
            "cfg_scale": 2.5,
            "cfg_schedule": "constant",
            "cfg_interval": (0.2, 0.7),
            "sampler": "ddim",
            "eta": 0.5,
            "diffusion_steps": "20",
            "last_diffusion_steps": 4,
            "step_schedule": "two-stage",
            "start_timestep": 900,
            "temperature": 0.9,
            "token_order": "checkerboard",
        },
    ),
]


@pytest.mark.parametrize(("line", "settings"), LINES, ids=[line[:20] or "own" for line, _ in LINES])
def test_without_time_there_is_a_row_for_each_iteration_and_totals(
    artifact: pathlib.Path, manifest: Manifest, line: str, settings: dict[str, Any]
) -> None:
    sampling = resolve_sampling(manifest.sampling, manifest.model, settings)
    plan = build_plan(16, sampling)
    output = run(artifact, f"{line} --no-time --batch-size 500")
    assert rows_of(output) == expected_rows(manifest, plan, 500)
    total = plan_costs(manifest.model, plan, 500)
    assert {name: f"{cost.operations / 1e12:.3f}" for name, cost in total.items()} != dict.fromkeys(ENGINES, "0.000")
    assert output.splitlines()[-1] == (
        f"500 images: {len(plan.iterations)} backbone passes, {plan.head_evaluations} head evaluations, "
        f"{sum(cost.operations for cost in total.values()) / 1e12:.3f} TFLOP ("
        f"backbone {total[BACKBONE].operations / 1e12:.3f}, conditioning {total[CONDITIONING].operations / 1e12:.3f}, "
        f"denoise {total[DENOISE].operations / 1e12:.3f})"
    )
    told = output.splitlines()[0]
    for name, value in dataclasses.asdict(sampling).items():
        assert (f"{name} {value}" in told) == (value is not None)
    assert " ms" not in output
    assert "predicted time" not in output


def test_without_time_no_engine_is_loaded(artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cli.Generator, "load", lambda *arguments, **named: pytest.fail("loaded"))
    assert run(artifact, "--no-time").splitlines()[-1].startswith("1 image: 16 backbone passes, 1600 head")


def test_with_time_there_is_a_column_of_milliseconds_and_a_sum(
    artifact: pathlib.Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def predicted(generator: Generator, plan: Plan, batch: int) -> list[dict[str, float]]:
        asked.update(plan=plan, batch=batch, description=generator.description)
        return [{BACKBONE: 0.1 * number, CONDITIONING: 0.02, DENOISE: 0.003} for number in range(len(plan.iterations))]

    monkeypatch.setattr(plan_cli, "predicted_seconds", predicted)
    output = run(artifact, "--iterations 3 --diffusion-steps 4 --batch-size 2 --threads 1")
    plan = build_plan(16, Sampling(iterations=3, diffusion_steps=4))
    assert (asked["batch"], len(asked["plan"].iterations), asked["plan"].diffusion_steps) == (2, 3, 4)
    assert "GFLOP       ms" in output
    times = ["23.0", "123.0", "223.0"]
    assert rows_of(output) == [[*row, time] for row, time in zip(expected_rows(manifest, plan, 2), times, strict=True)]
    assert output.splitlines()[-1] == (
        f"predicted time 0.37 s (backbone 0.30, conditioning 0.06, denoise 0.01) on {asked['description']}"
    )
    assert asked["description"].endswith("1 thread")


def test_the_engines_of_an_artifact_are_timed(artifact: pathlib.Path) -> None:
    output = run(artifact, "--iterations 3 --diffusion-steps 4 --cfg-scale 2 --threads 1")
    assert all(float(row[-1]) >= 0 for row in rows_of(output))
    assert len(rows_of(output)[0]) == 8
    assert "onnxruntime" in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--iterations 17", "iterations must lie in 1..16"),
        ("--batch-size 0", "the batch size at 100 diffusion steps must be a whole number in 1..4096, found 0"),
        ("--eta 0.5", "eta belongs to the samplers ddim and flow-euler"),
    ],
)
def test_settings_that_are_not_valid_are_refused(artifact: pathlib.Path, line: str, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        run(artifact, f"{line} --no-time")


def test_a_folder_that_is_not_an_artifact_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArtifactError, match="not an artifact"):
        run(tmp_path, "--no-time")


# The prediction, on engines that take a known time.


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class FakeEngine:
    """Checks its inputs by its spec, remembers their shapes, and takes the time that `seconds` says."""

    def __init__(self, spec: EngineSpec, clock: Clock, seconds: Any) -> None:
        self.spec, self.clock, self.seconds = spec, clock, seconds
        self.calls: list[dict[str, NDArray[Any]]] = []

    def __call__(self, **inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        assert list(inputs) == [tensor.name for tensor in self.spec.inputs]
        axes: dict[str, int] = {}
        for tensor in self.spec.inputs:
            array = inputs[tensor.name]
            assert array.dtype == tensor.dtype
            assert array.ndim == len(tensor.shape)
            for axis, size in zip(tensor.shape, array.shape, strict=True):
                assert size == (axes.setdefault(axis, size) if isinstance(axis, str) else axis)
        first = not any(shapes(call) == shapes(inputs) for call in self.calls)
        self.calls.append(inputs)
        self.clock.now += 50.0 if first else self.seconds(**inputs)  # allocating takes long
        return tuple(np.zeros(tensor.sized(axes), tensor.dtype) for tensor in self.spec.outputs)


def shapes(inputs: dict[str, NDArray[Any]]) -> Call:
    return {name: array.shape for name, array in inputs.items()}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(predict, "time", types.SimpleNamespace(perf_counter=clock.perf_counter))
    yield clock


def fakes(manifest: Manifest, clock: Clock, **seconds: Any) -> tuple[Generator, dict[str, FakeEngine]]:
    specs = engine_specs(manifest.model)
    engines = {name: FakeEngine(specs[name], clock, seconds[name]) for name in ENGINES}
    return Generator(manifest, Engines(**engines), "fakes"), engines


def by_rows(manifest: Manifest, clock: Clock) -> tuple[Generator, dict[str, FakeEngine]]:
    """Engines whose time is in proportion to the rows they compute, and in the backbone to V + 1."""
    return fakes(
        manifest,
        clock,
        backbone=lambda tokens, labels, **rest: 0.25 * len(labels) * (len(tokens) + 1),
        conditioning=lambda z, timesteps: 0.5 * len(z) * len(timesteps),
        denoise=lambda modulation, **rest: 2.0 * len(modulation),
    )


def test_engines_are_timed_on_inputs_of_the_sizes_of_the_plan(manifest: Manifest, clock: Clock) -> None:
    plan = build_plan(16, Sampling(iterations=4, diffusion_steps=9, cfg_scale=2.0, cfg_interval=(0.2, 1.0)))
    assert [iteration.guided for iteration in plan.iterations] == [False, False, True, True]
    generator, engines = by_rows(manifest, clock)
    predict.predicted_seconds(generator, plan, batch=3)
    seen = [call for number, call in enumerate(engines[BACKBONE].calls) if number % 2]  # each is called twice
    assert len(seen) == 4
    for iteration, call in zip(plan.iterations, seen, strict=True):
        sequences = 6 if iteration.guided else 3
        assert call["tokens"].shape == (iteration.known, 3, 8)
        assert call["predict"].shape == (iteration.count, 3)
        places = np.concatenate([call["visible"], call["predict"], call["rest"]])
        assert (np.sort(places, axis=0) == np.arange(16)[:, None]).all()
        assert call["labels"].shape == (sequences,)
        assert ((call["labels"] >= 0) & (call["labels"] <= 6)).all()
    for iteration, call in zip(plan.iterations, engines[CONDITIONING].calls[1::2], strict=True):
        assert call["z"].shape == ((6 if iteration.guided else 3) * iteration.count, 48)
        assert (call["timesteps"] == iteration.table.timesteps[:4]).all()
    for number, iteration in enumerate(plan.iterations):
        of_iteration = engines[DENOISE].calls[8 * number : 8 * number + 8]
        for step, call in enumerate(of_iteration):
            assert call["x"].shape == (3 * iteration.count, 8)
            assert call["modulation"].shape[0] == (6 if iteration.guided else 3) * iteration.count
            assert (call["coefficients"] == iteration.table.coefficients[step % 4]).all()
            assert call["guidance"][0] == np.float32(iteration.guidance_scale)


@pytest.mark.parametrize(
    "settings",
    [
        {"iterations": 1, "diffusion_steps": 3},
        {"iterations": 1, "diffusion_steps": 25, "cfg_scale": 2.0},
        {"iterations": 2, "diffusion_steps": 10},
        {"iterations": 4, "diffusion_steps": 12, "last_diffusion_steps": 3, "cfg_scale": 3.0},
        {"iterations": 4, "diffusion_steps": 5, "cfg_scale": 3.0, "cfg_interval": (0.3, 1.0)},
    ],
)
def test_the_prediction_of_a_timed_iteration_is_its_time(
    manifest: Manifest, clock: Clock, settings: dict[str, Any]
) -> None:
    """Steps that were not run are added, and what a first call takes is not."""
    plan = build_plan(16, Sampling(**settings))
    generator, _ = by_rows(manifest, clock)
    predicted = predict.predicted_seconds(generator, plan, batch=2)
    assert len(predicted) == len(plan.iterations)
    for iteration, seconds in zip(plan.iterations, predicted, strict=True):
        sequences = 4 if iteration.guided else 2
        rows, steps = sequences * iteration.count, iteration.table.steps
        assert list(seconds) == list(ENGINES)
        assert seconds[BACKBONE] == pytest.approx(0.25 * sequences * (iteration.known + 1))
        assert seconds[CONDITIONING] == pytest.approx(0.5 * rows * steps)
        assert seconds[DENOISE] == pytest.approx(2.0 * rows * steps)


def test_the_time_of_other_iterations_is_interpolated_by_operations(manifest: Manifest, clock: Clock) -> None:
    """At a constant time an operation, every iteration is predicted exactly, whatever its size and guidance."""
    plan = build_plan(16, Sampling(iterations=11, diffusion_steps=8, cfg_scale=2.0, cfg_interval=(0.25, 0.8)))
    config = manifest.model
    costs = [iteration_costs(config, iteration, 2) for iteration in plan.iterations]
    known = [iteration.known for iteration in plan.iterations]
    generator, engines = fakes(
        manifest,
        clock,
        backbone=lambda tokens, **rest: 1e-6 * costs[known.index(len(tokens))][BACKBONE][1].operations,
        conditioning=lambda z, timesteps: 0.5 * len(timesteps),
        denoise=lambda modulation, **rest: 1e-6 * len(modulation),
    )
    predicted = predict.predicted_seconds(generator, plan, batch=2)
    timed = [known.index(len(call["tokens"])) for call in engines[BACKBONE].calls[1::2]]
    assert timed == [0, 3, 7, 10]
    for number, (seconds, iteration) in enumerate(zip(predicted, plan.iterations, strict=True)):
        assert seconds[BACKBONE] == pytest.approx(1e-6 * costs[number][BACKBONE][1].operations)
        rows = (4 if iteration.guided else 2) * iteration.count
        assert seconds[DENOISE] == pytest.approx(1e-6 * rows * 8, rel=0.03)


def test_the_time_of_an_operation_is_interpolated_linearly(manifest: Manifest, clock: Clock) -> None:
    plan = build_plan(16, Sampling(iterations=7, diffusion_steps=8))
    costs = [iteration_costs(manifest.model, iteration, 1)[BACKBONE][1].operations for iteration in plan.iterations]
    known = [iteration.known for iteration in plan.iterations]
    rates = {0: 1.0, 2: 5.0, 4: 7.0, 6: 3.0}  # seconds an operation of the iterations that are timed

    def backbone(tokens: NDArray[np.float32], **rest: NDArray[Any]) -> float:
        number = known.index(len(tokens))
        return rates[number] * costs[number]

    generator, _ = fakes(
        manifest, clock, backbone=backbone, conditioning=lambda **inputs: 1.0, denoise=lambda **inputs: 1.0
    )
    predicted = predict.predicted_seconds(generator, plan, batch=1)
    found = [seconds[BACKBONE] / cost for seconds, cost in zip(predicted, costs, strict=True)]
    assert found == pytest.approx([1.0, 3.0, 5.0, 6.0, 7.0, 5.0, 3.0])

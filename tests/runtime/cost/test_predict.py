"""The predicted time of a plan, on engines that take a known time."""

from __future__ import annotations

import pathlib
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.cost import predict
from runtime.cost.operations import iteration_costs
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE, ENGINES, EngineSpec
from runtime.model.families import engine_specs
from runtime.sampling.plan import build_plan
from runtime.sampling.settings import Sampling

Call = dict[str, tuple[int, ...]]  # input -> shape


@pytest.fixture(scope="module")
def manifest(golden_artifacts: dict[str, pathlib.Path]) -> Manifest:
    """The manifest of the model of 16 tokens and 6 classes."""
    return Artifact(golden_artifacts["small"]).manifest


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

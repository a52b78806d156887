"""The predicted time of a plan on this machine.

On a processor a few iterations are timed, engine by engine, and the times of the others are interpolated. A loop on a
GPU is fast, and the time of single calls from the host says little about it: there the whole plan is executed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.cost.operations import iteration_costs
from runtime.generator import Generator
from runtime.model.engine_spec import BACKBONE, DEVICE, INT, Array, Engine, TensorSpec
from runtime.model.families import check_supported, drawn_tokens, family_of
from runtime.sampling.plan import Iteration, Plan

_TIMED_ITERATIONS = 4
_TIMED_STEPS = 4


def predicted_seconds(generator: Generator, plan: Plan, batch: int) -> list[dict[str, float]]:
    """Predict the time of every iteration of a plan.

    With a loop on the host, the seconds per operation of each engine are measured at a few iterations, the first and
    the last among them, and interpolated. The engines are called on zeros of the plan's sizes. With a loop on a GPU the
    plan is executed on zeros twice, and the second execution is timed.

    Args:
        generator: The generator whose engines are timed.
        plan: The plan.
        batch: The number of images generated together.

    Returns:
        For each iteration the seconds in each engine, by its name; with a loop on a GPU the seconds of the whole
        iteration, under the name `DEVICE`.

    Raises:
        BackendError: An engine failed.
    """
    config = check_supported(generator.manifest.model, "mar plan")
    if not generator.on_host:
        return _time_on_device(generator, plan, batch)
    costs = [iteration_costs(config, iteration, batch) for iteration in plan.iterations]
    # Engines have rates of their own: of the iterations that call the same ones, a few are timed.
    alike: dict[tuple[str, ...], list[int]] = {}
    for number, cost in enumerate(costs):
        alike.setdefault(tuple(cost), []).append(number)
    timed = np.unique(np.concatenate([_some_of(numbers) for numbers in alike.values()]))
    rates: dict[str, tuple[list[int], list[float]]] = {}
    for number in timed.tolist():
        seconds = _time_iteration(generator, plan, plan.iterations[number], batch)
        for name, (calls, cost) in costs[number].items():
            at, rate = rates.setdefault(name, ([], []))
            at.append(number)
            rate.append(seconds[name] / (calls * cost.operations))
    return [
        {
            name: float(np.interp(number, *rates[name])) * calls * cost.operations
            for name, (calls, cost) in iteration_cost.items()
        }
        for number, iteration_cost in enumerate(costs)
    ]


def _some_of(numbers: Sequence[int]) -> NDArray[np.int64]:
    """Return a few of the numbers of iterations, the first and the last among them."""
    places = np.linspace(0, len(numbers) - 1, _TIMED_ITERATIONS).round().astype(np.int64)
    chosen: NDArray[np.int64] = np.asarray(numbers, np.int64)[places]
    return chosen


def _time_on_device(generator: Generator, plan: Plan, batch: int) -> list[dict[str, float]]:
    config = generator.manifest.model
    tokens, name = drawn_tokens(config), family_of(config).condition
    spec = next(tensor for tensor in generator.manifest.specs[BACKBONE].inputs if tensor.name == name)
    condition = np.zeros(spec.sized({"GB": 2 * batch}), spec.dtype)
    order = np.tile(np.arange(tokens)[:, None], batch)
    noise = np.zeros((plan.noise_steps + 1, tokens, batch, config.token_channels), np.float32)
    known = np.zeros((0, batch, config.token_channels), np.float32)
    generator.loop(plan, condition, order, noise, known, None)  # which allocates memory and captures graphs
    moments = [time.perf_counter()]
    generator.loop(plan, condition, order, noise, known, lambda *_: moments.append(time.perf_counter()))
    return [{DEVICE: after - before} for before, after in itertools.pairwise(moments)]


def _time_iteration(generator: Generator, plan: Plan, iteration: Iteration, batch: int) -> dict[str, float]:
    """Return the seconds in each engine over one iteration. Only a few of its diffusion steps are timed."""
    config: Any = generator.manifest.model
    specs, steps = generator.manifest.specs, min(_TIMED_STEPS, iteration.table.steps)
    later = plan.lengths[iteration.phase] - iteration.known
    axes = {
        "B": batch,
        "Q": batch,
        "GB": batch * iteration.backbone_halves,
        "V": iteration.known,
        "K": iteration.count,
        "R": later - iteration.count,
        "O": later,
        "T": steps,
        "N": batch * iteration.count,
        "GN": batch * iteration.count * (2 if iteration.guided else 1),
    }
    if iteration.group is not None:
        axes |= iteration.group.sizes(iteration.known, iteration.count, plan.length, config.buffer_size)
    seconds = {}
    for name in iteration_costs(config, iteration, batch):
        spec = specs[name]
        inputs = {tensor.name: _input(tensor, axes, iteration, plan) for tensor in spec.inputs}
        calls = [inputs]
        if "coefficients" in inputs:
            calls = [{**inputs, "coefficients": row} for row in iteration.table.coefficients[:steps]]
        by_step = len(calls) > 1 or "timesteps" in inputs
        taken = _seconds(getattr(generator.engines, name), calls)
        seconds[name] = taken * (iteration.table.steps / steps if by_step else 1)
    return seconds


def _input(tensor: TensorSpec, axes: Mapping[str, int], iteration: Iteration, plan: Plan) -> Array:
    """Return an input of an engine as an iteration would give it: positions, timesteps and guidance, the rest zeros."""
    shape, table = tensor.sized(axes), iteration.table
    if tensor.dtype == INT and tensor.name != "labels":
        later = plan.lengths[iteration.phase] - shape[0]
        first = {"predict": iteration.known, "rest": later}.get(tensor.name, 0)
        positions = np.arange(first, first + shape[0]).reshape(-1, *[1] * len(shape[1:]))
        return np.tile(positions, (1, *shape[1:]))
    given = {"timesteps": table.timesteps[: axes["T"]], "guidance": np.array([iteration.guidance_scale], np.float32)}
    return given[tensor.name] if tensor.name in given else np.zeros(shape, tensor.dtype)


def _seconds(engine: Engine, calls: Sequence[Mapping[str, Array]]) -> float:
    """Return the seconds of some calls when they are made again, because the first ones allocate memory too."""
    for inputs in calls:
        engine(**inputs)
    started = time.perf_counter()
    for inputs in calls:
        engine(**inputs)
    return time.perf_counter() - started

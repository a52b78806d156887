"""The predicted time of a plan on this machine.

On a processor a few iterations are timed, engine by engine, and the times of the others are interpolated. A loop on a
GPU is fast, and the time of single calls from the host says little about it: there the whole plan is executed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np

from runtime.cost.operations import iteration_costs
from runtime.generator import Generator
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE, DEVICE, ENGINES
from runtime.model.families import check_supported
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
    timed = np.unique(np.linspace(0, len(plan.iterations) - 1, _TIMED_ITERATIONS).round().astype(int))
    rates: dict[str, list[float]] = {name: [] for name in ENGINES}
    for number in timed:
        seconds = _time_iteration(generator, plan.iterations[number], batch)
        for name, (calls, cost) in costs[number].items():
            rates[name].append(seconds[name] / (calls * cost.operations))
    return [
        {
            name: float(np.interp(number, timed, rates[name])) * calls * cost.operations
            for name, (calls, cost) in iteration_cost.items()
        }
        for number, iteration_cost in enumerate(costs)
    ]


def _time_on_device(generator: Generator, plan: Plan, batch: int) -> list[dict[str, float]]:
    config = generator.manifest.model
    labels = np.zeros(2 * batch, np.int64)
    order = np.tile(np.arange(config.tokens)[:, None], batch)
    noise = np.zeros((plan.diffusion_steps + 1, config.tokens, batch, config.token_channels), np.float32)
    known = np.zeros((0, batch, config.token_channels), np.float32)
    generator.loop(plan, labels, order, noise, known, None)  # which allocates memory and captures graphs
    moments = [time.perf_counter()]
    generator.loop(plan, labels, order, noise, known, lambda *_: moments.append(time.perf_counter()))
    return [{DEVICE: after - before} for before, after in itertools.pairwise(moments)]


def _time_iteration(generator: Generator, iteration: Iteration, batch: int) -> dict[str, float]:
    """Return the seconds in each engine over one iteration. Only a few of its diffusion steps are timed."""
    config, engines = generator.manifest.model, generator.engines
    sequences = batch * (2 if iteration.guided else 1)
    images, rows, steps = batch * iteration.count, sequences * iteration.count, min(_TIMED_STEPS, iteration.table.steps)
    positions = np.tile(np.arange(config.tokens)[:, None], batch)
    stop = iteration.known + iteration.count
    x = np.zeros((images, config.token_channels), np.float32)
    z = np.zeros((rows, config.z_channels), np.float32)
    table, scale = iteration.table, np.array([iteration.guidance_scale], np.float32)
    modulation = np.zeros((rows, config.modulation_channels), np.float32)
    seconds = {
        BACKBONE: _seconds(
            lambda: engines.backbone(
                tokens=np.zeros((iteration.known, batch, config.token_channels), np.float32),
                visible=positions[: iteration.known],
                predict=positions[iteration.known : stop],
                rest=positions[stop:],
                labels=np.zeros(sequences, np.int64),
            )
        ),
        CONDITIONING: _seconds(lambda: engines.conditioning(z=z, timesteps=table.timesteps[:steps])),
        DENOISE: _seconds(
            lambda: [
                engines.denoise(x=x, previous_x0=x, noise=x, modulation=modulation, coefficients=row, guidance=scale)
                for row in table.coefficients[:steps]
            ]
        ),
    }
    scale_to_all = table.steps / steps
    return {name: value * (1 if name == BACKBONE else scale_to_all) for name, value in seconds.items()}


def _seconds(call: Callable[[], object]) -> float:
    """Return the seconds of the second call, because the first one allocates memory too."""
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started

"""The loop of Hi-MAR on the host: MAR's over the low-resolution grid, then one over the full grid.

Tokens, order and noise have the positions of both grids, those of the low-resolution one first; within a grid they are
in generation order, as in `runtime.loops.host_loop`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from runtime.loops.host_loop import MOST_STEPS_AT_ONCE, Engines, run_plan
from runtime.model.engine_spec import Array, Engine
from runtime.model.himar_config import HimarConfig
from runtime.sampling.plan import AfterIteration, Condition, Float, Int, Iteration, Plan


def run_himar_plan(
    engines: Engines,
    config: HimarConfig,
    plan: Plan,
    condition: Condition,
    order: Int,
    noise: Float,
    known: Float,
    after_iteration: AfterIteration | None,
) -> Float:
    """Execute a plan of both grids on the host.

    Arguments and result are those of `runtime.loops.host_loop.run_plan`, with P positions in place of L. No token may
    be known.

    Raises:
        BackendError: An engine failed.
    """
    count, tokens = config.small_tokens, np.zeros((*order.shape, config.token_channels), np.float32)

    def after(number: int, drawn: Callable[[], Float], grid: slice) -> None:
        """Report iteration `number`, after which `drawn` returns the tokens of a grid."""

        def both() -> Float:
            tokens[grid] = drawn()
            return tokens

        if after_iteration is not None:
            after_iteration(number, len(plan.iterations), both)

    small_z: list[Float] = []

    def keeping(**inputs: Array) -> tuple[Array, ...]:
        outputs = engines.backbone(**inputs)
        small_z.append(outputs[0][: inputs["predict"].size])  # the conditional half, which comes first
        return outputs

    tokens[:count] = run_plan(
        dataclasses.replace(engines, backbone=keeping),
        config,
        dataclasses.replace(plan, lengths=plan.lengths[:1], iterations=plan.phase(0)),
        condition,
        order[:count],
        noise[:, :count],
        known,
        lambda done, _, drawn: after(done, drawn, slice(count)),
    )
    kept = np.concatenate(small_z).reshape(count, order.shape[1], -1)  # [S, B, C]
    _draw_full_grid(engines, plan, condition, order, noise, kept, tokens[count:], after)
    return tokens


def _draw_full_grid(
    engines: Engines,
    plan: Plan,
    condition: Condition,
    order: Int,
    noise: Float,
    small_z: Float,
    tokens: Float,
    after: Callable[[int, Callable[[], Float], slice], None],
) -> None:
    """Run the iterations of the full grid, from z of the small tokens [S, B, C]; write its tokens [L, B, D]."""
    count, batch = order.shape[0] - len(tokens), order.shape[1]
    big_order = order[count:] - count
    for number, iteration in enumerate(plan.phase(1), start=len(plan.phase(0)) + 1):
        start, stop = iteration.known, iteration.known + iteration.count
        (z,) = _second(engines.backbone2)(
            small_z=small_z,
            small_order=order[:count],
            tokens=tokens[:start],
            visible=big_order[:start],
            rest=big_order[start:],
            labels=condition if iteration.guided else condition[:batch],
        )  # [L, G*B, C]
        rows = noise[iteration.noise_start : iteration.noise_start + iteration.table.steps + 1, count:]
        tokens[start:stop] = _diffuse(engines, z, rows, tokens, big_order, iteration)[start:stop]
        after(number, lambda: tokens, slice(count, None))


def _diffuse(engines: Engines, z: Float, noise: Float, tokens: Float, order: Int, iteration: Iteration) -> Float:
    """Run the chain of an iteration over all positions of the full grid.

    Args:
        engines: The engines to call.
        z: The conditions of all tokens, float32 [L, G B, C].
        noise: Float32 [T + 1, L, B, D]: the initial state, and the noise of every step.
        tokens: The tokens [L, B, D], of which the first V are known.
        order: The generation order [L, B].
        iteration: The iteration.

    Returns:
        The end of the chain, float32 [L, B, D]; at known positions it has no meaning.
    """
    table = iteration.table
    x: Float = noise[0]
    x0 = np.zeros_like(x)
    known = (np.arange(len(order)) < iteration.known).astype(np.float32)
    guidance = np.array([iteration.guidance_scale], np.float32)
    conditioning, denoise = _second(engines.conditioning2), _second(engines.denoise2)
    for first in range(0, table.steps, MOST_STEPS_AT_ONCE):
        timesteps = table.timesteps[first : first + MOST_STEPS_AT_ONCE]
        condition, times = conditioning(z=z, timesteps=timesteps)  # [L, G B, W] and [t, W]
        for step, time in enumerate(times, start=first):
            x, x0 = denoise(
                x=x,
                previous_x0=x0,
                noise=noise[1 + step],
                tokens=tokens,
                first_noise=noise[0],
                known=known,
                order=order,
                condition=condition,
                time=time,
                coefficients=table.coefficients[step],
                guidance=guidance,
            )
    return x


def _second(engine: Engine | None) -> Engine:
    assert engine is not None, "an engine of the full grid is missing"
    return engine

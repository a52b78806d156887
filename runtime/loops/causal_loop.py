"""The loop under causal attention: a token at a time, with what the slots before it left in the backbone.

The sequence is the class buffer, then the tokens in generation order. Every slot is read once, together with
the place of the slot after it, which it predicts; what it leaves to later slots is a row of the cache.
"""

from __future__ import annotations

import numpy as np

from runtime.loops.host_loop import Engines, both_halves, diffuse
from runtime.model.config import ModelConfig
from runtime.sampling.plan import Float, Int, Plan, Progress


def run_causal_plan(
    engines: Engines,
    config: ModelConfig,
    plan: Plan,
    labels: Int,
    order: Int,
    noise: Float,
    known: Float,
    progress: Progress | None,
) -> Float:
    """Execute `plan`, one token an iteration, on the host: `runtime.sampling.plan.PlanLoop` says with what.

    Where any iteration is guided, all of them read both halves: later ones need what the slots left there.
    """
    (length, batch), buffer = order.shape, config.buffer_size
    guided = any(iteration.guided for iteration in plan.iterations)
    both = both_halves(labels, config) if guided else labels  # [GB]
    slots = np.concatenate([np.tile(np.arange(buffer)[:, None], batch), buffer + order])  # [buffer + L, B]
    tokens = np.zeros((buffer + length, batch, config.token_channels), np.float32)
    tokens[buffer : buffer + len(known)] = known
    cache = np.empty((buffer + length, len(both), config.cache_channels), np.float32)
    read = 0
    for number, iteration in enumerate(plan.iterations):
        stop = buffer + iteration.known
        z, cache[read:stop] = engines.backbone(
            tokens=tokens[read:stop],
            slots=slots[read:stop],
            following=slots[read + 1 : stop + 1],
            labels=both,
            cache=cache[:read],
        )
        read = stop
        rows = noise[: iteration.table.steps + 1, iteration.known]  # [T + 1, B, D]
        z = z if iteration.guided else z[:batch]
        tokens[stop] = diffuse(engines, config, z, rows, iteration.table, iteration.guidance_scale)
        if progress is not None:
            progress(number + 1, len(plan.iterations))
    return tokens[buffer:]

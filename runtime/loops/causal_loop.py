"""The masked autoregressive loop of a model with causal attention: one token an iteration, with a key-value cache.

The sequence is the class buffer, then the tokens in generation order. The backbone reads every slot of it once, with
the position of the slot after it, which it predicts. The keys and values of each slot are kept for the later ones.
"""

from __future__ import annotations

import numpy as np

from runtime.loops.host_loop import Engines, diffuse
from runtime.model.config import ModelConfig
from runtime.sampling.plan import AfterIteration, Condition, Float, Int, Plan


def run_causal_plan(
    engines: Engines,
    config: ModelConfig,
    plan: Plan,
    condition: Condition,
    order: Int,
    noise: Float,
    known: Float,
    after_iteration: AfterIteration | None,
) -> Float:
    """Execute a plan of a model with causal attention on the host.

    If any iteration is guided, every pass of the backbone computes both guidance halves, because the guided iteration
    needs the keys and values of all earlier slots in both.

    Arguments and result are those of `runtime.loops.host_loop.run_plan`. Every iteration must have one token.

    Raises:
        BackendError: An engine failed.
    """
    (length, batch), buffer = order.shape, config.buffer_size
    labels = condition if plan.guided else condition[:batch]  # [G*B]
    positions = np.concatenate([np.tile(np.arange(buffer)[:, None], batch), buffer + order])  # [buffer + L, B]
    tokens = np.zeros((buffer + length, batch, config.token_channels), np.float32)
    tokens[buffer : buffer + len(known)] = known
    key_values = np.empty((buffer + length, len(labels), config.cache_channels), np.float32)
    read = 0
    for number, iteration in enumerate(plan.iterations):
        stop = buffer + iteration.known
        z, key_values[read:stop] = engines.backbone(
            tokens=tokens[read:stop],
            position_ids=positions[read:stop],
            next_position_ids=positions[read + 1 : stop + 1],
            labels=labels,
            past_key_values=key_values[:read],
        )
        read = stop
        rows = noise[: iteration.table.steps + 1, iteration.known]  # [T + 1, B, D]
        z = z if iteration.guided else z[:batch]
        tokens[stop] = diffuse(engines, config, z, rows, iteration.table, iteration.guidance_scale)
        if after_iteration is not None:
            after_iteration(number + 1, len(plan.iterations), lambda: tokens[buffer:])
    return tokens[buffer:]

"""The masked autoregressive loop, written once against callables.

Everything is kept in generation order, sequence first: tokens known so far are a prefix, those predicted
now the next slice, and no slice has gaps. Position embeddings find their place by index inside the
backbone, so nothing is scattered.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from runtime.model.config import ModelConfig
from runtime.model.engine_spec import Engine
from runtime.sampling.plan import Float, Int, Plan, Progress
from runtime.sampling.samplers import CoefficientTable

# The modulation of all diffusion steps at once can be large; it is computed in runs of steps this big.
_MODULATION_BYTES = 16 * 2**20
# Nor in longer ones where rows are few: an engine built for so many steps is built for the most rows too.
MOST_STEPS_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Engines:
    """The engines that the loop calls, with the inputs and outputs of `runtime.model.engine_spec`."""

    backbone: Engine
    conditioning: Engine
    denoise: Engine
    decoder: Engine | None = None  # latents to pixels, and back: for the generator, not the loop
    encoder: Engine | None = None


def run_plan(
    engines: Engines,
    config: ModelConfig,
    plan: Plan,
    labels: Int,
    order: Int,
    noise: Float,
    known: Float,
    progress: Progress | None,
) -> Float:
    """Execute `plan` on the host, call by call: `runtime.sampling.plan.PlanLoop` says with what."""
    length, batch = order.shape
    tokens = np.zeros((length, batch, config.token_channels), np.float32)
    tokens[: len(known)] = known
    both = both_halves(labels, config)
    for number, iteration in enumerate(plan.iterations):
        start, stop = iteration.known, iteration.known + iteration.count
        (z,) = engines.backbone(
            tokens=tokens[:start],
            visible=order[:start],
            predict=order[start:stop],
            rest=order[stop:],
            labels=both if iteration.guided else labels,
        )  # [G K B, C]
        steps = iteration.table.steps
        rows = noise[: steps + 1, start:stop].reshape(steps + 1, -1, tokens.shape[-1])
        x = diffuse(engines, config, z, rows, iteration.table, iteration.guidance_scale)
        tokens[start:stop] = x.reshape(iteration.count, batch, -1)
        if progress is not None:
            progress(number + 1, len(plan.iterations))
    return tokens


def both_halves(labels: Int, config: ModelConfig) -> Int:
    """Labels [B] of the two halves that guidance mixes, the conditional one first: [2B]."""
    return np.concatenate([labels, np.full_like(labels, config.class_num)])


def steps_at_once(config: ModelConfig, rows: int) -> int:
    """The diffusion steps whose modulation is computed together for `rows` rows of the head."""
    return min(MOST_STEPS_AT_ONCE, max(1, _MODULATION_BYTES // (4 * rows * config.modulation_channels)))


def diffuse(
    engines: Engines, config: ModelConfig, z: Float, noise: Float, table: CoefficientTable, guidance_scale: float
) -> Float:
    """Run the diffusion chain of N tokens: z [G N, C] and noise [T + 1, N, D] to x [N, D]."""
    x: Float = noise[0]
    x0 = np.zeros_like(x)
    guidance = np.array([guidance_scale], np.float32)
    together = steps_at_once(config, len(z))
    for first in range(0, table.steps, together):
        (modulation,) = engines.conditioning(z=z, timesteps=table.timesteps[first : first + together])  # [t, G N, M]
        for step, of_step in enumerate(modulation, start=first):
            x, x0 = engines.denoise(
                x=x,
                previous_x0=x0,
                noise=noise[1 + step],
                modulation=of_step,
                coefficients=table.coefficients[step],
                guidance=guidance,
            )
    return x

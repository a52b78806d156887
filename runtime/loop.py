"""The masked autoregressive loop, written once against callables.

Everything is kept in generation order: tokens known so far are a prefix, those predicted now the next
slice. Position embeddings find their place by index inside the backbone, so nothing is scattered; one
permutation at the end gives raster order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from runtime.backends import Engine
from runtime.config import ModelConfig
from runtime.plan import Plan
from runtime.samplers import CoefficientTable

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Progress = Callable[[int, int], None]  # (iterations done, iterations in all)

# The modulation of all diffusion steps at once can be large; it is computed in runs of steps this big.
_MODULATION_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Engines:
    """The engines that the loop calls, with the inputs and outputs of `runtime.spec`."""

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
    """Execute `plan` for labels [B], order [B, L] and noise [T + 1, B, L, D], both in generation order.

    `known` [B, V, D] are the tokens that are there before the first iteration, those of the order's
    beginning. Returns tokens in raster order, [B, L, D].
    """
    batch, length = order.shape
    tokens = np.zeros((batch, length, config.token_channels), np.float32)
    tokens[:, : known.shape[1]] = known
    no_labels = np.full_like(labels, config.class_num)
    for number, iteration in enumerate(plan.iterations):
        start, stop = iteration.known, iteration.known + iteration.count
        halves = 2 if iteration.guided else 1  # the conditional half first

        def twice(array: NDArray[np.generic], halves: int = halves) -> NDArray[np.generic]:
            return np.concatenate([array] * halves)

        (z,) = engines.backbone(
            tokens=twice(tokens[:, :start]),
            visible=twice(order[:, :start]),
            predict=twice(order[:, start:stop]),
            rest=twice(order[:, stop:]),
            labels=np.concatenate([labels, no_labels]) if iteration.guided else labels,
        )  # [G B, K, C]
        rows = noise[: iteration.table.steps + 1, :, start:stop].reshape(
            iteration.table.steps + 1, -1, tokens.shape[-1]
        )
        x = _diffuse(engines, config, z.reshape(-1, z.shape[-1]), rows, iteration.table, iteration.guidance_scale)
        tokens[:, start:stop] = x.reshape(batch, iteration.count, -1)
        if progress is not None:
            progress(number + 1, len(plan.iterations))
    raster = np.empty_like(tokens)
    np.put_along_axis(raster, order[..., None], tokens, axis=1)
    return raster


def _diffuse(
    engines: Engines, config: ModelConfig, z: Float, noise: Float, table: CoefficientTable, guidance_scale: float
) -> Float:
    """Run the diffusion chain of N tokens: z [G N, C] and noise [T + 1, N, D] to x [N, D]."""
    x: Float = noise[0]
    x0 = np.zeros_like(x)
    guidance = np.array([guidance_scale], np.float32)
    steps_at_once = max(1, _MODULATION_BYTES // (4 * len(z) * config.modulation_channels))
    for first in range(0, table.steps, steps_at_once):
        (modulation,) = engines.conditioning(
            z=z, timesteps=table.timesteps[first : first + steps_at_once]
        )  # [t, G N, M]
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

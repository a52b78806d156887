"""The masked autoregressive loop on the host, which calls engines on arrays.

All arrays are in generation order, with the sequence as first axis. The tokens known so far are then a prefix, and the
tokens of an iteration are the slice after it. The backbone looks up position embeddings by index, so no array is ever
scattered.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from runtime.loops.first_pass import FirstPass
from runtime.loops.recap_passes import GroupPasses
from runtime.loops.renormalized_guidance import Others, renormalized_step
from runtime.model.engine_spec import Engine
from runtime.model.families import family_of
from runtime.model.family_config import FamilyConfig
from runtime.sampling.plan import AfterIteration, Condition, Float, Int, Plan
from runtime.sampling.samplers import CoefficientTable

# The modulation of all diffusion steps together can be large. It is computed for groups of steps of at most this size.
# Groups of 16 MiB are not faster, and an int8 MAR-B takes 29 MiB more with them; those of 4 MiB are up to 5% slower.
_MODULATION_BYTES = 8 * 2**20
MOST_STEPS_AT_ONCE = 32
"""The largest number of steps in a group. An engine is built for this number of steps and the most rows together."""


@dataclasses.dataclass(frozen=True)
class Engines:
    """The engines of a model. `runtime.model.engine_spec` describes their inputs and outputs.

    Attributes:
        backbone: Tokens and positions to z, the conditions of the tokens to predict.
        conditioning: z and timesteps to the modulation of the head.
        denoise: One diffusion step.
        backbone_full: The backbone that leaves keys and values, and
        backbone_local: the one that reads them, if the artifact has the engines of ReCAP: see
            `runtime.model.recap_engines`.
        condition: What is drawn to the prefix of the backbone, for families that have one. The loop does not use it.
        backbone2: The backbone of the second grid, for families that draw two: see `runtime.model.himar_engines`.
        conditioning2: What no noisy token enters in the head of that grid.
        denoise2: One diffusion step of that grid.
        text_encoder: Tokens of prompts to what `condition` reads, if the artifact has one. The loop does not use it.
        first_pass: Classes and positions to z, by a `runtime.loops.first_pass.FirstPass` that keeps the first pass of
            `backbone` from one image to the next; None: each plan computes it.
        decoder: Latents to an image, if the artifact has a KL tokenizer. The loop does not use it.
        encoder: An image to latents, if the artifact has that too. The loop does not use it.
    """

    backbone: Engine
    conditioning: Engine
    denoise: Engine
    backbone_full: Engine | None = None
    backbone_local: Engine | None = None
    condition: Engine | None = None
    backbone2: Engine | None = None
    conditioning2: Engine | None = None
    denoise2: Engine | None = None
    decoder: Engine | None = None
    encoder: Engine | None = None
    text_encoder: Engine | None = None
    first_pass: Engine | None = None


def run_plan(
    engines: Engines,
    config: FamilyConfig,
    plan: Plan,
    condition: Condition,
    order: Int,
    noise: Float,
    known: Float,
    after_iteration: AfterIteration | None,
) -> Float:
    """Execute a plan on the host.

    Args:
        engines: The engines to call.
        config: The model's sizes.
        plan: The iterations.
        condition: What is drawn, [G*B, ...]: see `runtime.sampling.plan.Condition`.
        order: Generation order, int64 [L, B]: token positions, first generated first.
        noise: Noise of the diffusion chains, float32 [T + 1, L, B, D], in generation order.
        known: The first V tokens in generation order, float32 [V, B, D], which stay as they are.
        after_iteration: Called after each iteration; see `runtime.sampling.plan.AfterIteration`.

    Returns:
        All tokens in generation order, float32 [L, B, D].

    Raises:
        BackendError: An engine failed.
    """
    batch, tokens = order.shape[1], np.zeros((*order.shape, config.token_channels), np.float32)
    tokens[: len(known)] = known
    family, passes = family_of(config), GroupPasses(engines.backbone_full, engines.backbone_local)
    first_pass = engines.first_pass or FirstPass(engines.backbone, config)
    for number, iteration in enumerate(plan.iterations):
        start, stop = iteration.known, iteration.stop
        of_halves = condition[: iteration.backbone_halves * batch]
        if iteration.group is not None:
            z = passes.predict(iteration, iteration.group, tokens, order, of_halves)  # [G*N, C]
        elif iteration.of_class:
            (z,) = first_pass(labels=of_halves, predict=order[start:stop])
        else:
            read = {"visible": order[:start], "predict": order[start:stop], "rest": order[stop:]}
            (z,) = engines.backbone(tokens=tokens[:start], **read, **{family.condition: of_halves})
        steps = iteration.table.steps
        rows = noise[: steps + 1, start:stop].reshape(steps + 1, -1, tokens.shape[-1])
        others = Others.around(noise[: steps + 1], start, stop) if iteration.renormalized else None
        x = diffuse(engines, config, z, rows, iteration.table, iteration.guidance_scale, others)
        tokens[start:stop] = x.reshape(iteration.count, batch, -1)
        if after_iteration is not None:
            after_iteration(number + 1, len(plan.iterations), lambda: tokens)
    return tokens


def steps_at_once(config: FamilyConfig, rows: int, most_bytes: int) -> int:
    """Return how many diffusion steps have their modulation computed in one call.

    Args:
        config: The model's sizes.
        rows: The rows of the head.
        most_bytes: The most bytes of modulation of one call; a single step may have more.
    """
    return min(MOST_STEPS_AT_ONCE, max(1, most_bytes // (4 * rows * config.modulation_channels)))


def diffuse(
    engines: Engines,
    config: FamilyConfig,
    z: Float,
    noise: Float,
    table: CoefficientTable,
    guidance_scale: float,
    others: Others | None = None,
) -> Float:
    """Run the diffusion chain of N tokens.

    Args:
        engines: The engines to call.
        config: The model's sizes.
        z: The conditions of the tokens, float32 [G N, C], with the conditional guidance half first.
        noise: Float32 [T + 1, N, D]: the initial state, and the noise of every step.
        table: The coefficients of the T steps.
        guidance_scale: The guidance scale; it has no effect without guidance.
        others: The other positions, for guidance that is renormalized; None for guidance that is not.

    Returns:
        The tokens, float32 [N, D].
    """
    x: Float = noise[0]
    x0 = np.zeros_like(x)
    guidance = np.array([guidance_scale], np.float32)
    together = steps_at_once(config, len(z), _MODULATION_BYTES)
    for first in range(0, table.steps, together):
        (modulation,) = engines.conditioning(z=z, timesteps=table.timesteps[first : first + together])  # [t, G N, M]
        for step, modulation_of_step in enumerate(modulation, start=first):
            guided = step < table.steps - table.unguided
            call = functools.partial(
                engines.denoise,
                x=x,
                previous_x0=x0,
                noise=noise[1 + step],
                coefficients=table.coefficients[step],
                guidance=guidance,
            )
            next_x, x0 = call(modulation=modulation_of_step if guided else modulation_of_step[: len(x)])
            if guided and others is not None:
                _, conditional = call(modulation=modulation_of_step[: len(x)])
                next_x, x0 = renormalized_step(table, step, x, next_x, x0, conditional, others)
            x = next_x
    return x

"""NOVA's sampling loop in eager PyTorch, as published: every iteration computes all positions of both guidance halves.

Parity reports and tests compare the engines with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.model.coefficients import COEFFICIENTS
from runtime.model.latents import unpatchify
from runtime.sampling.plan import Plan
from runtime.sampling.samplers import CoefficientTable
from training.models.nova import Nova
from training.models.reference_loop import StageClock, StageTimes

Observe = Callable[[str, Tensor], None]
"""Is called with the name of an intermediate result, and the result."""


def _ignore(name: str, value: Tensor) -> None:
    """Pass over an intermediate result."""


@torch.inference_mode()
def sample(
    model: Nova,
    condition: Tensor,
    plan: Plan,
    order: NDArray[np.int64],
    noise: NDArray[np.floating],
    *,
    observe: Observe = _ignore,
    times: StageTimes | None = None,
) -> NDArray[np.floating]:
    """Generate latents [B, C, h, w], in the dtype of the model.

    Args:
        model: The model, in evaluation mode.
        condition: c of both guidance halves [2B, Lc, C], the conditional one first; or of one half [B, Lc, C], for a
            plan without guidance.
        plan: The iterations.
        order: The generation order of the positions, int64 [B, L].
        noise: Standard normal, [T + 1, B, L, D] by position.
        observe: Is called with `z` [G*B, L, C] and `tokens` [B, L, D] by position after every iteration.
        times: Where the seconds spent in `backbone` and `head` are added; None for no measurement.
    """
    clock = StageClock(times)
    batch, length = order.shape
    config, like = model.config, model.mask_embed.mask_token
    tokens = torch.zeros(batch, length, config.token_channels, dtype=like.dtype)
    places, noise_at = torch.from_numpy(order), torch.from_numpy(noise).to(like.dtype)
    for iteration in plan.iterations:
        halves = 2 if iteration.guided else 1
        visible, now = places[:, : iteration.known], places[:, iteration.known : iteration.known + iteration.count]
        unknown = places[:, iteration.known :]
        known = torch.gather(tokens, 1, visible[..., None].expand(-1, -1, tokens.shape[-1]))
        z = model.predict(
            known.repeat(halves, 1, 1),
            visible.repeat(halves, 1),
            unknown.repeat(halves, 1),
            unknown[:, :0].repeat(halves, 1),
            condition[: halves * batch],
        )  # [G*B, K + R, C]
        observe("z", _by_position(z, unknown.repeat(halves, 1), length))
        clock.mark("backbone")
        chain = noise_at[: iteration.table.steps + 1]  # [T + 1, B, L, D]
        rows = chain.take_along_dim(now[None, ..., None], 2)
        beside = torch.cat([visible, unknown[:, iteration.count :]], dim=1)  # [B, L - K]
        others = chain.take_along_dim(beside[None, ..., None], 2)
        x = _diffuse(model, z[:, : iteration.count], rows, others, iteration.table, iteration.guidance_scale)
        tokens = tokens.scatter(1, now[..., None].expand_as(x), x)
        observe("tokens", tokens)
        clock.mark("head")
    return unpatchify(tokens.numpy(), config.grid_shape, config.patch_size)


def sample_request(
    model: Nova,
    request: Mapping[str, Any],
    plan: Plan,
    order: NDArray[np.int64],
    noise: NDArray[np.floating],
    times: StageTimes | None = None,
) -> NDArray[np.floating]:
    """Generate the latents of the prompts of a request, guided away from the empty prompt; see `sample`."""
    clock = StageClock(times)
    config, prompts = model.config, request["prompt_embeds"]
    halves = 2 if plan.guided else 1
    text = torch.zeros(halves * len(prompts), config.text_token_len, config.text_token_dim)
    lengths = torch.zeros(len(text), dtype=torch.int64)
    for place, prompt in enumerate(prompts):
        text[place, : len(prompt)] = torch.from_numpy(prompt)
        lengths[place] = len(prompt)
    with torch.inference_mode():
        condition = model.condition(text, lengths)
    clock.mark("condition")
    return sample(model, condition, plan, order, noise, times=times)


def _by_position(z: Tensor, places: Tensor, length: int) -> Tensor:
    """Return z [B, K, C] of the positions `places` [B, K] by position, [B, L, C]; zeros elsewhere."""
    empty = z.new_zeros(len(z), length, z.shape[-1])
    return empty.scatter(1, places[..., None].expand_as(z), z)


def _diffuse(model: Nova, z: Tensor, noise: Tensor, others: Tensor, table: CoefficientTable, scale: float) -> Tensor:
    """Denoise tokens [B, K, D] from z [G*B, K, C] and noise [T + 1, B, K, D].

    As published, the noisy values at the other positions, `others` [T + 1, B, L - K, D], stand for the predictions
    there. Guidance that is renormalized reads them.
    """
    count, halves = noise.shape[2], len(z) // noise.shape[1]
    x = torch.cat([noise[0], others[0]], dim=1)  # [B, L, D]
    x0 = torch.zeros_like(x)
    for step in range(table.steps):
        rows = x[:, :count].repeat(halves, 1, 1).flatten(0, 1)
        timesteps = torch.full((len(rows),), float(table.timesteps[step]), dtype=x.dtype)
        predicted = model.image_decoder(rows, timesteps, z.flatten(0, 1)).unflatten(0, (halves, len(x), count))
        outputs = [torch.cat([half, x[:, count:]], dim=1) for half in predicted]
        output = outputs[0]
        if halves == 2 and step < table.steps - table.unguided:
            output = outputs[1] + scale * (outputs[0] - outputs[1])
            if table.renorm is not None:
                conditional, guided = (each.flatten(1).norm(dim=1) for each in (outputs[0], output))
                output = output * (conditional / guided).clamp(table.renorm, 1)[:, None, None]
        row = dict(zip(COEFFICIENTS, table.coefficients[step].tolist(), strict=True))
        previous_x0, x0 = x0, row["x0_from_x"] * x + row["x0_from_eps"] * output
        x = (
            row["x_from_x"] * x
            + row["x_from_x0"] * x0
            + row["x_from_previous_x0"] * previous_x0
            + row["noise_scale"] * torch.cat([noise[1 + step], others[1 + step]], dim=1)
        )
    return x[:, :count]

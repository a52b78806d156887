"""The published sampling loop and training loss in eager PyTorch, with boolean masks over all positions.

Parity reports compare with it, since it computes the same numbers in another way. The benchmark uses it as baseline,
since it does the work of the published code as its authors run it. The same loop also samples from models with causal
attention, without a cache, and from models with a VQ head.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.model.coefficients import COEFFICIENTS
from runtime.model.latents import unpatchify
from runtime.sampling.plan import Plan
from runtime.sampling.recap import sort_unions
from runtime.sampling.samplers import CoefficientTable
from training.models.mar import MAR
from training.models.recap_reference import ReusedContext
from training.models.vq_head import sample_codes

StageTimes = dict[str, float]
"""Seconds spent in each stage, by name."""


class StageClock:
    """Adds the seconds since the last mark to a stage."""

    def __init__(self, times: StageTimes | None) -> None:
        self._times, self._last = times, time.perf_counter()

    def mark(self, stage: str) -> None:
        """Add the seconds since the last call to `stage`."""
        now = time.perf_counter()
        if self._times is not None:
            self._times[stage] = self._times.get(stage, 0.0) + now - self._last
        self._last = now


@torch.inference_mode()
def sample(
    model: MAR,
    labels: NDArray[np.int64],
    plan: Plan,
    order: NDArray[np.int64],
    noise: NDArray[np.floating],
    *,
    times: StageTimes | None = None,
) -> NDArray[np.floating]:
    """Generate latents [B, C, h, w] by the published loop, in the dtype and on the device of the model.

    Args:
        model: The model, in evaluation mode.
        labels: Classes, int64 [B].
        plan: The iterations: how many tokens each one generates, with which guidance and which denoising steps.
        order: The generation order of the positions, int64 [B, L].
        noise: Standard normal, [T + 1, B, L, D] for T denoising steps.
        times: Where the seconds spent in `backbone` and `head` are added; None for no measurement.
    """
    reference, order = model.z_proj.weight, sort_unions(order, plan.groups)
    batch, length = order.shape
    tokens = torch.zeros(batch, length, model.config.token_channels, dtype=reference.dtype, device=reference.device)
    noise_at = torch.from_numpy(noise).to(reference)  # [T + 1, B, L, D]
    rank = torch.from_numpy(np.argsort(order, axis=1)).to(reference.device)  # [B, L]: when a position is generated
    halves = 1 + (guided := plan.guided)
    shown = torch.from_numpy(labels).to(reference.device)
    if guided:
        shown = torch.cat([shown, torch.full_like(shown, model.config.class_num)])  # [G B]
    ordered = torch.from_numpy(order).to(reference.device)  # [B, L]
    backbone = _causal if (causal := model.config.attention == "causal") else _backbone
    head = _sample_vq if model.config.head == "vq" else _diffuse
    context = ReusedContext(model)

    clock = StageClock(times)
    for iteration in plan.iterations:
        masked = rank >= iteration.known  # [B, L]
        now = masked & (rank < iteration.known + iteration.count)
        read, places = tokens.repeat(halves, 1, 1), (ordered if causal else masked).repeat(halves, 1)
        if iteration.group is None:
            z = backbone(model, read, places, shown)
        else:
            union = (rank >= iteration.group.start) & (rank < iteration.group.stop)
            z = context.predict(iteration, read, places, union.repeat(halves, 1), shown)
        z = z[now.repeat(halves, 1)]  # [G N, C], the conditional half first
        clock.mark("backbone")
        tokens[now] = head(model, z, noise_at[:, now], iteration.table, iteration.guidance_scale, guided)
        clock.mark("head")
    return unpatchify(tokens.cpu().numpy(), model.config.grid_shape, model.config.patch_size)


def training_loss(
    model: MAR, latents: Tensor, labels: Tensor, mask: Tensor, timesteps: Tensor, noise: Tensor
) -> Tensor:
    """Return the loss of a batch, a scalar; the head runs on every token, and the mask weights its losses.

    Args:
        model: The model.
        latents: [B, C, h, w].
        labels: Int64 [B]; class_num stands for no class.
        mask: Which positions are masked, bool [B, L].
        timesteps: Int64 [Q B L].
        noise: Standard normal, [Q B L, D].
    """
    tokens = model.patchify(latents)  # [B, L, D]
    z = _backbone(model, tokens, mask, labels)  # [B, L, C]
    repeats = model.config.diffusion_batch_mul
    target, z = (x.flatten(0, 1).repeat(repeats, 1) for x in (tokens, z))  # [Q B L, D] and [Q B L, C]
    weight = mask.flatten().repeat(repeats).to(noise.dtype)
    loss = model.diffloss.loss_of(target, timesteps, noise, lambda x: model.diffloss.net(x, timesteps.to(x.dtype), z))
    return (loss * weight).sum() / weight.sum()


def sample_request(
    model: MAR,
    request: Mapping[str, Any],
    plan: Plan,
    order: NDArray[np.int64],
    noise: NDArray[np.floating],
    times: StageTimes | None = None,
) -> NDArray[np.floating]:
    """Generate the latents of the classes of a request; see `sample` for the other arguments."""
    return sample(model, np.array(request["labels"], np.int64), plan, order, noise, times=times)


def _backbone(model: MAR, tokens: Tensor, masked: Tensor, labels: Tensor) -> Tensor:
    """Return z of every position, [B, L, C], for tokens [B, L, D]; those in `masked`, bool [B, L], are unknown."""
    batch, buffer = len(tokens), model.config.buffer_size
    visible = torch.cat([masked.new_ones(batch, buffer), ~masked], dim=1)  # [B, buffer + L]
    class_embedding = model.class_embedding(labels)[:, None].expand(-1, buffer, -1)
    x = torch.cat([class_embedding, model.z_proj(tokens)], dim=1) + model.encoder_pos_embed_learned
    x = model.z_proj_ln(x)
    x = x[visible].reshape(batch, -1, x.shape[-1])
    for block in model.encoder_blocks:
        x = block(x)
    x = model.decoder_embed(model.encoder_norm(x))
    padded = model.mask_token.to(x.dtype).repeat(batch, visible.shape[1], 1)  # autocast lowers the dtype of x
    padded[visible] = x.reshape(-1, x.shape[-1])
    x = padded + model.decoder_pos_embed_learned
    for block in model.decoder_blocks:
        x = block(x)
    return model.decoder_norm(x)[:, buffer:] + model.diffusion_pos_embed_learned


def _causal(model: MAR, tokens: Tensor, order: Tensor, labels: Tensor) -> Tensor:
    """Return z of every position, [B, L, C], under causal attention, from a pass over the complete sequence.

    Tokens that are not generated yet come after those that are, so no known position attends to them.
    """
    index = order[..., None]
    z = model.predict_next(tokens.gather(1, index.expand_as(tokens)), order, labels)  # [B, L, C], as generated
    return torch.empty_like(z).scatter_(1, index.expand_as(z), z)


def _sample_vq(model: MAR, z: Tensor, noise: Tensor, table: CoefficientTable, scale: float, guided: bool) -> Tensor:
    """Sample tokens [N, D] of a VQ head from z [G N, C]; of noise [2, N, D] only [1, :, 0] is used."""
    temperature = float(table.coefficients[0, COEFFICIENTS.index("noise_scale")])
    return model.diffloss.codebook[sample_codes(model.diffloss.net(z), scale, temperature, noise[1, :, 0])]


def _diffuse(model: MAR, z: Tensor, noise: Tensor, table: CoefficientTable, scale: float, guided: bool) -> Tensor:
    """Denoise tokens [N, D] from z [G N, C] and noise [T + 1, N, D]; with guidance, G = 2 halves in one batch."""
    x = noise[0].repeat(2, 1) if guided else noise[0]
    x0 = torch.zeros_like(x)
    for step in range(table.steps):
        timesteps = torch.full((len(x),), float(table.timesteps[step]), dtype=x.dtype, device=x.device)
        if guided:
            x = x.chunk(2)[0].repeat(2, 1)  # the unconditional half follows the conditional one
        eps, v = model.diffloss.net(x, timesteps, z).chunk(2, dim=-1)
        if guided:
            conditional, unconditional = eps.chunk(2)
            eps = (unconditional + scale * (conditional - unconditional)).repeat(2, 1)

        def coefficient(name: str, step: int = step, x: Tensor = x) -> Tensor:
            value = torch.tensor(table.coefficients[step, COEFFICIENTS.index(name)])
            return value.to(device=x.device, dtype=x.dtype).expand(x.shape)

        previous_x0, x0 = x0, coefficient("x0_from_x") * x + coefficient("x0_from_eps") * eps
        mean = coefficient("x_from_x") * x + coefficient("x_from_x0") * x0
        if table.coefficients[step, COEFFICIENTS.index("x_from_previous_x0")]:  # the published sampler has none
            mean = mean + coefficient("x_from_previous_x0") * previous_x0
        fraction = (v + 1) / 2
        log_variance = fraction * coefficient("log_variance_high") + (1 - fraction) * coefficient("log_variance_low")
        step_noise = noise[1 + step].repeat(2, 1) if guided else noise[1 + step]
        x = mean + coefficient("noise_scale") * torch.exp(0.5 * log_variance) * step_noise
    return x.chunk(2)[0] if guided else x

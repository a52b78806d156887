"""The published sampling loop and training loss in eager PyTorch: raster order, boolean masks, one call a step.

It is what the other rooms are measured against: the reference of every parity report, since it takes
another way to the same numbers, and the baseline of the benchmark, since it does the work that the
published code does in the form in which its authors run it. Models of other forms than the published one are drawn
with by the same loop: without a cache under causal attention, and a code at a time.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.model.coefficients import COEFFICIENTS
from runtime.model.latents import unpatchify
from runtime.sampling.plan import Plan
from runtime.sampling.samplers import CoefficientTable
from training.models.mar import MAR
from training.models.vq_head import sample_codes

StageTimes = dict[str, float]


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
    """Latents [B, c, H, W] for labels [B], generation order [B, L] and noise [T + 1, B, L, D].

    Runs in the dtype and on the device of the model, which must be in evaluation mode. `times`
    collects the seconds spent in `backbone` and `head`.
    """
    reference = model.z_proj.weight
    batch, length = order.shape
    tokens = torch.zeros(batch, length, model.config.token_channels, dtype=reference.dtype, device=reference.device)
    noise_at = torch.from_numpy(noise).to(reference)  # [T + 1, B, L, D]
    rank = torch.from_numpy(np.argsort(order, axis=1)).to(reference.device)  # [B, L]: when a position is generated
    known_labels = torch.from_numpy(labels).to(reference.device)
    no_labels = torch.full_like(known_labels, model.config.class_num)
    guided = any(iteration.guided for iteration in plan.iterations)
    ordered = torch.from_numpy(order).to(reference.device)  # [B, L]
    causal = model.config.attention == "causal"
    backbone = _causal if causal else _backbone
    head = _drawn_codes if model.config.head == "vq" else _diffuse

    for iteration in plan.iterations:
        started = time.perf_counter()
        masked = rank >= iteration.known  # [B, L]
        now = masked & (rank < iteration.known + iteration.count)
        told = ordered if causal else masked
        if guided:
            both = torch.cat([known_labels, no_labels])
            z = backbone(model, tokens.repeat(2, 1, 1), told.repeat(2, 1), both)
            z = z[now.repeat(2, 1)]  # [2 N, C], the conditional half first
        else:
            z = backbone(model, tokens, told, known_labels)[now]
        between = time.perf_counter()
        tokens[now] = head(model, z, noise_at[:, now], iteration.table, iteration.guidance_scale, guided)
        if times is not None:
            times["backbone"] = times.get("backbone", 0.0) + between - started
            times["head"] = times.get("head", 0.0) + time.perf_counter() - between
    return unpatchify(tokens.cpu().numpy(), model.config.grid, model.config.patch_size)


def training_loss(
    model: MAR, latents: Tensor, labels: Tensor, mask: Tensor, timesteps: Tensor, noise: Tensor
) -> Tensor:
    """The loss of one batch, a scalar: latents [B, c, H, W], labels int64 [B], mask bool [B, L].

    timesteps int64 [R B L] and noise [R B L, D]: the head runs on every token, and the mask is applied
    to what it returns.
    """
    tokens = model.patchify(latents)  # [B, L, D]
    z = _backbone(model, tokens, mask, labels)  # [B, L, C]
    repeats = model.config.diffusion_batch_mul
    target, z = (x.flatten(0, 1).repeat(repeats, 1) for x in (tokens, z))  # [R B L, D] and [R B L, C]
    weight = mask.flatten().repeat(repeats).to(noise.dtype)
    loss = model.diffloss.of(target, timesteps, noise, lambda x: model.diffloss.net(x, timesteps.to(x.dtype), z))
    return (loss * weight).sum() / weight.sum()


def _backbone(model: MAR, tokens: Tensor, masked: Tensor, labels: Tensor) -> Tensor:
    """z for every position, [B, L, C], from tokens [B, L, D] of which those in masked [B, L] are unknown."""
    batch, buffer = len(tokens), model.config.buffer_size
    visible = torch.cat([masked.new_ones(batch, buffer), ~masked], dim=1)  # [B, buffer + L]
    class_embedding = model.class_embedding(labels)[:, None].expand(-1, buffer, -1)
    x = torch.cat([class_embedding, model.z_proj(tokens)], dim=1) + model.encoder_pos_embed_learned
    x = model.z_proj_ln(x)
    x = x[visible].reshape(batch, -1, x.shape[-1])
    for block in model.encoder_blocks:
        x = block(x)
    x = model.decoder_embed(model.encoder_norm(x))
    padded = model.mask_token.to(x.dtype).repeat(batch, visible.shape[1], 1)  # lower than its own under autocast
    padded[visible] = x.reshape(-1, x.shape[-1])
    x = padded + model.decoder_pos_embed_learned
    for block in model.decoder_blocks:
        x = block(x)
    return model.decoder_norm(x)[:, buffer:] + model.diffusion_pos_embed_learned


def _causal(model: MAR, tokens: Tensor, order: Tensor, labels: Tensor) -> Tensor:
    """The same under causal attention, the whole sequence every time: what is unknown yet, nobody before it sees."""
    index = order[..., None]
    z = model.predict_next(tokens.gather(1, index.expand_as(tokens)), order, labels)  # [B, L, C], as generated
    return torch.empty_like(z).scatter_(1, index.expand_as(z), z)


def _drawn_codes(model: MAR, z: Tensor, noise: Tensor, table: CoefficientTable, scale: float, guided: bool) -> Tensor:
    """Tokens [N, D] from z [G N, C] and noise [2, N, D], of which only the first channel of the last is used."""
    temperature = float(table.coefficients[0, COEFFICIENTS.index("noise_scale")])
    return model.diffloss.codebook[sample_codes(model.diffloss.net(z), scale, temperature, noise[1, :, 0])]


def _diffuse(model: MAR, z: Tensor, noise: Tensor, table: CoefficientTable, scale: float, guided: bool) -> Tensor:
    """Tokens [N, D] from z [G N, C] and noise [T + 1, N, D], both guidance halves side by side."""
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
        drawn = noise[1 + step].repeat(2, 1) if guided else noise[1 + step]
        x = mean + coefficient("noise_scale") * torch.exp(0.5 * log_variance) * drawn
    return x.chunk(2)[0] if guided else x

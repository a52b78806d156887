"""Hi-MAR's sampling loop in eager PyTorch, as published: each iteration computes all positions of both guidance halves.

Parity reports and tests compare the engines with it, and the benchmark takes it as baseline.
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
from runtime.sampling.plan import Iteration, Plan
from runtime.sampling.samplers import CoefficientTable
from training.models.himar import Himar
from training.models.reference_loop import StageClock, StageTimes

Observe = Callable[[str, Tensor], None]
"""Is called with the name of an intermediate result, and the result."""


def _ignore(name: str, value: Tensor) -> None:
    """Pass over an intermediate result."""


@torch.inference_mode()
def sample(
    model: Himar,
    labels: NDArray[np.int64],
    plan: Plan,
    order: NDArray[np.int64],
    noise: NDArray[np.floating],
    *,
    times: StageTimes | None = None,
    observe: Observe = _ignore,
) -> NDArray[np.floating]:
    """Generate latents [B, C, h, w], in the dtype of the model.

    Args:
        model: The model, in evaluation mode.
        labels: Classes, int64 [B].
        plan: The iterations of both phases.
        order: The generation order of the small positions, then that of the big ones, int64 [B, P].
        noise: Standard normal by position, [R, B, P, D]: see `runtime.sampling.rng.seeded_noise`.
        times: Where the seconds spent in each stage are added; None for no measurement.
        observe: Is called with `z_small` [G*B, S, C] and `small` [B, S, D] by position after every iteration of phase
            1, with `small_z` [B, S, C] between the phases, and with `z_big` [G*B, L, C] and `big` [B, L, D] in phase 2.
    """
    config, like = model.config, model.z_proj.weight
    count, clock = config.small_tokens, StageClock(times)
    known_labels = torch.from_numpy(labels)
    every = torch.cat([known_labels, torch.full_like(known_labels, config.class_num)])  # [2B]
    noise_at = torch.from_numpy(noise).to(like.dtype)
    small_order, big_order = torch.from_numpy(order[:, :count]), torch.from_numpy(order[:, count:] - count)
    small_z = _sample_small(model, every, plan, small_order, noise_at[:, :, :count], clock, observe)
    observe("small_z", small_z)
    big = _sample_big(model, every, plan, big_order, noise_at[:, :, count:], small_z, clock, observe)
    return unpatchify(big.numpy(), config.grid_shape, config.patch_size)


def _sample_small(
    model: Himar, labels: Tensor, plan: Plan, order: Tensor, noise: Tensor, clock: StageClock, observe: Observe
) -> Tensor:
    """Draw the small grid; return the conditional z of each token, by position, [B, S, C].

    Args:
        model: The model.
        labels: The labels of both guidance halves, [2B].
        plan: The iterations.
        order: The generation order [B, S].
        noise: By position, [R, B, S, D].
        clock: Counts the seconds of the stages.
        observe: As of `sample`.
    """
    config, batch, count = model.config, len(order), order.shape[1]
    tokens, small_z = (noise.new_zeros(batch, count, size) for size in (config.token_channels, config.z_channels))
    for iteration in plan.phase(0):
        halves = 2 if iteration.guided else 1
        visible, unknown = order[:, : iteration.known], order[:, iteration.known :]
        known = _rows_at(tokens, visible).repeat(halves, 1, 1)
        here = labels[: halves * batch]
        z = model.predict_small(known, visible.repeat(halves, 1), unknown.repeat(halves, 1), here)  # [G*B, S - V, C]
        observe("z_small", _by_position(z, unknown.repeat(halves, 1), count))
        now, z = unknown[:, : iteration.count], z[:, : iteration.count]
        small_z = _written(small_z, now, z[:batch])
        clock.mark("backbone")
        rows = _rows_of(_noise_of(noise, iteration), now)
        x = _draw_small(model, z.flatten(0, 1), rows.flatten(1, 2), iteration)
        tokens = _written(tokens, now, x.unflatten(0, now.shape))
        observe("small", tokens)
        clock.mark("head")
    return small_z


def _sample_big(
    model: Himar,
    labels: Tensor,
    plan: Plan,
    order: Tensor,
    noise: Tensor,
    small_z: Tensor,
    clock: StageClock,
    observe: Observe,
) -> Tensor:
    """Draw the full grid from z of the small tokens [B, S, C]; return its tokens by position, [B, L, D].

    The other arguments are those of `_sample_small`, for L positions.
    """
    batch, length = order.shape
    content = model.cond_z_proj(small_z)  # [B, S, C]
    big = noise.new_zeros(batch, length, model.config.token_channels)
    for iteration in plan.phase(1):
        halves = 2 if iteration.guided else 1
        visible, unknown = order[:, : iteration.known], order[:, iteration.known :]
        known = _rows_at(big, visible).repeat(halves, 1, 1)
        z = model.predict_big(
            content.repeat(halves, 1, 1),
            known,
            visible.repeat(halves, 1),
            unknown.repeat(halves, 1),
            labels[: halves * batch],
        )
        z = _by_position(z, order.repeat(halves, 1), length)  # [G*B, L, C]
        observe("z_big", z)
        clock.mark("backbone")
        x = _draw_big(model, z, _noise_of(noise, iteration), big, visible, iteration)
        now = unknown[:, : iteration.count]
        big = _written(big, now, _rows_at(x, now))
        observe("big", big)
        clock.mark("DiT")
    return big


def sample_request(
    model: Himar,
    request: Mapping[str, Any],
    plan: Plan,
    order: NDArray[np.int64],
    noise: NDArray[np.floating],
    times: StageTimes | None = None,
) -> NDArray[np.floating]:
    """Generate the latents of the classes of a request; see `sample` for the other arguments."""
    return sample(model, np.array(request["labels"], np.int64), plan, order, noise, times=times)


def _noise_of(noise: Tensor, iteration: Iteration) -> Tensor:
    """Return the rows of noise [T + 1, B, n, D] that the chain of an iteration reads."""
    return noise[iteration.noise_start : iteration.noise_start + iteration.table.steps + 1]


def _rows_of(noise: Tensor, places: Tensor) -> Tensor:
    """Return noise [T + 1, B, K, D] at `places` [B, K]."""
    index = places[None, ..., None].expand(len(noise), -1, -1, noise.shape[-1])
    return torch.gather(noise, 2, index)


def _rows_at(values: Tensor, places: Tensor) -> Tensor:
    """Return values [B, n, E] at `places` [B, K]: [B, K, E]."""
    return torch.gather(values, 1, places[..., None].expand(-1, -1, values.shape[-1]))


def _written(values: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Return values [B, n, E] with rows [B, K, E] at `places` [B, K]."""
    return values.scatter(1, places[..., None].expand_as(rows), rows)


def _by_position(rows: Tensor, places: Tensor, length: int) -> Tensor:
    """Return rows [B, K, E] of the positions `places` [B, K] by position, [B, n, E]; zeros elsewhere."""
    return _written(rows.new_zeros(len(rows), length, rows.shape[-1]), places, rows)


def _draw_small(model: Himar, z: Tensor, noise: Tensor, iteration: Iteration) -> Tensor:
    """Denoise tokens [N, D] of the small grid from z [G*N, C] and noise [T + 1, N, D] with MAR's head."""
    x, x0 = noise[0], torch.zeros_like(noise[0])
    halves = len(z) // len(x)
    for step in range(iteration.table.steps):
        timesteps = torch.full((len(z),), float(iteration.table.timesteps[step]), dtype=x.dtype)
        outputs = model.diffloss.net(x.repeat(halves, 1), timesteps, z).unflatten(0, (halves, -1))
        eps, v = outputs.chunk(2, dim=-1)  # [G, N, D] each
        guided = eps[-1] + iteration.guidance_scale * (eps[0] - eps[-1])
        x, x0 = _next(iteration.table, step, x, x0, guided, noise[1 + step], v[0])
    return x


def _draw_big(model: Himar, z: Tensor, noise: Tensor, tokens: Tensor, visible: Tensor, iteration: Iteration) -> Tensor:
    """Denoise the whole grid [B, L, D] from z [G*B, L, C] and noise [T + 1, B, L, D].

    At every step the known tokens are put in again, at the noise level of the step and with the first noise.
    """
    x, x0 = noise[0], torch.zeros_like(noise[0])
    halves, table = len(z) // len(x), iteration.table
    for step in range(table.steps):
        row = _row(table, step)
        level = 1 / row["x0_from_x"]  # sqrt(alpha); the noise level sqrt(1 - alpha) follows from the next column
        renewed = level * _rows_at(tokens, visible) - level * row["x0_from_eps"] * _rows_at(noise[0], visible)
        x = _written(x, visible, renewed)
        timesteps = torch.full((len(z),), float(table.timesteps[step]), dtype=x.dtype)
        eps = model.cond_diffloss.net(x.repeat(halves, 1, 1), timesteps, z).unflatten(0, (halves, -1))
        guided = eps[-1] + iteration.guidance_scale * (eps[0] - eps[-1])
        x, x0 = _next(table, step, x, x0, guided, noise[1 + step])
    return x


def _row(table: CoefficientTable, step: int) -> dict[str, float]:
    return dict(zip(COEFFICIENTS, table.coefficients[step].tolist(), strict=True))


def _next(
    table: CoefficientTable,
    step: int,
    x: Tensor,
    previous_x0: Tensor,
    eps: Tensor,
    noise: Tensor,
    v: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the next x and x0 by a row of the sampler's table; see `runtime.sampling.samplers`."""
    row = _row(table, step)
    x0 = row["x0_from_x"] * x + row["x0_from_eps"] * eps
    fresh = row["noise_scale"] * noise
    if v is not None:
        fraction = (v + 1) / 2
        log_variance = fraction * row["log_variance_high"] + (1 - fraction) * row["log_variance_low"]
        fresh = fresh * torch.exp(0.5 * log_variance)
    return row["x_from_x"] * x + row["x_from_x0"] * x0 + row["x_from_previous_x0"] * previous_x0 + fresh, x0

"""UVA's policy in eager PyTorch, as published: one pass of the transformers, then the whole head in every step.

Parity reports and tests compare the engines with it, and the benchmark uses it as baseline.
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
from runtime.sampling.samplers import CoefficientTable
from training.models.uva import Uva

StageTimes = dict[str, float]
"""Seconds spent in each stage, by name."""


@torch.inference_mode()
def sample_actions(
    model: Uva,
    observation: Mapping[str, NDArray[np.floating]],
    table: CoefficientTable,
    noise: NDArray[np.floating],
    times: StageTimes | None = None,
) -> NDArray[np.floating]:
    """Return normalized actions [B, 16, A], in the dtype of the model.

    Args:
        model: The model, in evaluation mode.
        observation: `latents`, and `text` and `state` where the model has them; see `training.models.uva.Uva.embed`.
        table: The chain.
        noise: Standard normal, [T + 1, B, 16, A].
        times: Where the seconds spent in `backbone` and `head` are added; None for no measurement.
    """
    dtype = model.z_proj_cond.weight.dtype
    inputs = {name: torch.from_numpy(np.asarray(array)).to(dtype) for name, array in observation.items()}
    started = time.perf_counter()
    rows = model.rows(inputs["latents"], inputs.get("text"), inputs.get("state"))  # [B, 16, C]
    between = time.perf_counter()
    x = denoise(model, rows.flatten(0, 1), torch.from_numpy(noise).to(dtype).flatten(1, 2), table)
    if times is not None:
        times["backbone"] = times.get("backbone", 0.0) + between - started
        times["head"] = times.get("head", 0.0) + time.perf_counter() - between
    actions: NDArray[np.floating] = x.unflatten(0, rows.shape[:2]).numpy()
    return actions


def denoise(model: Uva, rows: Tensor, noise: Tensor, table: CoefficientTable) -> Tensor:
    """Denoise actions [N, A] from the rows of the head [N, C] and noise [T + 1, N, A]."""
    x, x0 = noise[0], torch.zeros_like(noise[0])
    for step in range(table.steps):
        timesteps = torch.full((len(x),), float(table.timesteps[step]), dtype=x.dtype)
        eps, v = model.diffactloss.net(x, timesteps, rows).chunk(2, dim=-1)
        row = dict(zip(COEFFICIENTS, table.coefficients[step].tolist(), strict=True))
        previous_x0, x0 = x0, (row["x0_from_x"] * x + row["x0_from_eps"] * eps).clamp(row["x0_low"], row["x0_high"])
        fraction = (v + 1) / 2
        log_variance = fraction * row["log_variance_high"] + (1 - fraction) * row["log_variance_low"]
        mean = row["x_from_x"] * x + row["x_from_x0"] * x0 + row["x_from_previous_x0"] * previous_x0
        x = mean + row["noise_scale"] * torch.exp(0.5 * log_variance) * noise[1 + step]
    return x


def sample_request(
    model: Uva, request: Mapping[str, Any], plan: Plan, order: NDArray[np.int64], noise: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Return the normalized actions of a request as latents [B, A, 16, 1]; the order has no effect."""
    actions = sample_actions(model, request["observation"], plan.iterations[0].table, noise)
    return unpatchify(actions, model.config.grid_shape, model.config.patch_size)

"""A head trained apart from its backbone, on contexts that are there already."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from runtime.errors import MarError
from training.models.diffusion_head import HeadMLP
from training.models.numerics import autocast

Progress = Callable[[int, float], None]  # (steps done, loss, smoothed)
_WARMUP = 100
_SMOOTHED_OVER = 100  # steps


@dataclasses.dataclass(frozen=True)
class HeadTraining:
    """How long, and how fast: `batch_size` rows a step; the learning rate falls to zero along a cosine."""

    steps: int
    batch_size: int = 1024
    learning_rate: float = 1e-3
    seed: int = 0


def train_head(
    net: HeadMLP,
    rows: int,
    loss: Callable[[Tensor, np.random.Generator], Tensor],
    training: HeadTraining,
    progress: Progress = lambda step, loss: None,
) -> None:
    """Train `net` by `loss`, the mean over those of `rows` rows whose indices [n] it is given, and random numbers.

    Since the rate falls to zero, the weights need no average. Raises `MarError` when the loss is not finite.
    """
    net.train().requires_grad_()
    optimizer = torch.optim.AdamW(net.parameters(), lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    random, smoothed = np.random.default_rng(training.seed), math.nan
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(training, step)
        indices = torch.from_numpy(random.integers(0, rows, training.batch_size))
        with autocast("bf16", indices.device):
            value = loss(indices, random)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        last = value.item()
        if not math.isfinite(last):
            raise MarError(f"the loss is {last} at step {step + 1}; try a lower --learning-rate")
        smoothed = last if math.isnan(smoothed) else smoothed + (last - smoothed) / min(step + 1, _SMOOTHED_OVER)
        progress(step + 1, smoothed)
    net.eval()


def _learning_rate(training: HeadTraining, step: int) -> float:
    rising = min(1.0, (step + 1) / min(_WARMUP, training.steps))
    return training.learning_rate * rising * (1 + math.cos(math.pi * step / training.steps)) / 2

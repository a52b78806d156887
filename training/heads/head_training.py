"""Training of a head's network alone, on rows of a `HeadDataset`."""

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

Progress = Callable[[int, float], None]
"""Is called after each step with the steps done and the smoothed loss."""

_WARMUP = 100  # steps
_SMOOTHED_OVER = 100  # steps


@dataclasses.dataclass(frozen=True)
class HeadTrainConfig:
    """The settings of the training of a head.

    Attributes:
        steps: The number of training steps.
        batch_size: Rows (tokens) per step.
        learning_rate: The largest learning rate, after 100 steps of warm-up; it falls to zero along a cosine.
        seed: The seed of the batches and of the noise.
    """

    steps: int
    batch_size: int = 1024
    learning_rate: float = 1e-3
    seed: int = 0


def train_head(
    net: HeadMLP,
    rows: int,
    loss: Callable[[Tensor, np.random.Generator], Tensor],
    config: HeadTrainConfig,
    progress: Progress = lambda step, loss: None,
) -> None:
    """Train `net` in place with AdamW. The learning rate ends at zero, so no moving average of the weights is needed.

    Args:
        net: The network of the head.
        rows: The number of rows of the dataset.
        loss: Computes the mean loss [] of the rows at indices int64 [B], with random numbers from a generator.
        config: The settings.
        progress: Is called after each step.

    Raises:
        MarError: The loss is not finite.
    """
    net.train().requires_grad_()
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    random, smoothed = np.random.default_rng(config.seed), math.nan
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(config, step)
        indices = torch.from_numpy(random.integers(0, rows, config.batch_size))
        with autocast("bf16", indices.device):
            batch_loss = loss(indices, random)
        optimizer.zero_grad()
        batch_loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        last = batch_loss.item()
        if not math.isfinite(last):
            raise MarError(f"the loss is {last} at step {step + 1}; try a lower --learning-rate")
        smoothed = last if math.isnan(smoothed) else smoothed + (last - smoothed) / min(step + 1, _SMOOTHED_OVER)
        progress(step + 1, smoothed)
    net.eval()


def _learning_rate(config: HeadTrainConfig, step: int) -> float:
    """The learning rate of the step `step`, counted from 0."""
    warmup = min(1.0, (step + 1) / min(_WARMUP, config.steps))
    return config.learning_rate * warmup * (1 + math.cos(math.pi * step / config.steps)) / 2

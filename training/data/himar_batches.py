"""Batches of the training of a Hi-MAR: what both of its losses need."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from runtime.errors import ConfigError
from runtime.model.himar_config import HimarConfig
from runtime.sampling.noise_schedule import TRAIN_STEPS
from training.data.draws import draw_mask_ratio, example_stream, step_stream
from training.data.latent_dataset import readable_latent
from training.data.loader import StepParts
from training.models.himar import BigDraws, SmallDraws

_ALONE = 0.1  # the share of images whose full grid is trained without the low-resolution one


class HimarBatch(NamedTuple):
    """The arguments of `Himar.forward`, in its order."""

    latents: Tensor
    """Float32 [B, c, H, W]."""
    labels: Tensor
    """Int64 [B]; class_num stands for no class."""
    of_small: SmallDraws
    """The random numbers of phase 1."""
    of_big: BigDraws
    """Those of phase 2."""

    def to(self, device: torch.device) -> HimarBatch:
        """Return a copy on `device`."""
        small, big = (
            [tensor.to(device, non_blocking=True) for tensor in part] for part in (self.of_small, self.of_big)
        )
        return HimarBatch(self.latents.to(device), self.labels.to(device), SmallDraws(*small), BigDraws(*big))


@dataclasses.dataclass(frozen=True)
class HimarBatches(StepParts):
    """The micro-batches of the training of a Hi-MAR; `model` is its `HimarConfig`.

    The low-resolution image is made from the pixels of the full one, so a cache of latents cannot be trained on.
    """

    def __post_init__(self) -> None:
        if self.dataset.tokenizer != "pixel":
            raise ConfigError(
                "a Hi-MAR is trained on images of pixels, because cached latents have no low-resolution image; "
                "train a MAR on them"
            )

    def _collate(self, step: int, places: range, examples: list[int]) -> HimarBatch:
        config: HimarConfig = self.model
        of_step = step_stream(self.training.seed, step)
        small, big = config.small_tokens, config.tokens
        masked = min(small, max(1, math.ceil(small * draw_mask_ratio(config.mask_ratio_min, of_step))))
        big_masked = max(1, math.ceil(big * math.cos(math.pi / 2 * of_step.random())))
        latents, labels, columns = [], [], []
        for number, place in enumerate(places):
            stream = example_stream(self.training.seed, step, place)
            flip = self._flip(stream)
            order, dropped = stream.permutation(small), bool(stream.random() < config.label_drop_prob)
            rows = (config.loss_repeats, masked)
            columns.append(
                (
                    order,
                    stream.integers(0, TRAIN_STEPS, rows),
                    stream.standard_normal((*rows, config.token_channels), np.float32),
                    stream.permutation(big),
                    bool(stream.random() < _ALONE),
                    int(stream.integers(0, TRAIN_STEPS)),
                    stream.standard_normal((big, config.token_channels), np.float32),
                )
            )
            examples[number], latent = readable_latent(self.dataset, examples[number], flip, stream)
            latents.append(latent)
            labels.append(config.class_num if dropped else int(self.dataset.labels[examples[number]]))
        orders, timesteps, noise, big_order, alone, big_timesteps, big_noise = zip(*columns, strict=True)
        return HimarBatch(
            torch.from_numpy(np.stack(latents)),
            torch.tensor(labels),
            SmallDraws(
                torch.from_numpy(np.stack(orders)),
                torch.from_numpy(np.stack(timesteps, axis=1)),
                torch.from_numpy(np.stack(noise, axis=1)),
            ),
            BigDraws(
                torch.from_numpy(np.stack(big_order)),
                torch.tensor(big_masked),
                torch.tensor(alone),
                torch.tensor(big_timesteps),
                torch.from_numpy(np.stack(big_noise)),
            ),
        )

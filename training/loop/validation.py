"""The loss on images that are held out of training."""

from __future__ import annotations

import dataclasses
import functools
import math

import torch

from training.config import RunConfig
from training.data.latent_dataset import LatentDataset
from training.data.loader import MicroBatch, batches_of
from training.models.mar import MAR
from training.models.numerics import autocast

_MOST_EXAMPLES = 256
_FEWEST_BATCHES = 4  # each batch has a mask ratio of its own


class ValidationLoss:
    """The mean loss on held-out images, with the same masks and noise every time, so that values can be compared."""

    def __init__(self, held_out: LatentDataset, config: RunConfig) -> None:
        """Choose up to 256 of the held-out images, or each of a few several times."""
        size = min(config.training.batch_size, len(held_out.labels))
        training = dataclasses.replace(config.training, batch_size=size, accumulate=1, flip=False)
        self._batches = batches_of(config.model)(held_out, config.model, training, rank=0, processes=1)
        self._count = max(_FEWEST_BATCHES, math.ceil(min(_MOST_EXAMPLES, len(held_out.labels)) / size))

    @functools.cached_property
    def batches(self) -> list[MicroBatch]:
        """The batches, read once."""
        return [self._batches[number] for number in range(self._count)]

    @torch.inference_mode()
    def __call__(self, model: MAR, device: torch.device) -> float:
        """Return the mean loss of a model in evaluation mode on `device`."""
        losses = []
        for part in self.batches:
            with autocast(self._batches.training.precision, device):
                losses.append(model(*part.batch.to(device)))
        return torch.stack(losses).mean().item()

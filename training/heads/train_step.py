"""The training step of a head alone, on the rows of a `HeadDataset`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from training.data.loader import MicroBatch
from training.distributed import Processes
from training.heads.config import HeadTraining
from training.heads.dataset import HeadDataset
from training.loop.optimizer_step import TrainStep
from training.models.mar import MAR
from training.models.numerics import autocast

Loss = Callable[[Tensor, np.random.Generator], Tensor]
"""Computes the mean loss [] of the rows at indices int64 [B], with random numbers from a generator."""

_ROWS, _LOSS = range(2)  # the streams of random numbers of a step


class _Head(nn.Module):
    """The head of a model, whose parameters have the names that they have in the model."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.diffloss = model.diffloss


class HeadTrainStep(TrainStep):
    """The head of a model in training by AdamW. The learning rate ends at zero, so no average of weights is needed.

    Args:
        model: The model; its head is trained in place.
        loss: The loss of the head.
        config: The settings.
        processes: This process alone.

    Attributes:
        mar: The model.
    """

    def __init__(self, model: MAR, loss: Loss, config: HeadTraining, processes: Processes) -> None:
        head = _Head(model).requires_grad_()
        optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
        super().__init__(head, head, optimizer, config, processes)
        self.mar, self._loss = model, loss
        trained = {name for name, _ in head.named_parameters()}
        self.frozen = {name: tensor for name, tensor in model.state_dict().items() if name not in trained}

    def gradients(self, step: int, batches: Iterable[MicroBatch]) -> tuple[Tensor, list[Tensor], dict[str, float]]:
        """Compute the gradient of the mean loss, see `TrainStep.gradients`; the loss has no named terms."""
        losses, examples = [], []
        for rows, images, _ in batches:
            with self.phase("forward"), autocast(self.config.precision, self.processes.device):
                loss = self._loss(cast("Tensor", rows), _stream(self.config.seed, step, _LOSS))
            with self.phase("backward"):
                loss.backward()
            losses.append(loss.detach())
            examples.append(images)
        return torch.stack(losses), examples, {}


def row_batches(dataset: HeadDataset, config: HeadTraining, step: int) -> Iterator[MicroBatch]:
    """Yield the batches of a training from step number `step` on: the indices of random rows, int64 [B].

    The examples of a batch are the images that its rows are of.
    """
    while True:
        rows = torch.from_numpy(_stream(config.seed, step, _ROWS).integers(0, len(dataset), config.batch_size))
        # The loss of a head takes indices, and not one of the batches of images that the type names.
        yield MicroBatch(cast("Any", rows), dataset.image[rows])
        step += 1


def _stream(seed: int, step: int, use: int) -> np.random.Generator:
    return np.random.default_rng([seed, step, use])

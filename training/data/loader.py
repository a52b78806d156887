"""Batches for a step: this process's part of it, drawn and read ahead of the step by other processes."""

from __future__ import annotations

import abc
import dataclasses
import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.config import StepConfig
from training.data.draws import batch_examples, draw_example, example_stream, masked_tokens
from training.data.latent_dataset import LatentDataset, readable_latent
from training.preemption import SIGNALS


class Batch(NamedTuple):
    """What `MAR.forward` takes, in its order."""

    latents: Tensor  # [B, c, H, W]
    labels: Tensor  # int64 [B]
    order: Tensor  # int64 [B, L]
    timesteps: Tensor  # [R, B, K]
    noise: Tensor  # [R, B, K, D]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class ImageBatch(NamedTuple):
    """What an autoencoder is trained with."""

    images: Tensor  # [B, 3, H, W], of -1..1
    noise: Tensor  # [B, C, h, w], of their latents

    def to(self, device: torch.device) -> ImageBatch:
        return ImageBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


class MicroBatch(NamedTuple):
    """A batch, the examples [B] of the dataset that are in it, and what was found wrong with the data on the way."""

    batch: Batch | ImageBatch
    examples: Tensor
    warnings: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class StepParts(Dataset[MicroBatch], abc.ABC):
    """Micro-batch `number` of this process: step number // accumulate, part number % accumulate of it."""

    source: LatentDataset
    model: Any  # the config of what is trained
    training: StepConfig
    rank: int
    processes: int

    def __getitem__(self, number: int) -> MicroBatch:
        training = self.training
        step, part = divmod(number, training.accumulate)
        size = training.batch_size // self.processes // training.accumulate
        first = (self.rank * training.accumulate + part) * size
        examples = batch_examples(len(self.source.labels), training.batch_size, step, training.seed)
        chosen = examples[first : first + size].tolist()
        batch = self._collected(step, range(first, first + size), chosen)
        warnings = self.source.warnings.copy()
        self.source.warnings.clear()
        return MicroBatch(batch, torch.tensor(chosen), warnings)

    @abc.abstractmethod
    def _collected(self, step: int, places: range, examples: list[int]) -> Batch | ImageBatch:
        """The batch of `examples` at `places` of a step; those that cannot be read are replaced in the list."""

    def _flip(self, stream: np.random.Generator) -> bool:
        """Whether an example is mirrored: the first thing that is drawn for it."""
        return bool(stream.random() < 0.5) and self.training.flip


class MicroBatches(StepParts):
    """Those of a MAR; `model` is its `ModelConfig`."""

    def _collected(self, step: int, places: range, examples: list[int]) -> Batch:
        masked = masked_tokens(self.model, self.training.seed, step)
        latents, labels, draws = [], [], []
        for number, place in enumerate(places):
            stream = example_stream(self.training.seed, step, place)
            flip = self._flip(stream)
            drawn = draw_example(self.model, masked, stream)
            examples[number], latent = readable_latent(self.source, examples[number], flip, stream)
            latents.append(latent)
            labels.append(self.model.class_num if drawn.dropped else int(self.source.labels[examples[number]]))
            draws.append(drawn)
        return Batch(
            torch.from_numpy(np.stack(latents)),
            torch.tensor(labels),
            torch.from_numpy(np.stack([drawn.order for drawn in draws])),
            torch.from_numpy(np.stack([drawn.timesteps for drawn in draws], axis=1)),
            torch.from_numpy(np.stack([drawn.noise for drawn in draws], axis=1)),
        )


class ImageBatches(StepParts):
    """Those of an autoencoder, whose latents have the form `model`: (channels, side)."""

    def _collected(self, step: int, places: range, examples: list[int]) -> ImageBatch:
        channels, side = self.model
        images, noise = [], []
        for number, place in enumerate(places):
            stream = example_stream(self.training.seed, step, place)
            examples[number], image = readable_latent(self.source, examples[number], self._flip(stream), stream)
            images.append(image)
            noise.append(stream.standard_normal((channels, side, side), np.float32))
        return ImageBatch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(noise)))


def micro_batches(batches: StepParts, step: int, device: torch.device) -> Iterator[MicroBatch]:
    """The micro-batches from `step` to the last step of the config, read ahead by `workers` processes."""
    training = batches.training
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(step * training.accumulate, training.steps * training.accumulate),
        num_workers=training.workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or it would draw from the global one, which is that of dropout
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    for loaded in loader:
        yield loaded._replace(batch=loaded.batch.to(device))


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A signal to a job goes to all of its processes: those that read are still needed for the step under way."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)

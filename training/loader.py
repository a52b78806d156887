"""Batches for a step: this process's part of it, drawn and read ahead of the step by other processes."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from runtime.config import ModelConfig
from training.config import TrainConfig
from training.draws import batch_examples, draw_example, example_stream, masked_tokens
from training.source import Source


class Batch(NamedTuple):
    """What `MAR.forward` takes, in its order."""

    latents: Tensor  # [B, c, H, W]
    labels: Tensor  # int64 [B]
    order: Tensor  # int64 [B, L]
    timesteps: Tensor  # int64 [R, B, K]
    noise: Tensor  # [R, B, K, D]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class MicroBatch(NamedTuple):
    """A batch, and the examples [B] of the dataset that are in it."""

    batch: Batch
    examples: Tensor


@dataclasses.dataclass(frozen=True)
class MicroBatches(Dataset[MicroBatch]):
    """Micro-batch `number` of this process: step number // accumulate, part number % accumulate of it."""

    source: Source
    model: ModelConfig
    training: TrainConfig
    rank: int
    processes: int

    def __getitem__(self, number: int) -> MicroBatch:
        training = self.training
        step, part = divmod(number, training.accumulate)
        size = training.batch_size // self.processes // training.accumulate
        first = (self.rank * training.accumulate + part) * size
        examples = batch_examples(len(self.source.labels), training.batch_size, step, training.seed)
        return self._collected(step, range(first, first + size), examples[first : first + size].tolist())

    def _collected(self, step: int, places: range, examples: list[int]) -> MicroBatch:
        masked = masked_tokens(self.model, self.training.seed, step)
        latents, labels, draws = [], [], []
        for place, example in zip(places, examples, strict=True):
            stream = example_stream(self.training.seed, step, place)
            flip = bool(stream.random() < 0.5) and self.training.flip
            drawn = draw_example(self.model, masked, stream)
            latents.append(self.source.latent(example, flip, stream))
            labels.append(self.model.class_num if drawn.dropped else int(self.source.labels[example]))
            draws.append(drawn)
        batch = Batch(
            torch.from_numpy(np.stack(latents)),
            torch.tensor(labels),
            torch.from_numpy(np.stack([drawn.order for drawn in draws])),
            torch.from_numpy(np.stack([drawn.timesteps for drawn in draws], axis=1)),
            torch.from_numpy(np.stack([drawn.noise for drawn in draws], axis=1)),
        )
        return MicroBatch(batch, torch.tensor(examples))


def micro_batches(batches: MicroBatches, step: int, device: torch.device) -> Iterator[MicroBatch]:
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
        yield MicroBatch(loaded.batch.to(device), loaded.examples)


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A job's SIGTERM goes to all of its processes: those that read are still needed for the step that is under way."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

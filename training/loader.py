"""Batches for a step: this process's part of it, drawn and read ahead of the step by other processes."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from runtime.config import ModelConfig
from runtime.errors import DataError
from training.config import TrainConfig
from training.data import BadPictureError
from training.draws import batch_examples, draw_example, example_stream, masked_tokens
from training.source import Source

_MOST_UNREADABLE_IN_A_ROW = 100  # more are no bad pictures but a disk that is gone


class Batch(NamedTuple):
    """What `MAR.forward` takes, in its order."""

    latents: Tensor  # [B, c, H, W]
    labels: Tensor  # int64 [B]
    order: Tensor  # int64 [B, L]
    timesteps: Tensor  # [R, B, K]
    noise: Tensor  # [R, B, K, D]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class MicroBatch(NamedTuple):
    """A batch, the examples [B] of the dataset that are in it, and what was found wrong with the data on the way."""

    batch: Batch
    examples: Tensor
    complaints: Sequence[str] = ()


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
        for number, place in enumerate(places):
            stream = example_stream(self.training.seed, step, place)
            flip = bool(stream.random() < 0.5) and self.training.flip
            drawn = draw_example(self.model, masked, stream)
            examples[number], latent = self._readable(examples[number], flip, stream)
            latents.append(latent)
            labels.append(self.model.class_num if drawn.dropped else int(self.source.labels[examples[number]]))
            draws.append(drawn)
        batch = Batch(
            torch.from_numpy(np.stack(latents)),
            torch.tensor(labels),
            torch.from_numpy(np.stack([drawn.order for drawn in draws])),
            torch.from_numpy(np.stack([drawn.timesteps for drawn in draws], axis=1)),
            torch.from_numpy(np.stack([drawn.noise for drawn in draws], axis=1)),
        )
        complaints = self.source.complaints.copy()
        self.source.complaints.clear()
        return MicroBatch(batch, torch.tensor(examples), complaints)

    def _readable(self, example: int, flip: bool, stream: np.random.Generator) -> tuple[int, NDArray[np.float32]]:
        """The latents of `example`, or of the next one after it that can be read, and which it is."""
        for _ in range(_MOST_UNREADABLE_IN_A_ROW):
            try:
                return example, self.source.latent(example, flip, stream)
            except BadPictureError as error:
                self.source.complaints.append(str(error))
                example = (example + 1) % len(self.source.labels)
        raise DataError(
            f"{_MOST_UNREADABLE_IN_A_ROW} pictures in a row cannot be read, the last one {self.source.complaints[-1]}"
        )


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
        yield loaded._replace(batch=loaded.batch.to(device))


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A job's SIGTERM goes to all of its processes: those that read are still needed for the step that is under way."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

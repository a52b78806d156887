"""Batches of a training step: this process's part of each, and worker processes that read ahead."""

from __future__ import annotations

import abc
import dataclasses
import pathlib
import resource
import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from runtime.checks import pluralize
from runtime.errors import ConfigError
from runtime.model.families import family_of, imported
from runtime.model.family_config import FamilyConfig
from training.config import StepConfig
from training.data.draws import batch_examples, draw_example, example_stream, masked_tokens
from training.data.latent_dataset import LatentDataset, readable_latent
from training.preemption import SIGNALS

# Batches come through shared memory, with a descriptor for each tensor of the batches that are read ahead.
_DESCRIPTORS_OF_A_WORKER, _SPARE_DESCRIPTORS = 24, 40


class Batch(NamedTuple):
    """The arguments of `MAR.forward`, in its order."""

    latents: Tensor
    """Float32 [B, c, H, W]."""
    labels: Tensor
    """Int64 [B]; class_num stands for no class."""
    order: Tensor
    """The generation order of the positions, int64 [B, L]."""
    timesteps: Tensor
    """Int64, or float32 for a flow head, [Q, B, K]."""
    noise: Tensor
    """Float32 [Q, B, K, D]."""

    def to(self, device: torch.device) -> Batch:
        """Return a copy on `device`."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class ImageBatch(NamedTuple):
    """Images to train an autoencoder on, and the noise of their latents."""

    images: Tensor
    """Float32 [B, 3, H, W] in -1..1."""
    noise: Tensor
    """Standard normal, float32 [B, C, h, w]."""

    def to(self, device: torch.device) -> ImageBatch:
        """Return a copy on `device`."""
        return ImageBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


class MicroBatch(NamedTuple):
    """One micro-batch of one process."""

    batch: Any
    """The tensors to train on: a named tuple, the arguments of the model, with `to`."""
    examples: Tensor
    """The indices of the examples in the dataset, int64 [B]."""
    warnings: Sequence[str] = ()
    """One line for each defect of the data that was met while the batch was read."""


@dataclasses.dataclass(frozen=True)
class StepParts(Dataset[MicroBatch], abc.ABC):
    """The micro-batches of this process, in order: number n is part n % accumulate of step n // accumulate.

    Attributes:
        dataset: Where examples come from.
        model: What a subclass needs to know of the model.
        training: Batch size, accumulation, seed and flip.
        rank: The rank of this process.
        processes: The number of processes.
    """

    dataset: LatentDataset
    model: Any
    training: StepConfig
    rank: int
    processes: int

    def __getitem__(self, number: int) -> MicroBatch:
        training = self.training
        step, part = divmod(number, training.accumulate)
        size = training.batch_size // self.processes // training.accumulate
        first = (self.rank * training.accumulate + part) * size
        examples = batch_examples(len(self.dataset.labels), training.batch_size, step, training.seed)
        chosen = examples[first : first + size].tolist()
        batch = self._collate(step, range(first, first + size), chosen)
        warnings = self.dataset.warnings.copy()
        self.dataset.warnings.clear()
        return MicroBatch(batch, torch.tensor(chosen), warnings)

    @abc.abstractmethod
    def _collate(self, step: int, places: range, examples: list[int]) -> Any:
        """Return the batch of `examples` at `places` of a step's batch; replace unreadable ones in the list."""

    def _flip(self, stream: np.random.Generator) -> bool:
        """Decide whether an example is mirrored; this takes the first random number of its stream."""
        return bool(stream.random() < 0.5) and self.training.flip


class MicroBatches(StepParts):
    """The micro-batches of the training of a MAR; `model` is its `ModelConfig`."""

    def _collate(self, step: int, places: range, examples: list[int]) -> Batch:
        masked = masked_tokens(self.model, self.training.seed, step)
        latents, labels, draws = [], [], []
        for number, place in enumerate(places):
            stream = example_stream(self.training.seed, step, place)
            flip = self._flip(stream)
            drawn = draw_example(self.model, masked, stream)
            examples[number], latent = readable_latent(self.dataset, examples[number], flip, stream)
            latents.append(latent)
            labels.append(self.model.class_num if drawn.dropped else int(self.dataset.labels[examples[number]]))
            draws.append(drawn)
        return Batch(
            torch.from_numpy(np.stack(latents)),
            torch.tensor(labels),
            torch.from_numpy(np.stack([drawn.order for drawn in draws])),
            torch.from_numpy(np.stack([drawn.timesteps for drawn in draws], axis=1)),
            torch.from_numpy(np.stack([drawn.noise for drawn in draws], axis=1)),
        )


class ImageBatches(StepParts):
    """The micro-batches of the training of an autoencoder; `model` is the shape of its latents: (channels, side)."""

    def _collate(self, step: int, places: range, examples: list[int]) -> ImageBatch:
        channels, side = self.model
        images, noise = [], []
        for number, place in enumerate(places):
            stream = example_stream(self.training.seed, step, place)
            examples[number], image = readable_latent(self.dataset, examples[number], self._flip(stream), stream)
            images.append(image)
            noise.append(stream.standard_normal((channels, side, side), np.float32))
        return ImageBatch(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(noise)))


def batches_of(model: FamilyConfig) -> type[StepParts]:
    """Return the class of the micro-batches of the training of a model."""
    batches: type[StepParts] = imported(family_of(model).batches)
    return batches


def micro_batches(batches: StepParts, step: int, device: torch.device) -> Iterator[MicroBatch]:
    """Yield the micro-batches from a step to the last step of the config; `workers` processes read ahead.

    Args:
        batches: All micro-batches of this process.
        step: The step to begin with.
        device: Where the tensors are copied to.
    """
    training = batches.training
    _check_descriptors(training.workers)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(step * training.accumulate, training.steps * training.accumulate),
        num_workers=training.workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or it would draw from the global one, which is that of dropout
        worker_init_fn=_ignore_signals,
    )
    for loaded in loader:
        yield loaded._replace(batch=loaded.batch.to(device))


def _check_descriptors(workers: int) -> None:
    """Raise the limit of file descriptors to what worker processes need: without one, a batch would never arrive.

    Raises:
        ConfigError: The system allows too few.
    """
    needed = (
        len(list(pathlib.Path("/proc/self/fd").iterdir())) + _SPARE_DESCRIPTORS + workers * _DESCRIPTORS_OF_A_WORKER
    )
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if workers == 0 or limit == resource.RLIM_INFINITY or limit >= needed:
        return
    if highest != resource.RLIM_INFINITY and highest < needed:
        raise ConfigError(
            f"{pluralize(workers, 'worker')} that read data need {needed} file descriptors, and this process may open "
            f"{highest}; raise the limit with ulimit -n, or give fewer --workers"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, highest))


def _ignore_signals(worker: int) -> None:
    """Ignore the signals that stop a run: they reach all its processes, and the step under way needs the workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)

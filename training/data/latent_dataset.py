"""Where a trainer's latents come from, one example at a time: the images themselves, or a cache of latents."""

from __future__ import annotations

import pathlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.checks import pluralize
from runtime.errors import ConfigError, DataError
from runtime.model.config import ModelConfig
from runtime.model.latents import from_uint8, to_uint8
from training.data.datasets import Dataset, UnreadableImageError, check_disk, open_dataset
from training.data.latent_cache import CachedLatents, is_cache


class LatentDataset(Protocol):
    """Latents of one size with a label each. `warnings` as those of a `Dataset`."""

    warnings: list[str]

    tokenizer: str  # one of `runtime.artifact.manifest.TOKENIZERS`
    classes: tuple[str, ...]
    channels: int
    stride: int  # pixels along one side of a latent
    labels: NDArray[np.int64]  # [n]

    def latent(self, index: int, flip: bool, stream: np.random.Generator) -> NDArray[np.float32]:
        """The latents of example `index`, mirrored if `flip`: [channels, H, W]. Raises `UnreadableImageError`."""

    def images(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """What latents [B, channels, H, W] show: [B, height, width, colours]."""

    def save_tokenizer(self, run: pathlib.Path) -> None:
        """Put into the folder of a run what turns latents into images."""

    def name(self, index: int) -> str:
        """Where a person finds example `index`."""


class PixelLatents:
    """Images as their own latents: patches of the image are the tokens."""

    tokenizer, stride = "pixel", 1

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.classes, self.channels, self.labels = dataset.classes, dataset.channels, dataset.labels
        self.warnings = dataset.warnings

    def latent(self, index: int, flip: bool, stream: np.random.Generator) -> NDArray[np.float32]:
        latent = from_uint8(self._dataset.images(np.array([index])))[0]  # [c, H, W]
        return latent[:, :, ::-1] if flip else latent

    def images(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        return to_uint8(latents)

    def save_tokenizer(self, run: pathlib.Path) -> None:
        pass  # pixels need none

    def name(self, index: int) -> str:
        return self._dataset.name(index)


def open_latents(data: pathlib.Path, image_size: int) -> LatentDataset:
    """The latents at `data`, a cache or a dataset whose images are brought to `image_size`. Raises `DataError`."""
    if is_cache(data):
        return CachedLatents(data, image_size)
    return PixelLatents(open_dataset(data, image_size))


def readable_latent(
    source: LatentDataset, example: int, flip: bool, stream: np.random.Generator
) -> tuple[int, NDArray[np.float32]]:
    """The latents of `example`, or of the next one after it that can be read, and which it is.

    Why others cannot be read is among the source's warnings then. Raises `DataError` where a hundred in a row cannot.
    """
    unreadable = 0
    while True:
        try:
            return example, source.latent(example, flip, stream)
        except UnreadableImageError as error:
            source.warnings.append(str(error))
            unreadable += 1
            check_disk(unreadable, len(source.labels), source.warnings[-1])
            example = (example + 1) % len(source.labels)


def check_model_fits(source: LatentDataset, model: ModelConfig, data: str) -> None:
    """Refuse what is at `data` where `model` was made for other latents or classes."""
    if source.stride != model.vae_stride:
        raise ConfigError(
            f"the model works on latents of {model.vae_stride}x{model.vae_stride} pixels each, but those of "
            f"{data} are of {source.stride}x{source.stride}; choose a preset that fits"
        )
    if len(source.classes) != model.class_num or source.channels != model.vae_embed_dim:
        raise DataError(
            f"{data}: {pluralize(len(source.classes), 'class')} of {pluralize(source.channels, 'channel')}, but the model "
            f"was made for {pluralize(model.class_num, 'class')} of {model.vae_embed_dim}"
        )

"""The latents that a MAR is trained on, one example at a time: images as their own latents, or a cache of latents."""

from __future__ import annotations

import functools
import pathlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.checks import pluralize
from runtime.errors import ConfigError, DataError
from runtime.image_files import WHITE, Color
from runtime.model.config import ModelConfig
from runtime.model.latents import from_uint8, to_uint8
from training.data.datasets import ImageDataset, open_dataset
from training.data.latent_cache import CachedLatents, is_cache
from training.data.unreadable_images import TolerantReader


class LatentDataset(Protocol):
    """Labelled latents of one size.

    Attributes:
        notes: What was taken as classes, and what was left out and why, one line each.
        warnings: One line for each defect of the data that training can live with; reading adds to it.
        tokenizer: One of `runtime.artifact.manifest.TOKENIZERS`.
        classes: The names of the classes.
        channels: c, the channels of a latent.
        stride: Pixels along one side of a latent.
        mirrored: Whether it has mirror images.
        labels: The class of each example, int64 [n].
    """

    notes: tuple[str, ...]
    warnings: list[str]

    tokenizer: str
    classes: tuple[str, ...]
    channels: int
    stride: int
    mirrored: bool
    labels: NDArray[np.int64]

    @property
    def content(self) -> str:
        """A text that differs for other images or labels, and is the same for a copy of the files elsewhere."""

    def latent(self, index: int, flip: bool, stream: np.random.Generator) -> NDArray[np.float32]:
        """Return the latents of one example, float32 [C, h, w].

        Args:
            index: The example.
            flip: Whether its image is mirrored.
            stream: The source of the noise where latents are sampled.

        Raises:
            UnreadableImageError: The image cannot be read.
        """

    def images(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Decode latents [B, C, h, w] to images, uint8 [B, height, width, 1 or 3]."""

    def save_tokenizer(self, run: pathlib.Path) -> None:
        """Write the autoencoder that decodes the latents into the folder of a run, where there is one."""

    def name(self, index: int) -> str:
        """Return where a person finds the image of an example."""


class PixelLatents:
    """Images as their own latents, scaled to -1..1: tokens are patches of the image.

    The attributes are those of `LatentDataset`, and `image_dataset`, the images.
    """

    tokenizer, stride, mirrored = "pixel", 1, True

    def __init__(self, dataset: ImageDataset) -> None:
        self.image_dataset = dataset
        self.classes, self.channels, self.labels = dataset.classes, dataset.channels, dataset.labels
        self.notes, self.warnings = dataset.notes, dataset.warnings

    @property
    def content(self) -> str:
        """That of the images."""
        return self.image_dataset.content

    def latent(self, index: int, flip: bool, stream: np.random.Generator) -> NDArray[np.float32]:
        """Return an image, float32 [c, H, W] in -1..1. Raises `UnreadableImageError`."""
        latent = from_uint8(self.image_dataset.images(np.array([index])))[0]
        return latent[:, :, ::-1] if flip else latent

    def images(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return latents [B, C, h, w] as uint8 [B, H, W, c]."""
        return to_uint8(latents)

    def save_tokenizer(self, run: pathlib.Path) -> None:
        """Write nothing: pixels need no autoencoder."""

    def name(self, index: int) -> str:
        """Return where a person finds an image."""
        return self.image_dataset.name(index)


def open_latents(data: pathlib.Path, image_size: int, background: Color = WHITE) -> LatentDataset:
    """Open a cache of latents, or a dataset of images as their own latents.

    Args:
        data: The folder.
        image_size: The side of the images in pixels; a cache must have been made of such images.
        background: The colour under transparent pixels of images. A cache was made with its own.

    Raises:
        DataError: There is neither, or it is damaged.
    """
    if is_cache(data):
        return CachedLatents(data, image_size)
    return PixelLatents(open_dataset(data, image_size, background=background))


def readable_latent(
    dataset: LatentDataset, example: int, flip: bool, stream: np.random.Generator
) -> tuple[int, NDArray[np.float32]]:
    """Read an example, or the next one after it that can be read; the dataset's `warnings` name the others.

    Returns:
        The index of the example that was read, and its latents, float32 [C, h, w].

    Raises:
        DataError: A hundred images in a row, or all of them, cannot be read.
    """
    reader = TolerantReader(len(dataset.labels), dataset.warnings.append)
    while True:
        latent = reader.read(functools.partial(dataset.latent, example, flip, stream))
        if latent is not None:
            return example, latent
        example = (example + 1) % len(dataset.labels)


def check_model_fits(dataset: LatentDataset, model: ModelConfig, data: str) -> None:
    """Check that a model was made for latents and classes like those of `dataset`.

    Raises:
        ConfigError: The stride of the latents differs; the message names the path `data`.
        DataError: The number of classes or channels differs.
    """
    if dataset.stride != model.vae_stride:
        raise ConfigError(
            f"the model works on latents of {model.vae_stride}x{model.vae_stride} pixels each, but those of "
            f"{data} are of {dataset.stride}x{dataset.stride}; choose a --model that fits"
        )
    if len(dataset.classes) != model.class_num or dataset.channels != model.vae_embed_dim:
        raise DataError(
            f"{data}: {pluralize(len(dataset.classes), 'class')} of {pluralize(dataset.channels, 'channel')}, but the "
            f"model was made for {pluralize(model.class_num, 'class')} of {model.vae_embed_dim}"
        )


def check_mirror_images(dataset: LatentDataset, flip: bool, data: str) -> None:
    """Check that there are mirror images if a training shows them. Raises `DataError`, which names the path `data`."""
    if flip and not dataset.mirrored:
        raise DataError(
            f"{data}: latents without mirror images, which flip needs; train with --no-flip, or cache the images again "
            "without --no-mirror"
        )

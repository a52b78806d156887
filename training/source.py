"""Where a trainer's latents come from, one example at a time: the pictures themselves, or a cache of latents."""

from __future__ import annotations

import pathlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.images import from_uint8
from training.data import Dataset, open_dataset


class Source(Protocol):
    """Latents of one size with a label each."""

    tokenizer: str  # one of `runtime.artifact.TOKENIZERS`
    classes: tuple[str, ...]
    channels: int
    stride: int  # pixels along one side of a latent
    labels: NDArray[np.int64]  # [n]

    def latent(self, index: int, flip: bool, stream: np.random.Generator) -> NDArray[np.float32]:
        """The latents of example `index`, mirrored if `flip`: [channels, H, W]."""

    def name(self, index: int) -> str:
        """Where a person finds example `index`."""


class Pixels:
    """Pictures as their own latents: patches of the picture are the tokens."""

    tokenizer, stride = "pixel", 1

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.classes, self.channels, self.labels = dataset.classes, dataset.channels, dataset.labels

    def latent(self, index: int, flip: bool, stream: np.random.Generator) -> NDArray[np.float32]:
        latent = from_uint8(self._dataset.images(np.array([index])))[0]  # [c, H, W]
        return latent[:, :, ::-1] if flip else latent

    def name(self, index: int) -> str:
        return self._dataset.name(index)


def open_source(data: pathlib.Path, image_size: int) -> Source:
    """The latents of the dataset at `data`, whose pictures are brought to `image_size`. Raises `DataError`."""
    return Pixels(open_dataset(data, image_size))

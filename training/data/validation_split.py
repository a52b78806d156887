"""Images that are held out of training: which they are, and datasets of a part of another dataset's images.

An image is held out by its class and the name of its file alone. So a resumed run, a run on a copy of the data in
another place, a cache of latents and `mar evaluate` hold out the same images, and new images change nothing about those
that were there before.
"""

from __future__ import annotations

import functools
import hashlib
import pathlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.checks import pluralize
from runtime.errors import DataError
from runtime.image_files import Color
from training.data.datasets import ImageDataset, has_split, open_dataset
from training.data.latent_dataset import LatentDataset

_HASHES = 2.0**64


class _Labelled(Protocol):
    """What the choice of held-out images needs of a dataset."""

    classes: tuple[str, ...]
    labels: NDArray[np.int64]

    def name(self, index: int) -> str:
        """Return where a person finds the image at `index`."""


def split(dataset: _Labelled, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the images to train on and those that are held out, int64 [n] and [m], both in ascending order.

    About `share` of the images are held out, at least one. At least one image of each class is trained on.

    Raises:
        DataError: No class has a second image.
    """
    ranks = np.array([_rank(dataset, index) for index in range(len(dataset.labels))])
    last = np.zeros(len(ranks), bool)  # the image of each class that is held out last
    for label in np.unique(dataset.labels):
        of_class = np.flatnonzero(dataset.labels == label)
        last[of_class[np.argmax(ranks[of_class])]] = True
    candidates = np.flatnonzero(~last)
    if not len(candidates):
        images = pluralize(len(ranks), "image")
        raise DataError(f"no image can be held out of {images}, one of each class; remove --validation-share")
    held_out = ~last & (ranks < share)
    held_out[candidates[np.argmin(ranks[candidates])]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _rank(dataset: _Labelled, index: int) -> float:
    """Return the place of an image among all possible ones, in 0..1, by a hash of its class and its file's name."""
    key = f"{dataset.classes[dataset.labels[index]]}/{dataset.name(index).rpartition('/')[2]}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / _HASHES


class ImageSubset:
    """A part of the images of a dataset, as an `ImageDataset`."""

    def __init__(self, dataset: ImageDataset, chosen: NDArray[np.int64]) -> None:
        self._dataset, self._chosen = dataset, chosen
        self.classes, self.channels, self.labels = dataset.classes, dataset.channels, dataset.labels[chosen]
        self.notes, self.warnings = dataset.notes, dataset.warnings

    @functools.cached_property
    def fingerprint(self) -> str:
        """A text that differs for other images or labels."""
        return hashlib.sha256(self._dataset.fingerprint.encode() + self._chosen.tobytes()).hexdigest()

    @property
    def content(self) -> str:
        """The text of the whole dataset, see `ImageDataset.content`."""
        return self._dataset.content

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images at `indices`, see `ImageDataset.images`."""
        return self._dataset.images(self._chosen[indices])

    def name(self, index: int) -> str:
        """Return where a person finds the image at `index`."""
        return self._dataset.name(int(self._chosen[index]))


class LatentSubset:
    """A part of the examples of a dataset, as a `LatentDataset`."""

    def __init__(self, dataset: LatentDataset, chosen: NDArray[np.int64]) -> None:
        self._dataset, self._chosen = dataset, chosen
        self.tokenizer, self.stride, self.channels = dataset.tokenizer, dataset.stride, dataset.channels
        self.mirrored = dataset.mirrored
        self.classes, self.labels = dataset.classes, dataset.labels[chosen]
        self.notes, self.warnings = dataset.notes, dataset.warnings

    @property
    def content(self) -> str:
        """The text of the whole dataset, see `LatentDataset.content`."""
        return self._dataset.content

    def latent(self, index: int, flip: bool, stream: np.random.Generator) -> NDArray[np.float32]:
        """Return the latents of one example, see `LatentDataset.latent`."""
        return self._dataset.latent(int(self._chosen[index]), flip, stream)

    def images(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Decode latents [B, C, h, w] to images, uint8 [B, height, width, 1 or 3]."""
        return self._dataset.images(latents)

    def save_tokenizer(self, run: pathlib.Path) -> None:
        """Write the autoencoder of the latents into the folder of a run, where there is one."""
        self._dataset.save_tokenizer(run)

    def name(self, index: int) -> str:
        """Return where a person finds the image of an example."""
        return self._dataset.name(int(self._chosen[index]))


class TrainingPart(LatentSubset):
    """The examples to train on.

    Attributes:
        held_out: The examples that are held out.
    """

    def __init__(self, dataset: LatentDataset, share: float) -> None:
        """Hold out a share of a dataset. Raises `DataError`, see `split`."""
        trained, held_out = split(dataset, share)
        super().__init__(dataset, trained)
        self.held_out = LatentSubset(dataset, held_out)
        self.notes = (*dataset.notes, f"{pluralize(len(held_out), 'image')} held out of {len(dataset.labels)}")


def open_train_and_test(
    path: pathlib.Path, image_size: int, background: Color, validation_share: float, with_test: bool = True
) -> tuple[ImageDataset, ImageDataset | None]:
    """Open the images that a model was trained on, and others to compare its images with.

    The others are the test split; if there is none, the images that `mar train --validation-share` holds out.

    Args:
        path: The folder of the dataset.
        image_size: The side of the images in pixels.
        background: The colour under transparent pixels.
        validation_share: The share that training held out, 0 for none.
        with_test: Whether the others are needed; without them the second result is None.

    Raises:
        DataError: There is no dataset, or neither a test split nor a share.
    """
    trained: ImageDataset = open_dataset(path, image_size, "train", background)
    held_out: ImageDataset | None = None
    if validation_share:
        trained, held_out = (ImageSubset(trained, chosen) for chosen in split(trained, validation_share))
    if not with_test:
        return trained, None
    if held_out is not None and not has_split(path, "test"):
        return trained, held_out
    try:
        return trained, open_dataset(path, image_size, "test", background)
    except DataError as error:
        if has_split(path, "test"):
            raise
        raise DataError(f"{error}; or give --split train, or the --validation-share of the run") from None

"""Labelled images to train on: IDX files (MNIST, Fashion-MNIST), a folder of class sub-folders, or one of images."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.checks import printable
from runtime.errors import DataError
from runtime.image_files import WHITE, Color
from training.data.class_names import list_some
from training.data.folder_dataset import FolderDataset
from training.data.idx_dataset import IDX_PREFIX, IdxDataset, find_idx_files
from training.data.unreadable_images import TolerantReader

_SPLITS = ("train", "test", "val", "valid", "validation")


class ImageDataset(Protocol):
    """Labelled images of one size.

    Attributes:
        notes: What was taken as classes, and what was left out and why, one line each.
        warnings: One line for each defect of the data that training can live with; reading adds to it.
        classes: The names of the classes.
        channels: 1 for gray images, 3 for RGB.
        labels: The class of each image, int64 [n].
    """

    notes: tuple[str, ...]
    warnings: list[str]

    classes: tuple[str, ...]
    channels: int
    labels: NDArray[np.int64]

    @property
    def fingerprint(self) -> str:
        """A text that differs for other images or labels, found without decoding an image."""

    @property
    def content(self) -> str:
        """A text that differs for other images or labels, and is the same for a copy of the files elsewhere."""

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images at `indices`: uint8 [len(indices), H, W, channels].

        Raises:
            UnreadableImageError: One of them cannot be read.
        """

    def name(self, index: int) -> str:
        """Return where a person finds the image at `index`."""


def open_dataset(path: pathlib.Path, image_size: int, split: str = "train", background: Color = WHITE) -> ImageDataset:
    """Open the dataset in a folder.

    A folder with IDX files has the images of `split` in those of its name. Any other folder has a sub-folder for each
    class, or images alone, which then are one class. They are below a sub-folder named like `split`; without such a
    sub-folder, the folder is the training split itself.

    Args:
        path: The folder.
        image_size: The side of the square images that the dataset returns, in pixels.
        split: `train` or `test`.
        background: The colour under transparent pixels.

    Raises:
        DataError: There is no dataset, or it is damaged.
    """
    where = printable(str(path))
    try:
        if path.is_dir():
            return _open_folder(path, image_size, split, background)
    except OSError as error:
        place = printable(str(error.filename or path))
        raise DataError(f"{place}: cannot be read ({error.strerror or error})") from error
    raise DataError(
        f"no dataset at {where}: expected a folder with IDX files, with a sub-folder for each class, or with images"
    )


def has_split(path: pathlib.Path, split: str) -> bool:
    """Return whether a folder has the images of `split`, `train` or `test`, under its name."""
    return "images" in find_idx_files(path, split) or bool(_split_folders(path, split))


def _split_folders(path: pathlib.Path, split: str) -> list[str]:
    """Return the names of the folders of a split: the name in lower case first, then others such as Train."""
    return sorted(
        (folder.name for folder in path.iterdir() if folder.is_dir() and folder.name.lower() == split), reverse=True
    )


def _open_folder(path: pathlib.Path, image_size: int, split: str, background: Color) -> ImageDataset:
    """Do what `open_dataset` does, for a folder; raise `OSError` where it cannot be read."""
    where = printable(str(path))
    if "images" in find_idx_files(path, split):
        return IdxDataset(path, image_size, split)
    folders = {folder.name: folder for folder in sorted(path.iterdir()) if folder.is_dir()}
    if chosen := _split_folders(path, split):
        dataset = FolderDataset(folders[chosen[0]], image_size, background)
        others = [printable(name) for name in folders if name != chosen[0] and name.lower() not in ("train", "test")]
        if others:
            dataset.notes += (f"{where}: left out what is beside {chosen[0]}: {list_some(others)}",)
        return dataset
    splits = [name for name in folders if name.lower() in _SPLITS]
    if split != "train" or (splits and len(splits) == len(folders)):
        raise DataError(
            f"{where}: no images of the {split} split; expected a folder {split}/ or IDX files {IDX_PREFIX[split]}-*"
            + (f", found {', '.join(splits)}" if splits else "")
        )
    return FolderDataset(path, image_size, background)


def chunks(values: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Split `values` [n] into consecutive parts of `size`; the last part may be shorter."""
    return (values[start : start + size] for start in range(0, len(values), size))


def readable_batches(
    dataset: ImageDataset, chosen: NDArray[np.int64], size: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Read images in batches, without those that cannot be read; the dataset's `warnings` name these.

    Args:
        dataset: The images.
        chosen: The indices of the images to read, int64 [n].
        size: The largest number of images in a batch.

    Yields:
        The images of a batch, uint8 [B, H, W, channels], and their indices, int64 [B].

    Raises:
        DataError: A hundred images in a row, or all of them, cannot be read.
    """
    reader = TolerantReader(len(chosen), dataset.warnings.append)
    for part in chunks(chosen, size):
        batch = []
        for index in part:
            images = reader.read(functools.partial(dataset.images, index[None]))
            if images is not None:
                batch.append((images[0], index))
        if batch:
            readable, indices = zip(*batch, strict=True)
            yield np.stack(readable), np.array(indices)


def to_rgb(dataset: ImageDataset) -> ImageDataset:
    """Return the dataset with three channels; a gray image has its values in all three."""
    return dataset if dataset.channels == 3 else _RgbDataset(dataset)


class _RgbDataset:
    """A gray dataset with its one channel repeated three times."""

    channels = 3

    def __init__(self, gray: ImageDataset) -> None:
        self._gray, self.warnings, self.notes = gray, gray.warnings, gray.notes
        self.classes, self.labels = gray.classes, gray.labels

    @property
    def fingerprint(self) -> str:
        return f"{self._gray.fingerprint} in three colours"

    @property
    def content(self) -> str:
        return self._gray.content

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._gray.images(indices).repeat(3, axis=-1)

    def name(self, index: int) -> str:
        return self._gray.name(index)

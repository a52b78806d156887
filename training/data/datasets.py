"""Labelled images to train on: IDX files (MNIST, Fashion-MNIST) or a folder of class sub-folders."""

from __future__ import annotations

import functools
import gzip
import hashlib
import math
import pathlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from runtime.checks import pluralize
from runtime.errors import DataError

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# IDX files name no classes; these are the sha256 of Fashion-MNIST's labels, training and test.
_FASHION_MNIST_LABELS = (
    "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
)
_IDX_PREFIX = {"train": "train", "test": "t10k"}
_MOST_UNREADABLE_IN_A_ROW = 100
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class UnreadableImageError(DataError):
    """One image that cannot be read, among others that may be fine."""


class Dataset(Protocol):
    """Images of one size with a label each.

    `warnings` are what was found wrong with the data but can be lived with; reading adds to them.
    """

    warnings: list[str]

    classes: tuple[str, ...]
    channels: int
    labels: NDArray[np.int64]  # [n]

    @property
    def fingerprint(self) -> str:
        """What tells all of the images and labels from any others, found without decoding one."""

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images at `indices`: uint8 [len(indices), H, W, channels]. Raises `UnreadableImageError`."""

    def name(self, index: int) -> str:
        """Where a person finds the image at `index`."""


def open_dataset(path: pathlib.Path, image_size: int, split: str = "train") -> Dataset:
    """The dataset in folder `path`, its images brought to `image_size` squared. Raises `DataError`.

    A folder with IDX files gives those of `split`; any other is read as class sub-folders, below a
    sub-folder named like `split`, which only the training split can do without.
    """
    if not path.is_dir():
        raise DataError(f"no dataset at {path}: expected a folder with IDX files or with a sub-folder for each class")
    if _idx_file(path, split, "images-idx3") is not None:
        return IdxDataset(path, image_size, split)
    if (path / split).is_dir():
        return FolderDataset(path / split, image_size)
    if split != "train":
        raise DataError(
            f"{path}: no images of the {split} split; expected a folder {split}/ or IDX files {_IDX_PREFIX[split]}-*"
        )
    return FolderDataset(path, image_size)


def chunks(values: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """`values` [n] in their order, up to `size` at a time."""
    return (values[start : start + size] for start in range(0, len(values), size))


def readable_batches(
    dataset: Dataset, chosen: NDArray[np.int64], size: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Those of the images `chosen` [n] of `dataset` that can be read, uint8 [B, H, W, c], and which these are [B].

    Up to `size` come at a time. Why the others cannot be read is among the dataset's warnings then. Raises
    `DataError` where a hundred in a row, or all, cannot.
    """
    unreadable = 0
    for part in chunks(chosen, size):
        found = []
        for index in part:
            try:
                found.append((dataset.images(index[None])[0], index))
                unreadable = 0
            except UnreadableImageError as error:
                dataset.warnings.append(str(error))
                unreadable += 1
                check_disk(unreadable, len(chosen), dataset.warnings[-1])
        if found:
            images, indices = zip(*found, strict=True)
            yield np.stack(images), np.array(indices)


def check_disk(unreadable: int, of: int, last: str) -> None:
    """Raise `DataError` where so many images in a row cannot be read that it is no bad image but a disk that is
    gone; `last` says why the last one cannot, and `of` are all there are."""
    if unreadable >= min(_MOST_UNREADABLE_IN_A_ROW, of):
        raise DataError(f"{pluralize(unreadable, 'image')} in a row cannot be read, the last one {last}")


def to_rgb(dataset: Dataset) -> Dataset:
    """The dataset in three colours: gray images have all of them the same."""
    return dataset if dataset.channels == 3 else _Coloured(dataset)


class _Coloured:
    channels = 3

    def __init__(self, gray: Dataset) -> None:
        self._gray, self.warnings = gray, gray.warnings
        self.classes, self.labels = gray.classes, gray.labels

    @property
    def fingerprint(self) -> str:
        return f"{self._gray.fingerprint} in three colours"

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._gray.images(indices).repeat(3, axis=-1)

    def name(self, index: int) -> str:
        return self._gray.name(index)


class IdxDataset:
    """The IDX format of MNIST, plain or gzipped; small images, so all of them stay in memory."""

    channels = 1

    def __init__(self, path: pathlib.Path, image_size: int, split: str) -> None:
        self.warnings: list[str] = []
        pixels = _read_idx(_require_idx(path, split, "images-idx3"), dimensions=3)  # [n, h, w]
        self.labels = _read_idx(_require_idx(path, split, "labels-idx1"), dimensions=1).astype(np.int64)
        if len(pixels) != len(self.labels):
            raise DataError(f"{path}: {len(pixels)} images but {len(self.labels)} labels in the {split} files")
        height, width = pixels.shape[1:]
        if max(height, width) > image_size:
            raise DataError(f"{path}: images of {height}x{width} do not fit the model's {image_size}x{image_size}")
        top, left = (image_size - height) // 2, (image_size - width) // 2
        margins = ((0, 0), (top, image_size - height - top), (left, image_size - width - left))
        self._pixels = np.pad(pixels, margins)[..., None]  # [n, H, W, 1]
        count = int(self.labels.max()) + 1
        fashion = hashlib.sha256(self.labels.astype(np.uint8).tobytes()).hexdigest() in _FASHION_MNIST_LABELS
        self.classes = FASHION_MNIST_CLASSES if fashion else tuple(str(label) for label in range(count))

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self._pixels.shape).encode())
        digest.update(self._pixels.data)
        digest.update(self.labels.data)
        return digest.hexdigest()

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self._pixels[indices]

    def name(self, index: int) -> str:
        return f"image {index}"


def _is_image(file: pathlib.Path) -> bool:
    """By its name, given from the folder of its class on."""
    return file.suffix.lower() in _IMAGE_SUFFIXES and not any(part.startswith(".") for part in file.parts)


class FolderDataset:
    """A sub-folder a class, in alphabetical order; images are cropped to their middle square.

    What is hidden is left out: the copies that notebooks keep, and what a Mac lays beside each file.
    """

    channels = 3

    def __init__(self, path: pathlib.Path, image_size: int) -> None:
        folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
        self.classes = tuple(folder.name for folder in folders)
        self.warnings: list[str] = []
        self._files: list[pathlib.Path] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            files = sorted(file for file in folder.rglob("*") if _is_image(file.relative_to(folder)))
            if not files:
                self.warnings.append(f"{folder}: a class without images (looked for {', '.join(_IMAGE_SUFFIXES)})")
            self._files += files
            labels += [label] * len(files)
        if not folders:
            raise DataError(f"{path}: neither IDX files nor class sub-folders here")
        if not labels:
            raise DataError(f"{path}: no class has images; {self.warnings[0]}")
        self.labels = np.array(labels, dtype=np.int64)
        self._path, self._image_size = path, image_size

    @functools.cached_property
    def fingerprint(self) -> str:
        """By size and time of change of every file: to read a million of them would take hours."""
        files = [(file.relative_to(self._path).as_posix(), *_size_and_time(file)) for file in self._files]
        return hashlib.sha256(repr((self._image_size, self.classes, files)).encode()).hexdigest()

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return np.stack([self._load(self._files[index]) for index in indices])

    def name(self, index: int) -> str:
        return str(self._files[index])

    def _load(self, file: pathlib.Path) -> NDArray[np.uint8]:
        size = self._image_size
        try:
            with Image.open(file) as image:
                upright = _eight_bits(ImageOps.exif_transpose(image)).convert("RGB")
        except (
            Exception
        ) as error:  # Pillow lets through whatever its parsers stumble over: SyntaxError, struct.error, ...
            raise UnreadableImageError(f"{file}: not a readable image ({error})") from error
        if min(upright.size) < size:
            self.warnings.append(f"{file}: {upright.width}x{upright.height}, enlarged to {size}x{size}")
        scale = size / min(upright.size)
        width, height = (max(size, round(side * scale)) for side in upright.size)
        left, top = (width - size) // 2, (height - size) // 2
        resized = upright.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(resized.crop((left, top, left + size, top + size)))


def _size_and_time(file: pathlib.Path) -> tuple[int, ...]:
    """In bytes and nanoseconds; nothing of a link that leads nowhere, which is an image that cannot be read."""
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray brought to 8; Pillow's own conversion would cut it off at 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image, dtype=np.int64) // 257).clip(0, 255).astype(np.uint8))


def _idx_file(path: pathlib.Path, split: str, kind: str) -> pathlib.Path | None:
    names: Sequence[str] = [f"{_IDX_PREFIX[split]}-{kind}-ubyte{suffix}" for suffix in ("", ".gz")]
    return next((path / name for name in names if (path / name).is_file()), None)


def _require_idx(path: pathlib.Path, split: str, kind: str) -> pathlib.Path:
    file = _idx_file(path, split, kind)
    if file is None:
        raise DataError(f"{path}: no file {_IDX_PREFIX[split]}-{kind}-ubyte, plain or .gz")
    return file


def _read_idx(file: pathlib.Path, dimensions: int) -> NDArray[np.uint8]:
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    header = 4 * (1 + dimensions)
    if len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{file}: not an IDX file of bytes with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    values = np.frombuffer(data, np.uint8, offset=header)
    if values.size != math.prod(shape) or not values.size:
        raise DataError(f"{file}: the header promises {shape}, {math.prod(shape)} bytes; found {values.size}")
    return values.reshape(shape)

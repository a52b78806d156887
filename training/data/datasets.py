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

from runtime.errors import DataError
from training.data.unreadable_images import TolerantReader, UnreadableImageError

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
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class ImageDataset(Protocol):
    """Labelled images of one size.

    Attributes:
        warnings: One line for each defect of the data that training can live with; reading adds to it.
        classes: The names of the classes.
        channels: 1 for gray images, 3 for RGB.
        labels: The class of each image, int64 [n].
    """

    warnings: list[str]

    classes: tuple[str, ...]
    channels: int
    labels: NDArray[np.int64]

    @property
    def fingerprint(self) -> str:
        """A text that differs for other images or labels, found without decoding an image."""

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images at `indices`: uint8 [len(indices), H, W, channels].

        Raises:
            UnreadableImageError: One of them cannot be read.
        """

    def name(self, index: int) -> str:
        """Return where a person finds the image at `index`."""


def open_dataset(path: pathlib.Path, image_size: int, split: str = "train") -> ImageDataset:
    """Open the dataset in a folder.

    A folder with IDX files has the images of `split` in those of its name. Any other folder has a sub-folder for each
    class, below a sub-folder named like `split`; without such a sub-folder, it is the training split itself.

    Args:
        path: The folder.
        image_size: The side of the square images that the dataset returns, in pixels.
        split: `train` or `test`.

    Raises:
        DataError: There is no dataset, or it is damaged.
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
    """Gray images in the IDX format of MNIST, plain or gzipped; all of them are held in memory.

    Images that are smaller than `image_size` are padded with zeros on all sides.
    """

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
        """The SHA-256 of all pixels and labels."""
        digest = hashlib.sha256(repr(self._pixels.shape).encode())
        digest.update(self._pixels.data)
        digest.update(self.labels.data)
        return digest.hexdigest()

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images at `indices`: uint8 [len(indices), H, W, 1]."""
        return self._pixels[indices]

    def name(self, index: int) -> str:
        """Return the number of the image in its file."""
        return f"image {index}"


def _is_image(file: pathlib.Path) -> bool:
    """Whether a path relative to the folder of its class is that of an image, by its names; hidden files are none."""
    return file.suffix.lower() in _IMAGE_SUFFIXES and not any(part.startswith(".") for part in file.parts)


class FolderDataset:
    """RGB images in one sub-folder for each class, in alphabetical order.

    An image is scaled so that its shorter side is `image_size`, and cropped to the square in its middle. Hidden files
    and folders are ignored: notebooks keep copies there, and macOS writes one beside each file.
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
        """The SHA-256 of name, size and time of change of every file; reading a million files would take hours."""
        files = [(file.relative_to(self._path).as_posix(), *_size_and_time(file)) for file in self._files]
        return hashlib.sha256(repr((self._image_size, self.classes, files)).encode()).hexdigest()

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images at `indices`: uint8 [len(indices), H, W, 3].

        Raises:
            UnreadableImageError: One of them cannot be read.
        """
        return np.stack([self._load(self._files[index]) for index in indices])

    def name(self, index: int) -> str:
        """Return the path of the image's file."""
        return str(self._files[index])

    def _load(self, file: pathlib.Path) -> NDArray[np.uint8]:
        size = self._image_size
        try:
            with Image.open(file) as image:
                upright = _eight_bits(ImageOps.exif_transpose(image)).convert("RGB")
        # Pillow passes on any exception of its parsers, such as SyntaxError and struct.error.
        except Exception as error:
            raise UnreadableImageError(f"{file}: not a readable image ({error})") from error
        if min(upright.size) < size:
            self.warnings.append(f"{file}: {upright.width}x{upright.height}, enlarged to {size}x{size}")
        scale = size / min(upright.size)
        width, height = (max(size, round(side * scale)) for side in upright.size)
        left, top = (width - size) // 2, (height - size) // 2
        resized = upright.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(resized.crop((left, top, left + size, top + size)))


def _size_and_time(file: pathlib.Path) -> tuple[int, ...]:
    """Return the size of a file in bytes and its time of change in nanoseconds.

    A broken link has neither; reading it later reports it as an unreadable image.
    """
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale a 16-bit gray image to 8 bits, where Pillow's own conversion would clip it at 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image, dtype=np.int64) // 257).clip(0, 255).astype(np.uint8))


def _idx_file(path: pathlib.Path, split: str, kind: str) -> pathlib.Path | None:
    """Return the IDX file of a split where it exists, plain before gzipped."""
    names: Sequence[str] = [f"{_IDX_PREFIX[split]}-{kind}-ubyte{suffix}" for suffix in ("", ".gz")]
    return next((path / name for name in names if (path / name).is_file()), None)


def _require_idx(path: pathlib.Path, split: str, kind: str) -> pathlib.Path:
    file = _idx_file(path, split, kind)
    if file is None:
        raise DataError(f"{path}: no file {_IDX_PREFIX[split]}-{kind}-ubyte, plain or .gz")
    return file


def _read_idx(file: pathlib.Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes (the header: a magic number, then the dimensions as big-endian int32)."""
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
        raise DataError(f"{file}: the header announces {shape}, {math.prod(shape)} bytes; found {values.size}")
    return values.reshape(shape)

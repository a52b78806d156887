"""Images in the IDX format of MNIST, under the names by which such files are found."""

from __future__ import annotations

import functools
import gzip
import hashlib
import math
import pathlib
import re
import struct
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.checks import pluralize, printable
from runtime.errors import DataError
from training.data.class_names import describe_classes, list_some

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
IDX_PREFIX = {"train": "train", "test": "t10k"}
"""How the names of MNIST's files begin, for each split."""
# Such as train-images-idx3-ubyte, t10k-labels.idx1-ubyte.gz and emnist-letters-test-images-idx3-ubyte.
_FILE = re.compile(r"(.*?)[-_.]?(train|t10k|test)[-_.](images|labels)[-_.]idx[13][-_.]ubyte(\.gz)?", re.IGNORECASE)
_TRANSPOSED = "emnist"  # how the names of files begin whose images have rows and columns exchanged
_FOLDER = re.compile(r"mnist|idx|^raw$|^gzip$", re.IGNORECASE)  # folders that such files come in
_LEVELS = 3
_SPLITS = {"train": "train", "t10k": "test", "test": "test"}


class _IdxFile(NamedTuple):
    """A file by its name: of two that differ only in `packed` and `path`, the first is taken."""

    dataset: str
    split: str
    kind: str
    packed: bool
    path: pathlib.Path


def find_idx_files(path: pathlib.Path, split: str) -> dict[str, pathlib.Path]:
    """Find the files of a split, `images` and `labels`, in a folder or in the usual folders below it.

    Raises:
        DataError: There are the images of several datasets.
    """
    found = [file for file in _idx_files(path) if file.split == split]
    datasets = sorted({file.dataset for file in found if file.kind == "images"})
    if len(datasets) > 1:
        raise DataError(
            f"{printable(str(path))}: IDX files of several datasets, {list_some(datasets)}; "
            "give each a folder of its own"
        )
    return {file.kind: file.path for file in sorted(found, reverse=True) if file.dataset in datasets}


def _idx_files(path: pathlib.Path) -> list[_IdxFile]:
    """Return the IDX files on the first level of folders that has any."""
    level = [path]
    for _ in range(_LEVELS):
        entries = [entry for folder in level for entry in folder.iterdir()]
        matches = [(entry, _FILE.fullmatch(entry.name)) for entry in entries]
        found = [
            _IdxFile(match[1].lower(), _SPLITS[match[2].lower()], match[3].lower(), match[4] is not None, entry)
            for entry, match in matches
            if match and entry.is_file()
        ]
        if found:
            return found
        level = [entry for entry in entries if _FOLDER.search(entry.name) and entry.is_dir()]
    return []


class IdxDataset:
    """Gray images in the IDX format of MNIST, plain or gzipped; all of them are held in memory.

    Images that are smaller than `image_size` are padded with zeros on all sides. Those of EMNIST, which its files have
    transposed, are turned upright.

    Attributes:
        notes: The classes and the number of images of each.
    """

    channels = 1

    def __init__(self, path: pathlib.Path, image_size: int, split: str) -> None:
        """Read the images and labels of a split, which `find_idx_files` finds.

        Raises:
            DataError: A file is missing or damaged, or the images do not fit.
        """
        files, where = find_idx_files(path, split), printable(str(path))
        for kind, dimensions in (("images", 3), ("labels", 1)):
            if kind not in files:
                raise DataError(f"{where}: no file {IDX_PREFIX[split]}-{kind}-idx{dimensions}-ubyte, plain or .gz")
        pixels = _read_idx(files["images"], dimensions=3)  # [n, h, w]
        self.labels = _read_idx(files["labels"], dimensions=1).astype(np.int64)
        if len(pixels) != len(self.labels):
            raise DataError(f"{where}: {len(pixels)} images but {len(self.labels)} labels in the {split} files")
        is_transposed = files["images"].name.lower().startswith(_TRANSPOSED)
        if is_transposed:
            pixels = pixels.transpose(0, 2, 1)
        height, width = pixels.shape[1:]
        if max(height, width) > image_size:
            raise DataError(f"{where}: images of {height}x{width} do not fit the model's {image_size}x{image_size}")
        top, left = (image_size - height) // 2, (image_size - width) // 2
        margins = ((0, 0), (top, image_size - height - top), (left, image_size - width - left))
        self._pixels = np.pad(pixels, margins)[..., None]  # [n, H, W, 1]
        fashion = hashlib.sha256(self.labels.astype(np.uint8).tobytes()).hexdigest() in _FASHION_MNIST_LABELS
        numbers = tuple(str(label) for label in range(int(self.labels.max()) + 1))
        self.classes = FASHION_MNIST_CLASSES if fashion else numbers
        self.notes: tuple[str, ...] = (
            f"{printable(str(files['images']))}: {describe_classes(self.classes, self.labels)}",
        )
        if is_transposed:
            self.notes += (f"{where}: EMNIST stores its images transposed; they are turned upright",)
        empty = [numbers[label] for label in np.flatnonzero(np.bincount(self.labels) == 0)]
        self.warnings = [f"{where}: {_describe_empty(empty, len(numbers))}"] if empty else []

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of all pixels and labels."""
        digest = hashlib.sha256(repr(self._pixels.shape).encode())
        digest.update(self._pixels.data)
        digest.update(self.labels.data)
        return digest.hexdigest()

    @property
    def content(self) -> str:
        """The fingerprint, which does not depend on the place of the files."""
        return self.fingerprint

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images at `indices`: uint8 [len(indices), H, W, 1]."""
        return self._pixels[indices]

    def name(self, index: int) -> str:
        """Return the number of the image in its file."""
        return f"image {index}"


def _describe_empty(empty: list[str], classes: int) -> str:
    largest = classes - 1
    return (
        f"{len(empty)} of {pluralize(classes, 'class')} have no images ({list_some(empty)}), because the largest label "
        f"is {largest}; number the labels from 0 without gaps"
    )


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

"""The formats of a dataset: how a worker packs a shard, and how the shards are stored in a folder."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.dataset.packed_shards import pack_npz, pack_tar
from runtime.dataset.shard_folder import ShardFolder
from runtime.image_records.encoding import encode_image
from runtime.image_records.folder import ImageFolder
from runtime.image_records.record import ImageRecord


class Folder(Protocol):
    """An open folder of images."""

    def has(self, record: ImageRecord) -> bool:
        """Return whether it has an image; raise `RequestError` if another image is in its place."""

    def add_packed(self, records: Sequence[ImageRecord], packed: Any) -> None:
        """Write what `Format.pack` made of images."""

    def complete(self, records: Iterable[ImageRecord]) -> bool:
        """Write the sorted index if all images of a run are finished, and return whether they are."""


@dataclasses.dataclass(frozen=True)
class Format:
    """How the images of a dataset are stored.

    Attributes:
        pack: Turns images uint8 [B, H, W, c] and their records into what the folder writes. It runs in a worker.
        open: Opens a folder, for shards of a size.
    """

    pack: Callable[[NDArray[np.uint8], Sequence[ImageRecord]], Any]
    open: Callable[[pathlib.Path, int], AbstractContextManager[Folder]]


def _pack_png(images: NDArray[np.uint8], records: Sequence[ImageRecord]) -> list[bytes]:
    return [encode_image(image, record) for image, record in zip(images, records, strict=True)]


FORMATS = {
    "png": Format(_pack_png, lambda folder, shard_size: ImageFolder(folder, by_class=True)),
    "webdataset": Format(pack_tar, lambda folder, shard_size: ShardFolder(folder, ".tar", shard_size)),
    "npz": Format(pack_npz, lambda folder, shard_size: ShardFolder(folder, ".npz", shard_size)),
}

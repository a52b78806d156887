"""Shards in one file each: a tar file in the layout of WebDataset, or an `.npz` file of arrays."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pathlib
import tarfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.image_records.encoding import encode_image
from runtime.image_records.names import image_name
from runtime.image_records.record import ImageRecord
from runtime.storage.stored_files import load_arrays, pack_arrays
from runtime.storage.structured_files import FaultReport, shape_fits


@dataclasses.dataclass(frozen=True)
class _NpzHeader:
    """How the first image of an `.npz` file was made; the others differ from it in class and index."""

    record: dict[str, Any]


def pack_tar(images: NDArray[np.uint8], records: Sequence[ImageRecord]) -> tuple[bytes, list[str]]:
    """Return a tar file that WebDataset reads, and the hash of each PNG file in it.

    An image is three members of one name: `.png`, `.cls` with the number of its class, and `.json` with its record.

    Args:
        images: The images, uint8 [B, H, W, c].
        records: How they were made, B of them.
    """
    file, hashes = io.BytesIO(), []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for image, record in zip(images, records, strict=True):
            png = encode_image(image, record)
            hashes.append(hashlib.sha256(png).hexdigest())
            members = {
                ".png": png,
                ".cls": str(record.class_number).encode(),
                ".json": json.dumps(record.to_dict(), allow_nan=False).encode(),
            }
            for suffix, content in members.items():
                member = tarfile.TarInfo(image_name(record, suffix))  # with time 0: equal images make equal files
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue(), hashes


def pack_npz(images: NDArray[np.uint8], records: Sequence[ImageRecord]) -> tuple[bytes, list[str]]:
    """Return an `.npz` file with `images`, `labels` and `index`, and the hash of the pixels of each image.

    Args:
        images: The images, uint8 [B, H, W, c].
        records: How they were made, B of them.
    """
    arrays: dict[str, NDArray[Any]] = {
        "images": images,
        "labels": np.array([record.class_number for record in records], np.int64),
        "index": np.array([record.index for record in records], np.uint64),
    }
    content = pack_arrays(_NpzHeader(records[0].to_dict()), arrays, compress=True)
    return content, [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in images]


def read_npz(
    path: pathlib.Path, records: Sequence[ImageRecord], side: int, fault_report: FaultReport
) -> NDArray[np.uint8]:
    """Return the images uint8 [B, H, W, c] that `pack_npz` has put into a file.

    Args:
        path: The file.
        records: How the images must have been made.
        side: H and W.
        fault_report: How a failure is reported.

    Raises:
        MarError: The class in `fault_report`; the file is missing, was altered, or has other images.
    """
    header, arrays = load_arrays(path, _NpzHeader, fault_report)
    images, labels, index = (arrays.get(name, np.empty(0)) for name in ("images", "labels", "index"))
    made = [(record.class_number, record.index) for record in records]
    fits = images.dtype == np.uint8 and shape_fits(images.shape, (len(made), side, side, None))
    same = list(zip(labels.tolist(), index.tolist(), strict=False)) == made
    if header.record != records[0].to_dict() or not fits or not same:
        fault_report.raise_(path, "these are other images")
    return images

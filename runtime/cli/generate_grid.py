"""`mar generate --out`: one image as it is, or several as a grid with captions, with one column for each class."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.errors import RequestError
from runtime.image_grid import class_caption, grid_image, grid_size
from runtime.image_records.record import ImageRecord

COLUMNS = 8
"""The columns of a grid of one class."""

_MOST_IMAGES = 1000
_LONGEST_SIDE = 16384  # pixels


def check_grid(count: int, columns: int, image_shape: Sequence[int], remedy: str) -> None:
    """Check that images fit into one grid.

    Args:
        count: The number of images.
        columns: The number of images in a row.
        image_shape: The height and width of an image, in pixels, and its channels.
        remedy: What to do otherwise; it ends the message.

    Raises:
        RequestError: The grid would have more than 1,000 images, or a side of more than 16,384 pixels.
    """
    width, height = grid_size(count, columns, *image_shape[:2])
    if count > _MOST_IMAGES or max(width, height) > _LONGEST_SIDE:
        raise RequestError(
            f"a grid of {count} images, {columns} in a row, would have {width}x{height} pixels, but a grid has at most "
            f"{_MOST_IMAGES} images and {_LONGEST_SIDE} pixels a side; {remedy}"
        )


def write_images(
    out: pathlib.Path, images: NDArray[np.uint8], records: Sequence[ImageRecord], columns: int, numbered: bool = False
) -> None:
    """Write one image as it is, or several as a grid, with how they were made.

    Args:
        out: The PNG file, a temporary one.
        images: The images, uint8 [B, H, W, c].
        records: How they were made, B of them.
        columns: The number of images in a row of the grid.
        numbered: Whether a caption has the index of its image behind its class or prompt.
    """
    from runtime.image_records.encoding import encode_image  # it imports Pillow, which no engine need wait for

    if len(images) == 1:
        content = encode_image(images[0], records[0])
    else:
        captions = [_caption(record) + (f" {record.index}" if numbered else "") for record in records]
        content = encode_image(grid_image(images, captions, columns), records)
    out.write_bytes(content)


def _caption(record: ImageRecord) -> str:
    if record.prompt:
        return class_caption(record.prompt, record.index, "prompt")
    return class_caption(record.class_name, record.class_number)

"""The image and the mask of `mar edit`, read from files of any size."""

from __future__ import annotations

import pathlib

import numpy as np
from numpy.typing import NDArray

from runtime.checks import printable
from runtime.errors import RequestError
from runtime.image_files import Color, middle_square, read_image, read_mask, square_mask, to_pixels
from runtime.model.family_config import FamilyConfig


def read_image_and_mask(
    image_file: pathlib.Path, mask_file: pathlib.Path, config: FamilyConfig, background: Color
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], list[str]]:
    """Read the image to edit and its mask: the square in the middle of each, scaled to the size of the model.

    Args:
        image_file: The file of the image.
        mask_file: The file of the mask, of the proportions of the image.
        config: The model.
        background: The colour under transparent pixels of the image.

    Returns:
        The image, uint8 [S, S, 1] for a model of gray pixels and [S, S, 3] for others; the mask, bool [S, S]; and one
        line for each file that was scaled or has a defect that reading can live with.

    Raises:
        RequestError: A file cannot be read, the proportions differ, or the mask has no white pixel.
    """
    side, width, _ = config.image_shape
    if side != width:
        raise RequestError(
            f"mar edit is for square images, and this model makes {width}x{side}; edit in Python, with runtime.Edit"
        )
    image, lines = read_image(image_file, background)
    mask, mask_lines = read_mask(mask_file)
    sizes = (image_file, image.size), (mask_file, (mask.shape[1], mask.shape[0]))
    _check_proportions(*sizes)
    scaled = middle_square(image, side)
    pixels = to_pixels(scaled, config.image_shape[-1])
    notes = [
        f"{printable(str(file))}: {width}x{height}, the square in its middle scaled to {side}x{side}"
        for file, (width, height) in sizes
        if (width, height) != (side, side)
    ]
    square = square_mask(mask, side)
    if not square.any():
        raise RequestError(
            f"{printable(str(mask_file))}: the mask has no white pixel, so nothing is to be regenerated; paint "
            "the part white, or make it transparent"
        )
    return pixels, square, [*lines, *mask_lines, *notes]


def _check_proportions(image: tuple[pathlib.Path, tuple[int, int]], mask: tuple[pathlib.Path, tuple[int, int]]) -> None:
    """Raise `RequestError` unless two images are scaled versions of each other, up to a pixel of one side."""
    (file, (width, height)), (mask_file, (mask_width, mask_height)) = image, mask
    areas = width * mask_height, height * mask_width  # equal for equal proportions; a pixel more changes one by a side
    if abs(areas[0] - areas[1]) > max(width, height, mask_width, mask_height):
        raise RequestError(
            f"{printable(str(mask_file))}: {mask_width}x{mask_height} pixels, but {printable(str(file))} has "
            f"{width}x{height}; give a mask of the proportions of the image"
        )

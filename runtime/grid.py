"""Pictures as PNG, one or a labelled grid. Apart from the rest, since Pillow is only needed for files."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_MARGIN = 4
_CAPTION = 14
_SMALLEST_SIDE = 96  # small pictures are enlarged by whole factors, so that a person can see them


def save_grid(path: pathlib.Path, images: NDArray[np.uint8], captions: Sequence[str], columns: int) -> None:
    """Write images [B, H, W, c] to `path` as one PNG, each with its caption below."""
    enlarge = max(1, -(-_SMALLEST_SIDE // images.shape[1]))
    height, width = images.shape[1] * enlarge, images.shape[2] * enlarge
    rows = -(-len(images) // columns)
    cell_width, cell_height = width + _MARGIN, height + _CAPTION + _MARGIN
    sheet = Image.new("RGB", (columns * cell_width + _MARGIN, rows * cell_height + _MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = _MARGIN + number % columns * cell_width
        top = _MARGIN + number // columns * cell_height
        sheet.paste(_picture(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        draw.text((left + width // 2, top + height + _CAPTION // 2), caption, fill="black", font=font, anchor="mm")
    sheet.save(path, format="PNG")


def save_picture(path: pathlib.Path, image: NDArray[np.uint8]) -> None:
    """Write an image [H, W, c] to `path` as PNG."""
    _picture(image).save(path, format="PNG")


def _picture(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)

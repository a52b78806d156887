"""Latents to 8-bit pictures, and pictures to a labelled grid."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from runtime.files import replacing

_MARGIN = 4
_CAPTION = 14
_SMALLEST_SIDE = 96  # small pictures are enlarged by whole factors, so that a person can see them


def unpatchify(tokens: NDArray[np.float32], grid: int, patch_size: int) -> NDArray[np.float32]:
    """Tokens in raster order [B, L, D] -> latents [B, c, H, W], channels outermost within a token."""
    batch = len(tokens)
    cells = tokens.reshape(batch, grid, grid, -1, patch_size, patch_size)  # [B, h, w, c, p, p]
    side = grid * patch_size
    return np.ascontiguousarray(cells.transpose(0, 3, 1, 4, 2, 5)).reshape(batch, -1, side, side)


def to_uint8(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pixels in -1..1 [B, c, H, W] -> [B, H, W, c]."""
    scaled = np.clip(pixels.transpose(0, 2, 3, 1) * 127.5 + 127.5, 0, 255)
    images: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    return images


def save_grid(path: pathlib.Path, images: NDArray[np.uint8], captions: Sequence[str], columns: int) -> None:
    """Write images [B, H, W, c] as one PNG, each with its caption below."""
    enlarge = max(1, -(-_SMALLEST_SIDE // images.shape[1]))
    height, width = images.shape[1] * enlarge, images.shape[2] * enlarge
    rows = -(-len(images) // columns)
    cell_width, cell_height = width + _MARGIN, height + _CAPTION + _MARGIN
    sheet = Image.new("RGB", (columns * cell_width + _MARGIN, rows * cell_height + _MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = _MARGIN + number % columns * cell_width
        top = _MARGIN + number // columns * cell_height
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, top))
        draw.text((left + width // 2, top + height + _CAPTION // 2), caption, fill="black", font=font, anchor="mm")
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")

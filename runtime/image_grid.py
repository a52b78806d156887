"""Images written as PNG files: one image, or a grid of images with captions. Only this module needs Pillow."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from unicodedata import combining, normalize

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from runtime.errors import RequestError
from runtime.files import check_writable

_SUFFIXES = ("", ".png")
_MARGIN = 4
_CAPTION = 14
_SMALLEST_SIDE = 96  # smaller images are enlarged by an integer factor


def check_image_file(path: pathlib.Path) -> None:
    """Raise `MarError` if a file has another suffix than .png or none, or cannot be written."""
    if path.suffix.lower() not in _SUFFIXES:
        raise RequestError(f"{path}: images are written as PNG; give a name that ends in .png")
    check_writable(path)


def save_grid(path: pathlib.Path, images: NDArray[np.uint8], captions: Sequence[str], columns: int) -> None:
    """Write images as one PNG, in rows, each with its caption below.

    Args:
        path: The file to write.
        images: The images, uint8 [B, H, W, c], with c = 1 or 3.
        captions: B texts. A caption that is wider than its image is cut.
        columns: The number of images in a row.
    """
    enlarge = max(1, -(-_SMALLEST_SIDE // images.shape[1]))
    height, width = images.shape[1] * enlarge, images.shape[2] * enlarge
    rows = -(-len(images) // columns)
    cell_width, cell_height = width + _MARGIN, height + _CAPTION + _MARGIN
    sheet = Image.new("RGB", (columns * cell_width + _MARGIN, rows * cell_height + _MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = _MARGIN + number % columns * cell_width
        top = _MARGIN + number // columns * cell_height
        sheet.paste(_image(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        text = _fit_caption(caption, lambda line: font.getlength(line) <= width)
        draw.text((left + width // 2, top + height + _CAPTION // 2), text, fill="black", font=font, anchor="mm")
    sheet.save(path, format="PNG")


def _fit_caption(caption: str, fits: Callable[[str], bool]) -> str:
    """Return `caption` on one line, cut where `fits` is no longer true.

    Accents are removed, because the built-in font of Pillow has no accented letters.
    """
    line = " ".join("".join(letter for letter in normalize("NFKD", caption) if not combining(letter)).split())
    if fits(line):
        return line
    return next((cut for kept in range(len(line) - 1, 0, -1) if fits(cut := f"{line[:kept]}…")), "…")


def save_image(path: pathlib.Path, image: NDArray[np.uint8]) -> None:
    """Write one image, uint8 [H, W, c] with c = 1 or 3, to `path` as PNG."""
    _image(image).save(path, format="PNG")


def _image(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)

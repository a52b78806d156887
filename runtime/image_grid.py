"""Images as PNG, one or a labelled grid. Apart from the rest, since Pillow is only needed for files."""

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
_SMALLEST_SIDE = 96  # small images are enlarged by whole factors, so that a person can see them


def check_image_file(path: pathlib.Path) -> None:
    """Refuse a name that says the image is anything but a PNG, and one that cannot be written. Raises `MarError`."""
    if path.suffix.lower() not in _SUFFIXES:
        raise RequestError(f"{path}: images are written as PNG; give a name that ends in .png")
    check_writable(path)


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
        sheet.paste(_image(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        told = _fitted(caption, lambda text: font.getlength(text) <= width)
        draw.text((left + width // 2, top + height + _CAPTION // 2), told, fill="black", font=font, anchor="mm")
    sheet.save(path, format="PNG")


def _fitted(caption: str, fits: Callable[[str], bool]) -> str:
    """`caption` on one line, cut off where it would run into the next one's.

    Without accents: Pillow's own font has no letters that carry them.
    """
    line = " ".join("".join(letter for letter in normalize("NFKD", caption) if not combining(letter)).split())
    if fits(line):
        return line
    return next((cut for kept in range(len(line) - 1, 0, -1) if fits(cut := f"{line[:kept]}…")), "…")


def save_image(path: pathlib.Path, image: NDArray[np.uint8]) -> None:
    """Write an image [H, W, c] to `path` as PNG."""
    _image(image).save(path, format="PNG")


def _image(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)

"""Arrays of pixels as images of Pillow: single ones, and grids with captions."""

from __future__ import annotations

import bisect
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from unicodedata import combining, normalize

import numpy as np
from numpy.typing import NDArray

from runtime.errors import RequestError
from runtime.storage.files import check_writable

if TYPE_CHECKING:  # Pillow is imported when an image is drawn: `mar generate` starts sooner
    from PIL import Image

_SUFFIXES = ("", ".png")
_MARGIN = 4
_CAPTION = 14
_NO_LETTER = "\uffff"
_SMALLEST_SIDE = 96  # smaller images are enlarged by an integer factor


def check_image_file(path: pathlib.Path) -> None:
    """Raise `MarError` if a file has another suffix than .png or none, or cannot be written."""
    if path.suffix.lower() not in _SUFFIXES:
        raise RequestError(f"{path}: images are written as PNG; give a name that ends in .png")
    check_writable(path)


def grid_size(count: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """Return the width and height, in pixels, of a grid of `count` images of this height and width."""
    cell_height, cell_width = _cell(height, width)
    return columns * cell_width + _MARGIN, -(-count // columns) * cell_height + _MARGIN


def class_caption(name: str, number: int, kind: str = "class") -> str:
    """Return the caption of a class: its name, or its number if it has no name or one that the font cannot write.

    The same for something else that has a name and a number, whose `kind` is given.
    """
    line = _one_line(name)
    return line if line and all(map(_has_glyph, line)) else f"{kind} {number}"


def to_pil(image: NDArray[np.uint8]) -> Image.Image:
    """Return an image, uint8 [H, W, c] with c = 1 or 3, as a Pillow image in mode L or RGB."""
    from PIL import Image

    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def grid_image(images: NDArray[np.uint8], captions: Sequence[str], columns: int) -> Image.Image:
    """Return images as one, in rows, each with its caption below.

    Args:
        images: The images, uint8 [B, H, W, c], with c = 1 or 3.
        captions: B texts. A caption that is wider than its image is cut.
        columns: The number of images in a row.
    """
    from PIL import Image, ImageDraw

    cell_height, cell_width = _cell(*images.shape[1:3])
    height, width = cell_height - _CAPTION - _MARGIN, cell_width - _MARGIN
    sheet = Image.new("RGB", grid_size(len(images), columns, *images.shape[1:3]), "white")
    draw, font = ImageDraw.Draw(sheet), _font()
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = _MARGIN + number % columns * cell_width
        top = _MARGIN + number // columns * cell_height
        sheet.paste(to_pil(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        text = _fit_caption(caption, lambda line: font.getlength(line) <= width)
        draw.text((left + width // 2, top + height + _CAPTION // 2), text, fill="black", font=font, anchor="mm")
    return sheet


def save_grid(path: pathlib.Path, images: NDArray[np.uint8], captions: Sequence[str], columns: int) -> None:
    """Write images as one PNG file at `path`; the other arguments are those of `grid_image`."""
    grid_image(images, captions, columns).save(path, format="PNG")


def _cell(height: int, width: int) -> tuple[int, int]:
    """Return the height and width of an image in a grid, with its caption and its margin."""
    enlarge = max(1, -(-_SMALLEST_SIDE // height))
    return height * enlarge + _CAPTION + _MARGIN, width * enlarge + _MARGIN


def _fit_caption(caption: str, fits: Callable[[str], bool]) -> str:
    """Return `caption` on one line, cut where `fits` is no longer true."""
    line = _one_line(caption)
    if fits(line):
        return line
    kept = bisect.bisect_left(range(1, len(line)), True, key=lambda letters: not fits(f"{line[:letters]}…"))
    return f"{line[:kept]}…"


def _one_line(text: str) -> str:
    """Return a text on one line, without accents, because the built-in font of Pillow has no accented letters."""
    return " ".join("".join(letter for letter in normalize("NFKD", text) if not combining(letter)).split())


@functools.cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=11)


@functools.cache
def _has_glyph(letter: str) -> bool:
    """Return whether the font can draw a letter. In place of others it draws one box."""
    return letter == " " or _drawn(letter) != _drawn(_NO_LETTER)


def _drawn(letter: str) -> tuple[tuple[int, int], bytes]:
    mask = _font().getmask(letter)
    return mask.size, bytes(mask)

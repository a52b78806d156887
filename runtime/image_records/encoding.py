"""Images as the bytes of a PNG, JPEG or WebP file, which carry how they were made."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from runtime.checks import check_choice, check_int, printable
from runtime.image_files import ImageFileError, read_text
from runtime.image_grid import to_pil
from runtime.image_records.record import ImageRecord, parse_record_text, record_text
from runtime.storage.schema import SchemaError
from runtime.version import __version__

FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""The formats of image files that are written, with the endings of their names."""
QUALITY = 95
"""The usual quality of JPEG and WebP."""

_KEYWORD = "mar"
_DESCRIPTION = 0x010E  # the EXIF tag ImageDescription, which holds ASCII
_LONG = 2048  # letters, from which on a text is compressed


def encode_image(
    image: NDArray[np.uint8] | Image.Image,
    records: ImageRecord | Sequence[ImageRecord],
    format_name: str = "png",
    quality: int = QUALITY,
) -> bytes:
    """Return an image as the bytes of a file, with the record of how it was made.

    Args:
        image: The image, uint8 [H, W, c] with c = 1 or 3, or an image of Pillow.
        records: How it was made; for a grid, one record for each of its images.
        format_name: One of `FORMATS`. JPEG and WebP are lossy.
        quality: The quality of JPEG and WebP, 1 to 100.

    Raises:
        RequestError: The format or the quality is another one.
    """
    check_choice("format", format_name, tuple(FORMATS))
    check_int("quality", quality, 1, 100)
    text = record_text([records] if isinstance(records, ImageRecord) else records)
    options: dict[str, Any] = {}
    if format_name == "png":
        info = PngImagePlugin.PngInfo()
        info.add_text("Software", f"mar-runtime {__version__}")
        info.add_itxt(_KEYWORD, text, zip=len(text) > _LONG)
        options["pnginfo"] = info
    else:
        exif = Image.Exif()
        exif[_DESCRIPTION] = text
        options |= {"exif": exif, "quality": quality}
    file = io.BytesIO()
    pixels = image if isinstance(image, Image.Image) else to_pil(image)
    pixels.save(file, format=format_name, **options)
    return file.getvalue()


def read_records(path: pathlib.Path) -> tuple[ImageRecord, ...]:
    """Return how the image in a file was made: one record, or those of all images of a grid.

    Raises:
        ImageFileError: It is no readable image, it carries no record, or what it carries is not one.
    """
    text = read_text(path, _KEYWORD, _DESCRIPTION)
    if text is None:
        raise ImageFileError(
            f"{printable(str(path))}: it does not say how it was made; mar did not write it, or its text was removed"
        )
    try:
        return parse_record_text(text)
    except SchemaError as error:
        raise ImageFileError(f"{printable(str(path))}: {printable(str(error))}") from None

"""Images as the content of files, and uploaded files as images."""

from __future__ import annotations

import io
import threading

import numpy as np
from numpy.typing import NDArray

from runtime.errors import RequestError
from runtime.image_files import WHITE, ImageBytes, read_image, read_size, read_transparency, to_pixels
from runtime.image_grid import to_pil
from runtime.image_records.encoding import encode_image
from runtime.model.family_config import FamilyConfig
from runtime.service.drawing import Shown

UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP")
"""The formats of images that can be uploaded, by Pillow's names."""

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""The media type of each format that is written."""

_READING = threading.Lock()  # Python's warnings, which reading an image catches, belong to all threads together


def encode_shown(shown: Shown, format_name: str, quality: int) -> bytes:
    """Return an image as the bytes of a file. Only a finished one carries how it was made.

    Args:
        shown: The image.
        format_name: One of `runtime.image_records.encoding.FORMATS`.
        quality: The quality of JPEG and WebP, 1 to 100.
    """
    if shown.record is not None:
        return encode_image(shown.pixels, shown.record, format_name, quality)
    file = io.BytesIO()
    to_pil(shown.pixels).save(file, format=format_name, quality=quality)
    return file.getvalue()


def uploaded_image(content: bytes, config: FamilyConfig) -> NDArray[np.uint8]:
    """Return the pixels of an uploaded image, uint8 [H, W, c] as the model makes them.

    Raises:
        RequestError: It is not readable, or has another size than the images of the model.
    """
    with _READING:
        image, _ = read_image(_checked("image", content, config), WHITE)
    return to_pixels(image, config.image_shape[-1])


def uploaded_mask(name: str, content: bytes, config: FamilyConfig) -> NDArray[np.bool_]:
    """Return an uploaded mask, bool [H, W], true where its alpha says that the image is regenerated.

    Args:
        name: What the file is, for messages.
        content: Its bytes.
        config: The config of the model.

    Raises:
        RequestError: It is not readable, has another size, or is opaque everywhere.
    """
    with _READING:
        mask = read_transparency(_checked(name, content, config))
    if not mask.any():
        raise RequestError(f"the {name} is opaque everywhere; make it transparent where the image is to change")
    return mask


def _checked(name: str, content: bytes, config: FamilyConfig) -> ImageBytes:
    """Return an uploaded file whose format and size are right; nothing was decoded yet."""
    file = ImageBytes(content, f"the {name}")
    width, height = read_size(file, UPLOAD_FORMATS)
    expected = config.image_shape[1], config.image_shape[0]
    if (width, height) != expected:
        raise RequestError(
            f"the {name} must have {expected[0]}x{expected[1]} pixels, as the model generates, found {width}x{height}"
        )
    return file

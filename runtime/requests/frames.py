"""Frames of a camera as the encoder of a tokenizer reads them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.model.engine_spec import Array

Float = NDArray[np.float32]


def encoder_input(frame: Array, height: int, width: int) -> Float:
    """Return pixels of -1..1, float32 [1, 3, height, width], of a frame [H, W, 3] as uint8 or of 0..1.

    A frame of another size is resized bilinearly, without antialiasing, as the published code does.
    """
    pixels = frame.astype(np.float32) / np.float32(255) if frame.dtype == np.uint8 else frame.astype(np.float32)
    if pixels.shape[:2] != (height, width):
        pixels = _resized(_resized(pixels, height, 0), width, 1)
    scaled = pixels * np.float32(255) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def _resized(pixels: Float, size: int, axis: int) -> Float:
    """Return pixels [H, W, 3] with `size` values along an axis, by linear interpolation between centres of pixels."""
    length = pixels.shape[axis]
    places = np.clip((np.arange(size) + 0.5) * (length / size) - 0.5, 0, length - 1)
    low = np.floor(places).astype(np.int64)
    high = np.minimum(low + 1, length - 1)
    share = np.expand_dims((places - low).astype(np.float32), axis=[other for other in range(3) if other != axis])
    resized: Float = np.take(pixels, low, axis) * (1 - share) + np.take(pixels, high, axis) * share
    return resized

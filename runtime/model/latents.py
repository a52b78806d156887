"""Conversions between latents and tokens, and between pixels and 8-bit images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def unpatchify(tokens: NDArray[np.float32], grid_shape: tuple[int, int], patch_size: int) -> NDArray[np.float32]:
    """Return the latents of tokens.

    Args:
        tokens: Tokens in raster order, float32 [B, L, D]; within a token, channels are outermost.
        grid_shape: The rows and columns of the grid of tokens.
        patch_size: The number of latent values along one side of a token.

    Returns:
        Latents, float32 [B, C, h, w].
    """
    batch, (rows, columns) = len(tokens), grid_shape
    cells = tokens.reshape(batch, rows, columns, -1, patch_size, patch_size)  # [B, h, w, c, p, p]
    parts = np.ascontiguousarray(cells.transpose(0, 3, 1, 4, 2, 5))  # [B, c, h, p, w, p]
    return parts.reshape(batch, -1, rows * patch_size, columns * patch_size)


def patchify(latents: NDArray[np.float32], patch_size: int) -> NDArray[np.float32]:
    """Return latents [B, C, h, w] as tokens in raster order [B, L, D]; the inverse of `unpatchify`."""
    batch, channels, height, width = latents.shape
    cells = latents.reshape(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    tokens = cells.transpose(0, 2, 4, 1, 3, 5)  # [B, h, w, c, p, p]
    return np.ascontiguousarray(tokens).reshape(batch, -1, channels * patch_size**2)


def to_uint8(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return pixels in -1..1, float32 [B, c, H, W], as images, uint8 [B, H, W, c]; other values are clipped."""
    scaled = np.clip(pixels.transpose(0, 2, 3, 1) * 127.5 + 127.5, 0, 255)
    images: NDArray[np.uint8] = np.rint(scaled).astype(np.uint8)
    return images


def from_uint8(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return images, uint8 [B, H, W, c], as pixels in -1..1, float32 [B, c, H, W]; the inverse of `to_uint8`."""
    pixels = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    scaled: NDArray[np.float32] = pixels / np.float32(127.5) - np.float32(1)
    return scaled


def enlarge(images: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return images [B, h, w, c] at H x W pixels, each of which is the nearest pixel of theirs: [B, H, W, c]."""
    rows, columns = (np.arange(side) * own // side for side, own in zip(size, images.shape[1:3], strict=True))
    return images[:, rows[:, None], columns]

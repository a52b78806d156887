"""Drawing a part of an image anew: what is known stands first in generation order, the rest is drawn as ever."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.errors import RequestError
from runtime.model.config import ModelConfig
from runtime.model.latents import patchify
from runtime.requests.validation import as_array

Bool = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class EditMask:
    """Where an image is drawn anew: `pixels` bool [H, W] as asked for, `tokens` bool [L] in raster order."""

    pixels: Bool
    tokens: Bool

    @property
    def known(self) -> int:
        """V, the tokens that are not drawn."""
        return int(len(self.tokens) - self.tokens.sum())


def check_mask(mask: ArrayLike, dilate: bool, config: ModelConfig) -> EditMask:
    """`mask`, true where to draw: of pixels [img_size, img_size], or of tokens [grid, grid].

    A token is drawn where any of its pixels is; with `dilate` its eight neighbours are too, since a
    latent near the hole knows of what was in it. Raises `RequestError`.
    """
    given = as_array("mask", mask)
    size, grid = config.img_size, config.grid
    if given.dtype != np.bool_ or given.shape not in ((size, size), (grid, grid)):
        raise RequestError(
            f"mask must be bool [{size}, {size}] (pixels) or [{grid}, {grid}] (tokens), found {given.dtype} "
            f"{list(given.shape)}"
        )
    step = size // grid
    pixels = given if given.shape == (size, size) else given.repeat(step, 0).repeat(step, 1)  # [H, W]
    tokens = pixels.reshape(grid, step, grid, step).any(axis=(1, 3))  # [grid, grid]
    if dilate:
        padded = np.pad(tokens, 1)
        tokens = np.any([padded[y : y + grid, x : x + grid] for y in range(3) for x in range(3)], axis=0)
    if not tokens.any():
        raise RequestError("mask marks nothing to draw")
    return EditMask(pixels, tokens.reshape(-1))


@dataclasses.dataclass(frozen=True)
class KnownImages:
    """What is known of B images: themselves, uint8 [B, H, W, c], or their latents, float32 [B, C, h, w]."""

    images: NDArray[np.uint8] | None = None
    latents: NDArray[np.float32] | None = None


def check_known(known: ArrayLike, batch: int, config: ModelConfig) -> KnownImages:
    """uint8 is an image [H, W, c], floats are latents [C, h, w]; for all images, or with B in front for each.

    Raises `RequestError`.
    """
    given, side = as_array("known", known), config.img_size // config.vae_stride
    pixels = given.dtype == np.uint8
    if pixels:
        shape = (config.img_size, config.img_size, config.vae_embed_dim if config.vae_stride == 1 else 3)
    else:
        shape = (config.vae_embed_dim, side, side)
    if not (pixels or given.dtype.kind == "f") or given.shape not in (shape, (batch, *shape)):
        raise RequestError(
            f"known must be an image, uint8 of shape {[config.img_size] * 2 + ['channels']}, or latents, floating "
            f"point of shape {[config.vae_embed_dim, side, side]}, alone or {batch} of them; found {given.dtype} "
            f"{list(given.shape)}"
        )
    if pixels:
        return KnownImages(images=np.broadcast_to(given, (batch, *shape)))
    with np.errstate(over="ignore"):
        latents = given.astype(np.float32)
    if not np.isfinite(latents).all():
        raise RequestError("known holds values that are not finite in float32")
    return KnownImages(latents=np.broadcast_to(latents, (batch, *shape)))


def order_known_first(order: NDArray[np.int64], hole: EditMask) -> NDArray[np.int64]:
    """Orders [B, L] with the tokens outside the hole before those inside, each group as it was."""
    drawn = hole.tokens[order]  # [B, L]
    return np.take_along_axis(order, np.argsort(drawn, axis=1, kind="stable"), axis=1)


def known_tokens(latents: NDArray[np.float32], order: NDArray[np.int64], known: int, patch: int) -> NDArray[np.float32]:
    """The first `known` tokens of each order [B, L], as [B, V, D], of latents [B, C, h, w]."""
    return np.take_along_axis(patchify(latents, patch), order[:, :known, None], axis=1)


def paste_known_pixels(drawn: NDArray[np.uint8], known: NDArray[np.uint8], hole: EditMask) -> NDArray[np.uint8]:
    """Drawn images [B, H, W, c] with every pixel outside the hole as it was."""
    return np.where(hole.pixels[None, :, :, None], drawn, known)

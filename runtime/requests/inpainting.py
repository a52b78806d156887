"""Editing a part of an image: the known tokens come first in generation order, the masked ones are generated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.checks import check_bool, truncate
from runtime.errors import RequestError
from runtime.model.family_config import FamilyConfig
from runtime.model.latents import patchify
from runtime.requests.validation import as_array, finite_float32
from runtime.sampling.constraints import check_editable
from runtime.storage.stored_files import array_sha256

Bool = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """An image and the part of it to regenerate, as an argument of `Generator.generate`.

    Attributes:
        known: The image to edit: pixels uint8 [H, W, c], or latents, floating point [C, h, w]. It is used for all
            images of the request; or give one for each, with B in front of the shape.
        mask: True where to regenerate: bool [H, W] of pixels, or bool [grid, grid] of tokens. A token is regenerated
            if any of its pixels is. The latents of all other tokens are returned unchanged.
        dilate: Whether the eight neighbours of each masked token are regenerated too. A latent beside the mask was
            encoded with what is under the mask in view, so it can carry traces of it.
        paste: Whether the pixels of a known image outside the mask are copied into the result. Otherwise they are
            decoded from latents, like the others.
    """

    known: ArrayLike
    mask: ArrayLike
    dilate: bool = False
    paste: bool = True


@dataclasses.dataclass(frozen=True)
class EditMask:
    """A checked mask, true where an image is regenerated.

    Attributes:
        pixels: Bool [H, W], as the caller gave it.
        tokens: Bool [L], in raster order.
    """

    pixels: Bool
    tokens: Bool

    @property
    def known(self) -> int:
        """V, the number of tokens that are not regenerated."""
        return int(len(self.tokens) - self.tokens.sum())


def check_mask(mask: ArrayLike, dilate: bool, config: FamilyConfig) -> EditMask:
    """Return the checked mask of an edit; `mask` and `dilate` are those of `Edit`.

    Raises:
        RequestError: The mask has another shape or dtype, or is false everywhere.
    """
    array = as_array("mask", mask)
    size, (rows, columns) = config.image_shape[:2], config.grid_shape
    if array.dtype != np.bool_ or array.shape not in (size, (rows, columns)):
        raise RequestError(
            f"mask must be bool {list(size)} (pixels) or {[rows, columns]} (tokens), found {array.dtype} "
            f"{list(array.shape)}"
        )
    step = size[0] // rows
    pixels = array if array.shape == size else array.repeat(step, 0).repeat(step, 1)  # [H, W]
    tokens = pixels.reshape(rows, step, columns, step).any(axis=(1, 3))  # [rows, columns]
    if dilate:
        padded = np.pad(tokens, 1)
        tokens = np.any([padded[y : y + rows, x : x + columns] for y in range(3) for x in range(3)], axis=0)
    if not tokens.any():
        raise RequestError("mask is false everywhere; set it to true where the image is to be regenerated")
    return EditMask(pixels, tokens.reshape(-1))


@dataclasses.dataclass(frozen=True)
class KnownImages:
    """The checked images of an edit; either `images` or `latents` is None.

    Attributes:
        images: Pixels, uint8 [B, H, W, c].
        latents: Latents, float32 [B, C, h, w].
        shared: Whether all are one image, so that it is encoded once.
    """

    images: NDArray[np.uint8] | None = None
    latents: NDArray[np.float32] | None = None
    shared: bool = False


def check_known(known: ArrayLike, batch: int, config: FamilyConfig) -> KnownImages:
    """Return the checked images of an edit of `batch` images; `known` is that of `Edit`.

    Raises:
        RequestError: The array has another shape or dtype, or values that are not finite.
    """
    array = as_array("known", known)
    pixels = array.dtype == np.uint8
    shape = config.image_shape if pixels else config.latent_shape
    if not (pixels or array.dtype.kind == "f") or array.shape not in (shape, (batch, *shape)):
        raise RequestError(
            f"known must be an image, uint8 of shape {[*config.image_shape[:2], 'channels']}, or latents, floating "
            f"point of shape {list(config.latent_shape)}, alone or {batch} of them; found {array.dtype} "
            f"{list(array.shape)}"
        )
    shared = array.shape == shape
    if pixels:
        return KnownImages(images=np.broadcast_to(array, (batch, *shape)), shared=shared)
    return KnownImages(latents=np.broadcast_to(finite_float32("known", array), (batch, *shape)), shared=shared)


@dataclasses.dataclass(frozen=True)
class CheckedEdit:
    """A checked edit; the fields are those of `Edit`."""

    mask: EditMask
    known: KnownImages
    dilate: bool
    paste: bool

    @property
    def pasted(self) -> NDArray[np.uint8] | None:
        """The images [B, H, W, c] whose pixels outside the mask are copied into the result; None for none."""
        return self.known.images if self.paste else None

    def given(self, place: int) -> dict[str, str]:
        """Return the hashes of the image and the mask of one of the images, by their names."""
        known = self.known.latents if self.known.images is None else self.known.images
        assert known is not None
        return {"image": array_sha256(known[place]), "mask": array_sha256(self.mask.pixels)}


def check_edit(edit: object, batch: int, config: FamilyConfig) -> CheckedEdit | None:
    """Return the checked edit of `batch` images; None for none.

    Raises:
        RequestError: It is no `Edit`, one of its fields is wrong, or the model cannot edit images.
    """
    if edit is None:
        return None
    if not isinstance(edit, Edit):
        raise RequestError(f"edit must be a runtime.Edit with known and mask, found {truncate(edit)}")
    check_editable(config)
    for name in ("dilate", "paste"):
        check_bool(name, getattr(edit, name))
    mask, known = check_mask(edit.mask, edit.dilate, config), check_known(edit.known, batch, config)
    return CheckedEdit(mask, known, bool(edit.dilate), bool(edit.paste))


def order_known_first(order: NDArray[np.int64], mask: EditMask) -> NDArray[np.int64]:
    """Return orders [B, L] with the known tokens before the masked ones; each group keeps its own order."""
    masked = mask.tokens[order]  # [B, L]
    return np.take_along_axis(order, np.argsort(masked, axis=1, kind="stable"), axis=1)


def select_known_tokens(
    latents: NDArray[np.float32], order: NDArray[np.int64], known: int, patch_size: int
) -> NDArray[np.float32]:
    """Return the first `known` tokens of each order [B, L] from latents [B, C, h, w], as [B, V, D]."""
    return np.take_along_axis(patchify(latents, patch_size), order[:, :known, None], axis=1)


def paste_known_pixels(
    generated: NDArray[np.uint8], edit: CheckedEdit, places: Sequence[int] | None = None
) -> NDArray[np.uint8]:
    """Return images with the pixels outside the mask replaced by those of the known images, if the edit pastes them.

    Args:
        generated: Generated images of the request, [B, H, W, c].
        edit: The edit of the request.
        places: Which images of the request they are; None for all.
    """
    if edit.pasted is None:
        return generated
    known = edit.pasted if places is None else edit.pasted[list(places)]
    return np.where(edit.mask.pixels[None, :, :, None], generated, known)

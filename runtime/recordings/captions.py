"""Captions as embeddings, with the images that they describe."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from runtime.errors import ConfigError, DataError
from runtime.model.latents import from_uint8, to_uint8
from runtime.recordings.recorded_arrays import ArraySpec, RecordedArrays


class Captions(RecordedArrays):
    """Images and their captions in an `.npz` file.

    `prompt_embeds` floating point [n, S, d] has the rows of the captions, `lengths` integer [n] how many of them each
    has; the others are not read. The images are `images` uint8 [n, H, W, 3], for a model of pixels, or `latents`
    floating point [n, C, h, w] of about unit variance, as an autoencoder makes them.
    """

    ARRAYS: ClassVar[Mapping[str, ArraySpec]] = {
        "prompt_embeds": ArraySpec("f", (None, None)),
        "lengths": ArraySpec("iu", ()),
        "images": ArraySpec("u", (None, None, 3), required=False),
        "latents": ArraySpec("f", (None, None, None), required=False),
    }
    NOUN = "caption"

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(path)
        self.pixels = "images" in self.arrays
        if self.pixels:
            self.tokenizer = "pixel"

    def _check(self) -> None:
        if ("images" in self.arrays) == ("latents" in self.arrays):
            raise DataError(f"{self._path}: expected one of the arrays images and latents")
        if "images" in self.arrays and self.arrays["images"].dtype != np.uint8:
            raise DataError(f"{self._path}: images must be uint8, found {self.arrays['images'].dtype}")
        lengths, rows = self.arrays["lengths"], self.arrays["prompt_embeds"].shape[1]
        if lengths.min() < 1 or lengths.max() > rows:
            raise DataError(
                f"{self._path}: lengths must be 1 to {rows}, the rows of prompt_embeds, found {lengths.min()} to "
                f"{lengths.max()}"
            )

    def sizes(self, config: Any) -> dict[str, Any]:
        """Return the sizes of captions and images. Raises `ConfigError`: a model of pixels has images."""
        _, rows, values = self.arrays["prompt_embeds"].shape
        if (config.image_stride == 1) != self.pixels:
            raise ConfigError(
                f"{self._path}: a model of images has image_stride 1, and one of latents that of their autoencoder, "
                f"found {config.image_stride}"
            )
        _, channels, height, width = self.latents([0]).shape
        side = {"image_height": height * config.image_stride, "image_width": width * config.image_stride}
        return {"text_token_dim": values, "text_token_len": rows, "image_dim": channels, **side}

    def latents(self, examples: Sequence[int]) -> NDArray[np.float32]:
        """Return the latents of some images, float32 [B, C, h, w]; those of pixels are -1..1."""
        chosen = list(examples)
        if self.pixels:
            return from_uint8(self.arrays["images"][chosen])
        latents: NDArray[np.float32] = self.arrays["latents"][chosen]
        return latents

    def images(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return latents of pixels [B, 3, h, w] as images, uint8 [B, h, w, 3]."""
        return to_uint8(latents)

    def request(self, examples: Sequence[int]) -> dict[str, Any]:
        """Return `prompt_embeds`."""
        rows, lengths = self.arrays["prompt_embeds"], self.arrays["lengths"]
        return {"prompt_embeds": [rows[example, : lengths[example]] for example in examples]}

    def recorded(self, examples: Sequence[int], config: Any) -> NDArray[np.float32]:
        """Return the latents of the images."""
        return self.latents(examples)

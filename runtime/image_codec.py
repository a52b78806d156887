"""From the tokens of a model to images, and from images to latents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.artifact.manifest import Manifest
from runtime.checks import check_finite
from runtime.errors import RequestError
from runtime.loops.host_loop import Engines
from runtime.model.families import drawn_grids
from runtime.model.latents import from_uint8, to_uint8, unpatchify
from runtime.requests.inpainting import KnownImages
from runtime.sampling.plan import Float


class ImageCodec:
    """Decodes latents to images and encodes images to latents, by the engines of an artifact that has them.

    Args:
        manifest: The manifest of the artifact.
        engines: Its engines.
    """

    def __init__(self, manifest: Manifest, engines: Engines) -> None:
        self._model, self._of_pixels = manifest.model, manifest.tokenizer == "pixel"
        self._engines = engines

    def latents(self, tokens: Float, order: NDArray[np.int64], grid: int = -1) -> Float:
        """Return the latents [B, C, h, w] of a grid, from the tokens of all grids [B, L, D] in generation order.

        Args:
            tokens: The tokens.
            order: The generation order, [B, L].
            grid: The number of the grid, in the order in which a model draws its grids.
        """
        grids = drawn_grids(self._model)
        sizes = [rows * columns for rows, columns in grids]
        start = sum(sizes[:grid])
        of_grid = slice(start, start + sizes[grid])
        by_position = np.empty_like(tokens[:, of_grid])
        np.put_along_axis(by_position, order[:, of_grid, None] - start, tokens[:, of_grid], axis=1)
        return unpatchify(by_position, grids[grid], self._model.patch_size)

    def decode(self, latents: NDArray[np.float32], batch_size: int) -> NDArray[np.uint8] | None:
        """Return the images uint8 [B, H, W, c] of latents [B, C, h, w], or None without a decoder.

        Raises:
            BackendError: The decoder failed, or gave values that are not finite.
        """
        if self._of_pixels:
            return to_uint8(latents)
        decoder = self._engines.decoder
        if decoder is None:
            return None
        decoded = []
        for start in range(0, len(latents), batch_size):
            (pixels,) = decoder(latents=latents[start : start + batch_size])
            check_finite(pixels, "the decoder")
            decoded.append(to_uint8(pixels))
        return np.concatenate(decoded)

    def encode(self, known: KnownImages) -> NDArray[np.float32]:
        """Return the latents [B, C, h, w] of known images.

        Raises:
            RequestError: They are images, and the artifact has no encoder.
            BackendError: The encoder failed.
        """
        if known.latents is not None:
            return known.latents
        assert known.images is not None
        if self._of_pixels:
            return from_uint8(known.images)
        encoder = self._engines.encoder
        if encoder is None:
            raise RequestError(
                "this artifact has no encoder, so it cannot read images; export it with --encoder, or give latents"
            )
        pixels = from_uint8(known.images[:1] if known.shared else known.images)  # [B or 1, c, H, W]
        latents = np.concatenate([encoder(image=pixels[i : i + 1])[0] for i in range(len(pixels))])
        return np.broadcast_to(latents, (len(known.images), *latents.shape[1:]))

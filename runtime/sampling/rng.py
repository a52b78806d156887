"""Every random number of an image, as a function of the image: (seed, index, stream).

Philox is counter-based (Salmon et al., SC11): the key names the image, the counter's last word the
stream. So image 7 of seed 3 draws the same numbers in any batch, on any backend, and can be replayed.
Stream 0 is the order, 1 the first noise, 2 + s the noise of diffusion step s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.model.config import ModelConfig

TOKEN_ORDERS = ("random", "raster", "checkerboard")

_ORDER_STREAM = 0
_NOISE_STREAM = 1


def _philox(seed: int, index: int, stream: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, index], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64))


def image_order(seed: int, index: int, grid: int, kind: str = "random") -> NDArray[np.int64]:
    """The generation order of an image, first generated first: a permutation of its grid x grid positions.

    `kind` is one of `TOKEN_ORDERS`. `checkerboard` goes from coarse to fine (GtR, arXiv 2510.17171): the
    squares of one colour are halved by their diagonals, then come all those of the other colour, which
    by then have four known neighbours each; random within each of the three sets.
    """
    if kind == "raster":
        return np.arange(grid * grid, dtype=np.int64)
    keys = _philox(seed, index, _ORDER_STREAM).random_raw(grid * grid)
    row, column = np.divmod(np.arange(grid * grid), grid)
    diagonal = (row + column) % 4
    stage = np.where(diagonal % 2, 2, diagonal // 2) if kind == "checkerboard" else np.zeros_like(row)
    return np.lexsort((keys, stage)).astype(np.int64)


def image_noise(seed: int, index: int, steps: int, length: int, channels: int) -> NDArray[np.float32]:
    """Standard normal noise by token position, float32 [T + 1, L, D]: row 0 starts the chain."""
    return np.stack(
        [
            np.random.Generator(_philox(seed, index, _NOISE_STREAM + row)).standard_normal(
                (length, channels), np.float32
            )
            for row in range(steps + 1)
        ]
    )


def seeded_order(seed: int, indices: Sequence[int], config: ModelConfig, kind: str = "random") -> NDArray[np.int64]:
    """The generation orders of several images of a model, [B, L]; `kind` is one of `TOKEN_ORDERS`."""
    return np.stack([image_order(seed, index, config.grid, kind) for index in indices])


def seeded_noise(seed: int, indices: Sequence[int], steps: int, config: ModelConfig) -> NDArray[np.float32]:
    """The noise of several images of a model by token position, float32 [T + 1, B, L, D]."""
    noise = np.empty((steps + 1, len(indices), config.tokens, config.token_channels), np.float32)
    for image, index in enumerate(indices):
        noise[:, image] = image_noise(seed, index, steps, config.tokens, config.token_channels)
    return noise

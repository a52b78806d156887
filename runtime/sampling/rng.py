"""The random numbers of an image, which depend only on its seed, its index and the stream.

Philox is a counter-based generator (Salmon et al., SC11). Its key is (seed, index), and the last word of its counter is
the stream. So image 7 of seed 3 has the same random numbers in any batch and on any backend. Stream 0 is the token
order, stream 1 the first noise, and stream 2 + s the noise of diffusion step s. A family that draws several grids has
stream 2^32 + n for the order of grid n, and more rows of noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.model.families import drawn_grids, drawn_tokens
from runtime.model.family_config import FamilyConfig

TOKEN_ORDERS = ("random", "raster", "checkerboard")
"""The kinds of generation order, see `image_order`."""

_ORDER_STREAM = 0
_NOISE_STREAM = 1
_LATER_ORDER_STREAM = 2**32


def _philox(seed: int, index: int, stream: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, index], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64))


def image_order(
    seed: int, index: int, grid_shape: tuple[int, int], kind: str = "random", grid: int = 0
) -> NDArray[np.int64]:
    """Return the generation order of one image: int64 [L], token positions, first generated first.

    Args:
        seed: The seed, 0 to 2^64 - 1.
        index: The number of the image in the sequence of the seed, 0 to 2^64 - 1.
        grid_shape: The rows and columns of the grid of tokens; L is their product.
        kind: `random`; `raster`, row by row; or `checkerboard`, from coarse to fine (GtR, arXiv 2510.17171): first one
            half of the squares of one colour, chosen by their diagonals, then the other half, then all squares of the
            other colour, each of which has four known neighbours by then. Within each of these sets the order is
            random.
        grid: The number of the grid, in the order in which the family draws them.
    """
    length = math.prod(grid_shape)
    if kind == "raster":
        return np.arange(length, dtype=np.int64)
    stream = _LATER_ORDER_STREAM + grid if grid else _ORDER_STREAM
    keys = _philox(seed, index, stream).random_raw(length)
    row, column = np.divmod(np.arange(length), grid_shape[1])
    diagonal = (row + column) % 4
    stage = np.where(diagonal % 2, 2, diagonal // 2) if kind == "checkerboard" else np.zeros_like(row)
    return np.lexsort((keys, stage)).astype(np.int64)


def image_noise(seed: int, index: int, steps: int, length: int, channels: int) -> NDArray[np.float32]:
    """Return the noise of one image: standard normal, by token position, float32 [T + 1, L, D].

    Row 0 is the start of the diffusion chain, row 1 + s the noise of step s.

    Args:
        seed: The seed, 0 to 2^64 - 1.
        index: The number of the image in the sequence of the seed.
        steps: T, the number of diffusion steps.
        length: L, the number of tokens.
        channels: D, the number of values of a token.
    """
    return np.stack(
        [
            np.random.Generator(_philox(seed, index, _NOISE_STREAM + row)).standard_normal(
                (length, channels), np.float32
            )
            for row in range(steps + 1)
        ]
    )


def seeded_order(
    seed: int | Sequence[int], indices: Sequence[int], config: FamilyConfig, kind: str = "random"
) -> NDArray[np.int64]:
    """Return the generation orders of images, int64 [B, L]; see `image_order`.

    Of several grids, the order of each follows that of the grid before it, with positions that go on: int64 [B, P].

    Args:
        seed: The seed of all images, or one for each.
        indices: The number of each image in the sequence of its seed, B of them.
        config: The config of the model.
        kind: One of `TOKEN_ORDERS`.
    """
    orders, start = [], 0
    for number, grid in enumerate(drawn_grids(config)):
        of_images = [start + image_order(*image, grid, kind, number) for image in _images(seed, indices)]
        orders.append(np.stack(of_images))
        start += orders[-1].shape[1]
    return np.concatenate(orders, axis=1)


def seeded_noise(
    seed: int | Sequence[int], indices: Sequence[int], steps: int, config: FamilyConfig
) -> NDArray[np.float32]:
    """Return the noise of images, by token position, float32 [T + 1, B, L, D]; see `image_noise` and `seeded_order`.

    Of several grids it has the positions of all, and `steps` is `runtime.sampling.plan.Plan.noise_steps`.
    """
    tokens = drawn_tokens(config)
    noise = np.empty((steps + 1, len(indices), tokens, config.token_channels), np.float32)
    for place, (image_seed, index) in enumerate(_images(seed, indices)):
        noise[:, place] = image_noise(image_seed, index, steps, tokens, config.token_channels)
    return noise


def _images(seed: int | Sequence[int], indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the seed and the index of each image."""
    seeds = itertools.repeat(seed, len(indices)) if isinstance(seed, int) else seed
    yield from zip(seeds, indices, strict=True)

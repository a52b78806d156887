"""A codebook for the tokens of a dataset: k-means (Lloyd, 1982) on a sample of them, from k-means++'s first centres."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.checks import pluralize
from runtime.errors import DataError
from runtime.model.config import ModelConfig
from runtime.model.latents import patchify
from training.data.datasets import UnreadableImageError
from training.data.latent_dataset import LatentDataset

_TOKENS = 65_536  # of the sample
_ROUNDS = 25
_AT_ONCE = 4096  # points whose distances to all centres are held together

Floats = NDArray[np.float32]


def fit_codebook(source: LatentDataset, config: ModelConfig, seed: int) -> Floats:
    """`config.codebook_size` vectors for the tokens of `source`, [codes, D], the same for the same seed. Raises `DataError`."""
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(source.labels))[: -(-_TOKENS // config.tokens)]
    tokens = np.concatenate([_tokens(source, config, int(index), random) for index in chosen])  # [n, D]
    different = len(np.unique(tokens, axis=0))
    if different < config.codebook_size:
        raise DataError(
            f"a codebook of {config.codebook_size} codes needs as many different tokens, found {different} in "
            f"{pluralize(len(chosen), 'image')}; ask for fewer codes"
        )
    return kmeans(tokens, config.codebook_size, random)


def kmeans(points: Floats, centres: int, random: np.random.Generator, rounds: int = _ROUNDS) -> Floats:
    """The `centres` [k, D] that points [n, D] lie nearest to, after `rounds` of moving each to its points' mean."""
    found = _spread_out(points, centres, random)
    for _ in range(rounds):
        nearest = _nearest(points, found)  # [n]
        counts = np.bincount(nearest, minlength=centres)
        sums = np.stack([np.bincount(nearest, column, centres) for column in points.T], axis=1)  # [k, D]
        held = counts > 0  # one that has no points stays where it is
        found[held] = (sums[held] / counts[held, None]).astype(np.float32)
    return found


def _spread_out(points: Floats, centres: int, random: np.random.Generator) -> Floats:
    """First centres: each a point drawn by its squared distance from those before it (k-means++, SODA 2007)."""
    found = np.empty((centres, points.shape[1]), np.float32)
    found[0] = points[random.integers(len(points))]
    distances = np.square(points - found[0]).sum(axis=1)  # [n], to the nearest centre so far
    for number in range(1, centres):
        found[number] = points[random.choice(len(points), p=distances / distances.sum())]
        np.minimum(distances, np.square(points - found[number]).sum(axis=1), out=distances)
    return found


def _nearest(points: Floats, centres: Floats) -> NDArray[np.int64]:
    """The centre that each point [n, D] lies nearest to, [n]."""
    squares, found = np.square(centres).sum(axis=1), np.empty(len(points), np.int64)
    for start in range(0, len(points), _AT_ONCE):
        part = points[start : start + _AT_ONCE]
        found[start : start + _AT_ONCE] = (squares - 2 * part @ centres.T).argmin(axis=1)
    return found


def _tokens(source: LatentDataset, config: ModelConfig, index: int, random: np.random.Generator) -> Floats:
    """Those of one image, [L, D]; none of one that cannot be read."""
    try:
        return patchify(source.latent(index, False, random)[None], config.patch_size)[0]
    except UnreadableImageError:  # training will tell
        return np.empty((0, config.token_channels), np.float32)

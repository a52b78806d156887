"""The codebook of a VQ head: the k-means centres of a sample of a dataset's tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.checks import pluralize
from runtime.errors import DataError
from runtime.model.config import ModelConfig
from runtime.model.latents import patchify
from training.data.latent_dataset import LatentDataset
from training.data.unreadable_images import UnreadableImageError

_SAMPLED_TOKENS = 65_536
_ITERATIONS = 25


def fit_codebook(dataset: LatentDataset, config: ModelConfig, seed: int) -> NDArray[np.float32]:
    """Fit a codebook to the tokens of a dataset.

    Args:
        dataset: The latents; about 65,536 tokens of it are used.
        config: The model, which says how latents form tokens and how many vectors the codebook has.
        seed: The seed of the choice of images and of k-means; the same seed gives the same codebook, bit for bit.

    Returns:
        The vectors of the codebook, float32 [codebook_size, D].

    Raises:
        DataError: The tokens have fewer different values than the codebook has vectors.
    """
    random = np.random.default_rng(seed)
    chosen = random.permutation(len(dataset.labels))[: -(-_SAMPLED_TOKENS // config.tokens)]
    tokens = np.concatenate([_tokens(dataset, config, int(index), random) for index in chosen])  # [n, D]
    different = len(np.unique(tokens, axis=0))
    if different < config.codebook_size:
        raise DataError(
            f"a codebook of {config.codebook_size} vectors needs as many different tokens, found {different} in "
            f"{pluralize(len(chosen), 'image')}; choose a smaller codebook_size"
        )
    return kmeans_centers(tokens, config.codebook_size, int(random.integers(2**32)))


def kmeans_centers(
    points: NDArray[np.float32], count: int, seed: int, iterations: int = _ITERATIONS
) -> NDArray[np.float32]:
    """Return the centers [count, D] of points [n, D] by k-means (Lloyd, 1982), initialized by k-means++ (SODA 2007).

    Args:
        points: At least `count` different points.
        count: The number of centers.
        seed: The seed of the initial centers, below 2^32.
        iterations: The largest number of iterations, at least 1.
    """
    from sklearn.cluster import KMeans  # takes a second to import, and only a VQ head needs it
    from threadpoolctl import threadpool_limits

    # Several threads add up their parts of a mean in any order, so processes that train together would differ.
    with threadpool_limits(1):
        kmeans = KMeans(count, n_init=1, max_iter=iterations, random_state=seed).fit(points)
    return np.asarray(kmeans.cluster_centers_, np.float32)


def _tokens(
    dataset: LatentDataset, config: ModelConfig, index: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """Return the tokens of one image, float32 [L, D]; [0, D] where it cannot be read, which training reports later."""
    try:
        return patchify(dataset.latent(index, False, random)[None], config.patch_size)[0]
    except UnreadableImageError:
        return np.empty((0, config.token_channels), np.float32)

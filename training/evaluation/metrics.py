"""Metrics of image sets from network features: Fréchet and kernel distance, precision and recall, Inception Score."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 3  # arXiv 1904.06991, section 3
SPLITS = 10  # arXiv 1606.03498, section 4
_ROWS = 1000  # of a matrix of distances at a time


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and covariance of the features of an image set; the Fréchet distance compares two of them.

    Attributes:
        mean: float64 [d].
        covariance: float64 [d, d].
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def frechet_distance(a: Moments, b: Moments) -> float:
    """Compute the Fréchet distance of two Gaussians with the given moments.

    It is |m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2), where m are the means and A and B the covariances (the FID of
    arXiv 1706.08500, equation 6). Smaller is better; equal moments give 0.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root_a = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    # (A B)^1/2 and (A^1/2 B A^1/2)^1/2 have the same trace, and the second is symmetric.
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh(root_a @ b.covariance @ root_a), 0, None)).sum()
    shift = np.square(a.mean - b.mean).sum()
    return float(shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap)


def kernel_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Compute the squared maximum mean discrepancy of two sets of features (the KID of arXiv 1801.01401, section 4).

    The kernel is (x . y / d + 1)^3. The estimate has no bias, so it can be below 0; smaller is better. It is over all
    pairs, so it is the mean that the published code estimates from random subsets.

    Args:
        a: Features [m, d] of at least two images.
        b: Features [n, d] of at least two images.
    """
    return kernel_distance_and_influence(a, b)[0]


def kernel_distance_and_influence(
    a: NDArray[np.floating], b: NDArray[np.floating]
) -> tuple[float, NDArray[np.float64]]:
    """Compute `kernel_distance`, and how much each image of `a` moves it.

    Returns:
        The distance; and for each row of `a` twice the difference of its mean kernel with the other rows of `a` and
        with those of `b`, float64 [m]: m times what the row changes, to first order.
    """
    own = (_kernel_sums(a, a) - _kernel_diagonal(a)) / (len(a) - 1)  # [m]
    other = _kernel_sums(a, b) / len(b)  # [m]
    within_b = (_kernel_sums(b, b).sum() - _kernel_diagonal(b).sum()) / (len(b) * (len(b) - 1))
    return float(own.mean() + within_b - 2 * other.mean()), 2 * (own - other)


def precision_recall(real: NDArray[np.floating], generated: NDArray[np.floating]) -> tuple[float, float]:
    """Compute improved precision and recall (arXiv 1904.06991, equations 1 and 2, with k = 3).

    The manifold of an image set is the union of a ball around the features of each image. The radius of a ball is the
    distance from its centre to the third-nearest other image of the set.

    Args:
        real: Features of the real images, [m, d].
        generated: Features of the generated images, [n, d].

    Returns:
        Precision, the share of generated images within the manifold of the real ones; and recall, the share of real
        images within the manifold of the generated ones. Both are in 0..1.
    """
    return _share_within(generated, real), _share_within(real, generated)


def inception_score(scores: NDArray[np.floating]) -> float:
    """Compute the Inception Score exp(E KL(p(y|x) || p(y))) (arXiv 1606.03498, section 4).

    Args:
        scores: Logits of a classifier for each image, [n, classes].

    Returns:
        The mean over ten consecutive parts of the images, from 1 (worst) to the number of classes.
    """
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    log_conditional = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # log p(y|x), [n, classes]
    split_scores = []
    for split in np.array_split(log_conditional, min(SPLITS, len(log_conditional))):
        # log p(y) [classes] is computed from logarithms, because p(y) itself can underflow to 0.
        log_marginal = np.logaddexp.reduce(split, axis=0) - np.log(len(split))
        split_scores.append(np.exp((np.exp(split) * (split - log_marginal)).sum(axis=1).mean()))
    return float(np.mean(split_scores))


def _kernel_sums(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Sum the kernel of KID of each row of a [m, d] over all rows of b [n, d], [m]."""
    b = b.astype(np.float64).T / b.shape[1]
    sums = []
    for start in range(0, len(a), _ROWS):
        base = a[start : start + _ROWS].astype(np.float64) @ b + 1
        sums.append((base * base * base).sum(axis=1))  # numpy's power takes ten times as long
    return np.concatenate(sums)


def _kernel_diagonal(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Compute the kernel of KID of each row of x [m, d] with itself, [m]."""
    return np.asarray((np.square(x.astype(np.float64)).sum(axis=1) / x.shape[1] + 1) ** 3)


def _share_within(points: NDArray[np.floating], manifold: NDArray[np.floating]) -> float:
    """Compute the share of `points` [n, d] that are in one of the balls around those of `manifold` [m, d]."""
    neighbours = min(NEIGHBOURS, len(manifold) - 1)  # the nearest of each point is the point itself
    radii = np.concatenate(
        [np.partition(rows, neighbours, axis=1)[:, neighbours] for rows in _distances(manifold, manifold)]
    )
    inside = [(rows <= radii).any(axis=1) for rows in _distances(points, manifold)]
    return float(np.concatenate(inside).mean())


def _distances(a: NDArray[np.floating], b: NDArray[np.floating]) -> Iterator[NDArray[np.float64]]:
    """Yield the squared distances of a [n, d] from b [m, d] in blocks of rows, [<= 1000, m] each."""
    b = b.astype(np.float64)
    lengths = np.square(b).sum(axis=1)
    for start in range(0, len(a), _ROWS):
        rows = a[start : start + _ROWS].astype(np.float64)
        yield np.square(rows).sum(axis=1)[:, None] + lengths - 2 * rows @ b.T

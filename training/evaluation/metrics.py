"""What is told of a set of images from their features: its distance from real ones, how good, how varied."""

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
    """The Gaussian that features are taken for: `mean` float64 [d], `covariance` float64 [d, d]."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> Moments:
        """Those of features [n, d], n of at least 2."""
        wide = features.astype(np.float64)
        return cls(wide.mean(axis=0), np.cov(wide, rowvar=False))


def frechet(a: Moments, b: Moments) -> float:
    """|mean difference|^2 + tr(A + B - 2 (A B)^1/2), A and B the covariances (arXiv 1706.08500)."""
    values, vectors = np.linalg.eigh(a.covariance)
    root_a = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    # (A B)^1/2 and (A^1/2 B A^1/2)^1/2 have the same trace, and the second is symmetric.
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh(root_a @ b.covariance @ root_a), 0, None)).sum()
    shift = np.square(a.mean - b.mean).sum()
    return float(shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap)


def precision_recall(real: NDArray[np.floating], drawn: NDArray[np.floating]) -> tuple[float, float]:
    """How much of `drawn` [n, d] lies among `real` [m, d], and how much of `real` among `drawn` (arXiv 1904.06991).

    An image lies among others if it is no further from one of them than that one's third-nearest neighbour.
    """
    return _share_within(drawn, real), _share_within(real, drawn)


def inception_score(scores: NDArray[np.floating]) -> float:
    """exp(mean KL(p(y|x) || p(y))) of logits [n, classes], the mean over ten parts in turn (arXiv 1606.03498)."""
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # log p(y|x), [n, classes]
    parts = []
    for part in np.array_split(logs, min(SPLITS, len(logs))):
        of_part = np.logaddexp.reduce(part, axis=0) - np.log(len(part))  # log p(y), also where p(y) itself is too small
        parts.append(np.exp((np.exp(part) * (part - of_part)).sum(axis=1).mean()))
    return float(np.mean(parts))


def _share_within(points: NDArray[np.floating], manifold: NDArray[np.floating]) -> float:
    """The share of `points` [n, d] that lie in one of the balls around those of `manifold` [m, d]."""
    neighbours = min(NEIGHBOURS, len(manifold) - 1)  # the nearest of each is itself
    radii = np.concatenate(
        [np.partition(rows, neighbours, axis=1)[:, neighbours] for rows in _distances(manifold, manifold)]
    )
    inside = [(rows <= radii).any(axis=1) for rows in _distances(points, manifold)]
    return float(np.concatenate(inside).mean())


def _distances(a: NDArray[np.floating], b: NDArray[np.floating]) -> Iterator[NDArray[np.float64]]:
    """Squared distances of a [n, d] from b [m, d], in blocks of rows [<= 1000, m]."""
    wide = b.astype(np.float64)
    lengths = np.square(wide).sum(axis=1)
    for start in range(0, len(a), _ROWS):
        rows = a[start : start + _ROWS].astype(np.float64)
        yield np.square(rows).sum(axis=1)[:, None] + lengths - 2 * rows @ wide.T

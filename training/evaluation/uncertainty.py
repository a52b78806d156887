"""How far the metrics of an image set lie from those of another choice of as many images, and of all images.

A *standard error* is the standard deviation of a metric over choices of the generated images; the real images stay the
same. It follows from how much each image moves the metric (its influence function). The *bias* is how much too large
the metric is because the images are not infinitely many. It falls as 1/n (arXiv 1911.07023, section 3), so it is about
the difference between the mean of the two halves of the images and all of them.

`docs/benchmarks/uncertainty.md` compares both with repeated choices of images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.feature_networks import FeatureStatistics
from training.evaluation.metrics import Moments, frechet_distance

_SMALLEST = 1e-10  # share of the largest variance below which a direction is constant


@dataclasses.dataclass(frozen=True)
class FrechetUncertainty:
    """The uncertainty of a Fréchet distance.

    Attributes:
        standard_error: Its standard deviation over choices of the images.
        bias: How much too large it is.
    """

    standard_error: float
    bias: float


def uncertainty_of(images: FeatureStatistics, real: FeatureStatistics) -> dict[str, Any]:
    """Return the uncertainty of the metrics of an image set, for JSON.

    Returns:
        `standard_error` of `top1_accuracy` and `frechet`, and `frechet_bias`; None where it is not known.
    """
    frechet = frechet_uncertainty(images.sample, images.images, real.moments)
    accuracy = images.top1_accuracy
    return {
        "frechet_bias": None if frechet is None else frechet.bias,
        "standard_error": {
            "top1_accuracy": None if accuracy is None else share_standard_error(accuracy, images.images),
            "frechet": None if frechet is None else frechet.standard_error,
        },
    }


def with_standard_error(metrics: Mapping[str, Any], name: str, form: str) -> str:
    """Return a metric as text, with its standard error after ± where it is known; nothing without the metric.

    Args:
        metrics: The metrics of an image set, with what `uncertainty_of` returns.
        name: The metric.
        form: How both numbers are written, such as `{:.1%}`.
    """
    numbers = (metrics.get(name), metrics.get("standard_error", {}).get(name))
    return " ± ".join(form.format(number) for number in numbers if number is not None)


def frechet_uncertainty(features: NDArray[np.floating], images: int, real: Moments) -> FrechetUncertainty | None:
    """Return the uncertainty of the Fréchet distance of an image set from the real images.

    Args:
        features: The features [m, d] of the images, or of the first of them.
        images: The number of images of the set, n >= m.
        real: The moments of the real images.

    Returns:
        None where half of the features do not determine a covariance: m < 2 (d + 1).
    """
    count, channels = features.shape
    if count < 2 * (channels + 1):
        return None
    exact = features.astype(np.float64)
    whole = moments(exact)
    error = mean_standard_error(frechet_influence(exact, whole, real), images)
    # Classes come in turn, so every second image would be of every second class.
    shuffled = np.random.default_rng(0).permutation(exact)
    halves = [frechet_distance(moments(half), real) for half in np.array_split(shuffled, 2)]
    excess = sum(halves) / 2 - frechet_distance(whole, real)
    return FrechetUncertainty(error, excess * count / images)


def frechet_influence(features: NDArray[np.float64], own: Moments, real: Moments) -> NDArray[np.float64]:
    """Return how much each image moves the Fréchet distance, [n]: n times what it changes, to first order.

    It is 2 (m - r) . c + c' (I - T) c for c = x - m, where m and r are the means, and T is the optimal transport
    between the two Gaussians, A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2 for the covariances A and B. It has a mean of about a
    constant, which does not matter.

    Args:
        features: The features [n, d].
        own: Their moments.
        real: The moments of the real images.
    """
    values, vectors = np.linalg.eigh(own.covariance)
    kept = values > _SMALLEST * values.max()
    root, inverse = np.sqrt(values[kept]), 1 / np.sqrt(values[kept])
    basis = vectors[:, kept]  # [d, k]
    inner = root[:, None] * (basis.T @ real.covariance @ basis) * root  # A^1/2 B A^1/2, in the basis
    squares, directions = np.linalg.eigh(inner)
    middle = directions * np.sqrt(np.clip(squares, 0, None)) @ directions.T
    change = np.eye(len(root)) - inverse[:, None] * middle * inverse  # I - T
    centred = features - own.mean
    coordinates = centred @ basis
    return np.asarray(2 * centred @ (own.mean - real.mean) + np.sum(coordinates @ change * coordinates, axis=1))


def mean_standard_error(influence: NDArray[np.float64], images: int) -> float:
    """Return the standard error of a metric of `images` images from how much each of them moves it, [m]."""
    return float(influence.std(ddof=1)) / math.sqrt(images)


def share_standard_error(share: float, images: int) -> float:
    """Return the standard error of a share of images, such as the top-1 accuracy: that of a binomial distribution."""
    return math.sqrt(share * (1 - share) / images)


def moments(features: NDArray[np.float64]) -> Moments:
    """Return the moments of features [n, d] of at least two images."""
    return Moments(features.mean(axis=0), np.cov(features, rowvar=False))

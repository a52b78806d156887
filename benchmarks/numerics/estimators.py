"""Bias and spread of the Fréchet distance, the kernel distance and others against the number of images.

Image sets of each size are chosen from a large set, and compared with real images that stay the same. What choices of a
size have in common is the bias; how they differ is the spread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluation.metrics import Moments, frechet_distance, kernel_distance_and_influence
from training.evaluation.uncertainty import frechet_uncertainty, mean_standard_error, moments

SIZES = (100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)
CHOICES = 20
"""Choices of images of each size."""
FEW_CHOICES = 8
"""The same where a distance takes seconds, as with the 2,048 features of Inception."""
MOST_PAIRS = 2_000
"""The most images whose kernel distance is computed: it compares all pairs."""

Features = NDArray[np.float32]


def choices(count: int, size: int, repeats: int) -> Iterator[NDArray[np.int64]]:
    """Yield `repeats` choices of `size` of `count` images; they have no image in common as long as there are enough."""
    random, per_round = np.random.default_rng(size), count // size
    for number in range(repeats):
        if number % per_round == 0:
            order = random.permutation(count)
        start = number % per_round * size
        yield order[start : start + size]


def spread(values: Sequence[float], size: int, count: int) -> float:
    """Return the standard deviation of a metric over choices of `size` images, as if there were infinitely many.

    Choices that have images in common differ too little: by the factor sqrt(1 - size / count), on average.
    """
    overlap = size / count if len(values) * size > count else 0.0
    return float(np.std(values, ddof=1) / np.sqrt(1 - overlap))


def measure_sizes(
    images: Callable[[int], Iterable[Features]], count: int, real: Features, sizes: Iterable[int]
) -> list[dict[str, Any]]:
    """Measure the distances of image sets of each size from the real images.

    Args:
        images: Returns the features [size, d] of several sets of a size.
        count: The number of images that the sets are chosen from.
        real: The features of the real images, [r, d].
        sizes: The numbers of images.

    Returns:
        For each size `images`, and for `frechet` and `kernel_distance` the number of `choices`, the `mean` and the
        `spread`, and the mean of the `standard_error` and of the `bias` that `training.evaluation.uncertainty` expects.
    """
    of_real, rows = moments(real.astype(np.float64)), []
    for size in sizes:
        frechet = _Measured()
        kernel = _Measured()
        for features in images(size):
            uncertainty = frechet_uncertainty(features, size, of_real)
            frechet.add(
                frechet_distance(moments(features.astype(np.float64)), of_real),
                None if uncertainty is None else (uncertainty.standard_error, uncertainty.bias),
            )
            if size <= MOST_PAIRS:
                distance, influence = kernel_distance_and_influence(features, real[:MOST_PAIRS])
                kernel.add(distance, (mean_standard_error(influence, size), 0.0))
        rows.append({"images": size, "frechet": frechet.row(size, count), "kernel_distance": kernel.row(size, count)})
        print(rows[-1])
    return rows


@dataclasses.dataclass
class _Measured:
    """The values of a metric for choices of one size, and their expected standard errors and biases."""

    values: list[float] = dataclasses.field(default_factory=list)
    expected: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    def add(self, value: float, expected: tuple[float, float] | None) -> None:
        self.values.append(value)
        if expected is not None:
            self.expected.append(expected)

    def row(self, size: int, count: int) -> dict[str, float | int | None] | None:
        """Return what `measure_sizes` returns for the metric; None if it was not measured."""
        if not self.values:
            return None
        error, bias = np.mean(self.expected, axis=0).tolist() if self.expected else (None, None)
        return {
            "choices": len(self.values),
            "mean": float(np.mean(self.values)),
            "spread": spread(self.values, size, count),
            "standard_error": error,
            "bias": bias,
        }


def measure_set(
    features: Features, real: Features, sizes: Iterable[int] = SIZES, repeats: int = CHOICES
) -> dict[str, Any]:
    """Measure choices of a set of images, for all sizes that it has, and the whole set.

    Args:
        features: The features of the set, [n, d].
        real: The features of the real images, [r, d].
        sizes: The numbers of images.
        repeats: The choices of each size.
    """
    count = len(features)

    def chosen(size: int) -> Iterator[Features]:
        return (features[rows] for rows in choices(count, size, repeats))

    rows = measure_sizes(chosen, count, real, [size for size in sizes if size < count])
    of_real = moments(real.astype(np.float64))
    uncertainty = frechet_uncertainty(features, count, of_real)
    return {
        "images": count,
        "real": len(real),
        "features": features.shape[1],
        "rows": rows,
        "frechet": frechet_distance(moments(features.astype(np.float64)), of_real),
        "frechet_standard_error": uncertainty and uncertainty.standard_error,
        "frechet_bias": uncertainty and uncertainty.bias,
    }


def bias_of_perfect_images(own: Moments, images: int) -> float:
    """Return the Fréchet distance that images have from Gaussian real images of the same distribution.

    The true distance is 0, so all of it is bias. It is the expectation to the order of 1/n: of the sample's mean tr A,
    and of its covariance the sum of a_i a_j (1 + [i = j]) / (2 (a_i + a_j)) over the variances a of A, both over n.

    Args:
        own: The moments of the real images.
        images: n, which must be much larger than the number of features.
    """
    values = np.clip(np.linalg.eigvalsh(own.covariance), 0, None)
    values = values[values > 1e-12 * values.max()]
    products = np.outer(values, values) * (1 + np.eye(len(values)))
    return float(values.sum() + (products / np.add.outer(values, values)).sum() / 2) / images


def perfect_images(features: Features, sizes: Iterable[int]) -> dict[str, Any]:
    """Return the bias of perfect images by their number, for those sizes that are larger than the features."""
    own, channels = moments(features.astype(np.float64)), features.shape[1]
    rows = [{"images": size, "mean": bias_of_perfect_images(own, size)} for size in sizes if size > channels]
    return {"images": len(features), "features": channels, "rows": rows}

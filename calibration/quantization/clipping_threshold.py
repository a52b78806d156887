"""Candidates for the magnitude at which an activation is clipped before it is rounded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.quantization.statistics import LayerStatistics

INT8_MAX = 127.0

_PERCENTILES = (99.9, 99.99, 99.999)
_SHARES_OF_LARGEST = np.linspace(0.2, 1, 41)
_ENTROPY_LEVELS = 128


def clipping_thresholds(statistics: LayerStatistics) -> dict[str, float]:
    """Return candidate thresholds by the name of the method that found them.

    The methods are: the largest magnitude ("min-max"), percentiles of the histogram, and the thresholds with the
    least squared error ("mse") and the least Kullback-Leibler divergence ("entropy") among shares of the largest.
    """
    centers: NDArray[np.float64] = (np.arange(len(statistics.histogram), dtype=np.float64) + 0.5) * statistics.width
    cumulative = np.cumsum(statistics.histogram) / max(1, statistics.histogram.sum())
    thresholds = {"min-max": statistics.largest}
    for percentile in _PERCENTILES:
        thresholds[f"percentile {percentile}"] = float(centers[np.searchsorted(cumulative, percentile / 100)])
    shares: NDArray[np.float64] = _SHARES_OF_LARGEST * statistics.largest
    for method, loss in (("mse", _squared_error), ("entropy", _divergence)):
        losses = [loss(statistics.histogram, centers, threshold) for threshold in shares]
        thresholds[method] = float(shares[int(np.argmin(losses))])
    return {method: min(threshold, statistics.largest) for method, threshold in thresholds.items()}


def saturated_share(statistics: LayerStatistics, threshold: float) -> float:
    """Return the share of all counted magnitudes in the bins that lie beyond a clipping threshold."""
    beyond = np.arange(len(statistics.histogram)) * statistics.width > threshold
    return float(statistics.histogram[beyond].sum() / max(1, statistics.histogram.sum()))


def _squared_error(histogram: NDArray[np.int64], centers: NDArray[np.float64], threshold: float) -> float:
    """The squared error of int8: rounding below the threshold, clipping beyond it."""
    step = max(threshold, 1e-12) / INT8_MAX
    errors = np.where(centers <= threshold, step**2 / 12, (centers - threshold) ** 2)
    return float((histogram * errors).sum())


def _divergence(histogram: NDArray[np.int64], centers: NDArray[np.float64], threshold: float) -> float:
    """The Kullback-Leibler divergence of the clipped distribution from its quantized version (Migacz, GTC 2017)."""
    inside = max(_ENTROPY_LEVELS, int(np.searchsorted(centers, threshold)))
    inside = min(len(histogram), inside)
    clipped = histogram[:inside].astype(np.float64)
    levels = np.minimum(np.arange(inside) * _ENTROPY_LEVELS // inside, _ENTROPY_LEVELS - 1)
    filled = clipped > 0
    sums = np.bincount(levels, clipped, _ENTROPY_LEVELS)
    counts = np.bincount(levels, filled.astype(np.float64), _ENTROPY_LEVELS)
    coarse = np.where(filled, sums[levels] / np.maximum(counts[levels], 1), 0)
    clipped[-1] += histogram[inside:].sum()
    p, q = clipped / max(clipped.sum(), 1), coarse / max(coarse.sum(), 1)
    both = (p > 0) & (q > 0)
    return float((p[both] * np.log(p[both] / q[both])).sum() + p[(p > 0) & (q == 0)].sum() * 10)

"""Where an activation is cut off, and how far its channels are evened out first.

Both are chosen among candidates by the error that they make in the product, on rows that were seen.
"""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from calibration.quantization.statistics import LayerStatistics

Float = NDArray[np.float32]
INT8_LARGEST, FP8_LARGEST = 127.0, 448.0
_PERCENTILES = (99.9, 99.99, 99.999)
_CUTS = np.linspace(0.2, 1, 41)  # of the largest value, tried for the least squared error
_ENTROPY_LEVELS = 128


_STRENGTHS = (0.35, 0.5, 0.65)  # of smoothing, from leaving all the unevenness in the activation to none


@dataclasses.dataclass(frozen=True)
class Scale:
    """`scale` is the step of int8, or what fp8 is multiplied by; `method` is what found it; `error` relative L2.

    Where `smoothing` [C] is given, the activation is divided by it and the weights are multiplied.
    """

    scale: float
    method: str
    error: float
    smoothing: Float | None = None


def quantized(x: Float, scale: Float | float, precision: str) -> Float:
    """`x` as it comes back from int8 or fp8."""
    if precision == "fp8":
        low = np.clip(x / scale, -FP8_LARGEST, FP8_LARGEST).astype(ml_dtypes.float8_e4m3fn)
        return (low.astype(np.float32) * scale).astype(np.float32)
    steps = np.clip(np.rint(x / scale), -INT8_LARGEST, INT8_LARGEST)
    return (steps * scale).astype(np.float32)


def weight_scales(weights: Float, precision: str) -> Float:
    """Symmetric: one for each output channel [M] of weights [C, M] in int8, the same for all in fp8."""
    if precision == "fp8":
        return np.full(weights.shape[1], max(float(np.abs(weights).max()), 1e-12) / FP8_LARGEST, np.float32)
    scales: Float = np.maximum(np.abs(weights).max(axis=0), 1e-12).astype(np.float32) / np.float32(INT8_LARGEST)
    return scales


def activation_scale(statistics: LayerStatistics, weights: Float, precision: str, *, smooth: bool = False) -> Scale:
    """The candidate with the least error of the product, on the rows that were kept, with quantized weights.

    With `smooth` those whose channels are evened out first are candidates too.
    """
    found = [_best_cut(statistics, weights, precision)]
    for strength in _STRENGTHS if smooth else ():
        factors = smoothing_factors(statistics.channel_max, weights, strength)
        best = _best_cut(statistics.divided(factors), weights * factors[:, None], precision)
        told = f"{best.method}, smoothed by {strength}"
        found.append(dataclasses.replace(best, method=told, smoothing=factors))
    return min(found, key=lambda each: each.error)


def smoothing_factors(channel_max: Float, weights: Float, strength: float) -> Float:
    """What moves unevenness from an activation's channels [C] into weights [C, M] (SmoothQuant, arXiv 2211.10438).

    s = max|X|^a / max|W|^(1 - a) a channel, around 1. A channel that nothing passes through keeps 1.
    """
    sizes, of_weights = np.maximum(channel_max, 1e-8), np.maximum(np.abs(weights).max(axis=1), 1e-8)
    logs = strength * np.log(sizes) - (1 - strength) * np.log(of_weights)
    logs[channel_max == 0] = np.median(logs)
    factors: Float = np.exp(np.clip(logs - logs.mean(), -5, 5)).astype(np.float32)
    return factors


def _best_cut(statistics: LayerStatistics, weights: Float, precision: str) -> Scale:
    rows = statistics.sample
    low_weights = quantized(weights, weight_scales(weights, precision), precision)
    exact = rows @ weights
    norm = max(float(np.linalg.norm(exact)), 1e-12)
    largest = FP8_LARGEST if precision == "fp8" else INT8_LARGEST
    found = []
    for method, cut in candidates(statistics).items():
        scale = max(cut, 1e-12) / largest
        error = float(np.linalg.norm(quantized(rows, scale, precision) @ low_weights - exact)) / norm
        found.append(Scale(scale, method, error))
    return min(found, key=lambda each: each.error)


def candidates(statistics: LayerStatistics) -> dict[str, float]:
    """Values to cut off at, by the method that chose them."""
    middles: NDArray[np.float64] = (np.arange(len(statistics.histogram), dtype=np.float64) + 0.5) * statistics.width
    shares = np.cumsum(statistics.histogram) / max(1, statistics.histogram.sum())
    found = {"min-max": statistics.largest}
    for percentile in _PERCENTILES:
        found[f"percentile {percentile}"] = float(middles[np.searchsorted(shares, percentile / 100)])
    cuts: NDArray[np.float64] = _CUTS * statistics.largest
    for method, loss in (("mse", _squared_error), ("entropy", _divergence)):
        losses = [loss(statistics.histogram, middles, cut) for cut in cuts]
        found[method] = float(cuts[int(np.argmin(losses))])
    return {method: min(cut, statistics.largest) for method, cut in found.items()}


def _squared_error(histogram: NDArray[np.int64], middles: NDArray[np.float64], cut: float) -> float:
    """Of int8 at this cut: rounding within, clipping beyond."""
    step = max(cut, 1e-12) / INT8_LARGEST
    inside = middles <= cut
    errors = np.where(inside, step**2 / 12, (middles - cut) ** 2)
    return float((histogram * errors).sum())


def _divergence(histogram: NDArray[np.int64], middles: NDArray[np.float64], cut: float) -> float:
    """Kullback-Leibler, of the clipped distribution from the one with few levels (Migacz, GTC 2017)."""
    inside = max(_ENTROPY_LEVELS, int(np.searchsorted(middles, cut)))
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

"""The scales of quantized weights and activations, chosen by the error of the layer's output."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from calibration.quantization.clipping_threshold import INT8_MAX, clipping_thresholds, saturated_share
from calibration.quantization.statistics import LayerStatistics

Float = NDArray[np.float32]

_FP8_MAX = 448.0
_INT8_WEIGHT_MAX = 63.0
"""7 bits. A processor without VNNI adds two products of 8 bits in 16 bits, where 255 x 63 x 2 fits and 255 x 127 x 2 is
cut to 32,767 (vpmaddubsw; ONNX Runtime 1.31.1, OpenVINO 2026.4.1)."""
_SMOOTHING_STRENGTHS = (0.35, 0.5, 0.65)  # from 0, all unevenness stays in the activation, to 1, none does


@dataclasses.dataclass(frozen=True)
class Scale:
    """How one layer's activation is quantized.

    Attributes:
        scale: The real value of one step of int8, or the factor between real and fp8 values.
        method: The name of the method that found the clipping threshold, for the log.
        error: Relative L2 error of the layer's output with quantized activation and weights, on sampled rows.
        saturated: The share of the activation's values beyond the threshold, which become the largest number.
        smoothing: What the activation is divided by and the weights are multiplied by, float32 [C]; None if neither
            is changed.
    """

    scale: float
    method: str
    error: float
    saturated: float = 0.0
    smoothing: Float | None = None


def fake_quantize(x: Float, scale: Float | float, precision: str) -> Float:
    """Return `x` quantized to `precision`, "int8" or "fp8", and dequantized again: float32 of the same shape.

    All fp8 numbers are made by ml_dtypes, here or from what this returns. Beyond the largest number ml_dtypes 0.6 has
    NaN where PyTorch 2.13 saturates, so values are clipped first, as QuantizeLinear does.
    """
    if precision == "fp8":
        low = np.clip(x / scale, -_FP8_MAX, _FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
        return (low.astype(np.float32) * scale).astype(np.float32)
    steps = np.clip(np.rint(x / scale), -INT8_MAX, INT8_MAX)
    return (steps * scale).astype(np.float32)


def weight_scales(weights: Float, precision: str) -> Float:
    """Return symmetric scales [M] for weights [C, M]: one per output channel in int8, the same for all in fp8.

    Weights in int8 are -63 to 63, so that products are exact on every processor.
    """
    if precision == "fp8":
        return np.full(weights.shape[1], max(float(np.abs(weights).max()), 1e-12) / _FP8_MAX, np.float32)
    scales: Float = np.maximum(np.abs(weights).max(axis=0), 1e-12).astype(np.float32) / np.float32(_INT8_WEIGHT_MAX)
    return scales


def activation_scale(statistics: LayerStatistics, weights: Float, precision: str, *, smooth: bool = False) -> Scale:
    """Return the scale of an activation with the least error of the layer's output.

    Args:
        statistics: Statistics of the activation [..., C]. The error is measured on its sampled rows.
        weights: The layer's weights [C, M]; they are quantized too.
        precision: "int8" or "fp8".
        smooth: Also try to smooth the activation's channels first.
    """
    scales = [_best_scale(statistics, weights, precision)]
    for strength in _SMOOTHING_STRENGTHS if smooth else ():
        factors = smoothing_factors(statistics.channel_max, weights, strength)
        best = _best_scale(statistics.divided(factors), weights * factors[:, None], precision)
        scales.append(dataclasses.replace(best, method=f"{best.method}, smoothed by {strength}", smoothing=factors))
    return min(scales, key=lambda scale: scale.error)


def smoothing_factors(channel_max: Float, weights: Float, strength: float) -> Float:
    """Return the factors [C] that move outliers from an activation into its weights (SmoothQuant, arXiv 2211.10438).

    They are s = max|X|^a / max|W|^(1 - a) for each channel (equation 4), divided by their geometric mean. A channel
    that is always zero gets the median factor.

    Args:
        channel_max: max|X|, the largest magnitude of each channel of the activation, [C].
        weights: W, [C, M].
        strength: The exponent a, 0 to 1.
    """
    sizes, weight_sizes = np.maximum(channel_max, 1e-8), np.maximum(np.abs(weights).max(axis=1), 1e-8)
    logs = strength * np.log(sizes) - (1 - strength) * np.log(weight_sizes)
    logs[channel_max == 0] = np.median(logs)
    factors: Float = np.exp(np.clip(logs - logs.mean(), -5, 5)).astype(np.float32)
    return factors


def _best_scale(statistics: LayerStatistics, weights: Float, precision: str) -> Scale:
    """The scale of the clipping threshold with the least error."""
    rows = statistics.sample
    low_weights = fake_quantize(weights, weight_scales(weights, precision), precision)
    exact = rows @ weights
    norm = max(float(np.linalg.norm(exact)), 1e-12)
    largest = _FP8_MAX if precision == "fp8" else INT8_MAX
    scales = []
    for method, threshold in clipping_thresholds(statistics).items():
        scale = max(threshold, 1e-12) / largest
        error = float(np.linalg.norm(fake_quantize(rows, scale, precision) @ low_weights - exact)) / norm
        scales.append(Scale(scale, method, error, saturated_share(statistics, scale * largest)))
    return min(scales, key=lambda scale: scale.error)

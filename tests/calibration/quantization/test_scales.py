"""The scales of weights and activations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.quantization.clipping_threshold import clipping_thresholds, saturated_share
from calibration.quantization.scales import activation_scale, fake_quantize, weight_scales
from calibration.quantization.statistics import ActivationStatistics, LayerStatistics
from tests.helpers.distance import relative_l2


@given(st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1), st.sampled_from(["int8", "fp8"]))
def test_the_rounding_error_is_at_most_half_a_step_and_large_values_are_clipped(
    scale: float, seed: int, precision: str
) -> None:
    largest = {"int8": 127, "fp8": 448}[precision] * scale
    x = (np.random.default_rng(seed).uniform(-2, 2, 200) * largest).astype(np.float32)
    found = fake_quantize(x, scale, precision)
    inside = np.abs(x) <= largest
    step = scale if precision == "int8" else np.maximum(np.abs(x[inside]) / 8, scale * 2**-9)  # 3 bits of mantissa
    assert (np.abs(found - x)[inside] <= step / 2 * 1.0001).all()
    assert found[~inside] == pytest.approx(np.sign(x[~inside]) * largest, rel=1e-6)


def test_the_scale_is_the_candidate_with_the_least_error_of_the_output(statistics: ActivationStatistics) -> None:
    layer = statistics.layers["denoise/res_blocks.0.mlp.2"]
    weights = np.random.default_rng(0).standard_normal((layer.channel_max.size, 9)).astype(np.float32)
    scale = activation_scale(layer, weights, "int8")
    low_weights = fake_quantize(weights, weight_scales(weights, "int8"), "int8")
    for threshold in clipping_thresholds(layer).values():
        output = fake_quantize(layer.sample, threshold / 127, "int8") @ low_weights
        assert scale.error <= relative_l2(output, layer.sample @ weights) * (1 + 1e-6)
    assert scale.scale == pytest.approx(clipping_thresholds(layer)[scale.method] / 127)


def test_smoothing_is_chosen_only_if_it_reduces_the_error(statistics: ActivationStatistics) -> None:
    layer = statistics.layers["backbone/model.encoder_blocks.0.mlp.fc1"]
    weights = np.random.default_rng(0).standard_normal((layer.channel_max.size, 9)).astype(np.float32)
    without, smooth = (activation_scale(layer, weights, "int8", smooth=smooth) for smooth in (False, True))
    assert smooth.error <= without.error
    uneven = np.geomspace(1, 300, layer.channel_max.size, dtype=np.float32)
    spread = layer.divided(1 / uneven)
    without, smooth = (activation_scale(spread, weights, "int8", smooth=smooth) for smooth in (False, True))
    assert smooth.smoothing is not None
    assert smooth.error < 0.7 * without.error


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_values_that_saturate_are_counted(precision: str) -> None:
    """Of 20,000 values 1 % are beyond the threshold that the others fit."""
    statistics = LayerStatistics(100, 1, 1)
    values = np.random.default_rng(0).uniform(-1, 1, (200, 100)).astype(np.float32)
    values[::2, ::50] *= 1e-3
    values[1::2, ::50] = 2
    for row in values:
        statistics.update(row[None], 0, range(0), np.random.default_rng(0))
    assert saturated_share(statistics, 1.5) == pytest.approx(0.01)
    assert saturated_share(statistics, 2.1) == 0
    scale = activation_scale(statistics, np.eye(100, 3, dtype=np.float32), precision)
    largest = {"int8": 127, "fp8": 448}[precision]
    assert scale.saturated == pytest.approx((np.abs(values) > scale.scale * largest).mean(), abs=1e-3)

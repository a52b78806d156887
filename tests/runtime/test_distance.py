"""The distance between the outputs of engines and reference values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runtime.distance import drift, relative_l2, sqnr_db
from runtime.model.latents import patchify, unpatchify
from runtime.sampling.plan import build_plan
from runtime.sampling.settings import Sampling


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_distance_with_values_that_are_not_finite_is_infinite(value: float) -> None:
    one = np.ones(3, np.float32)
    assert relative_l2(np.array([1, value, 1], np.float32), one) == math.inf
    assert relative_l2(one, one) == 0
    assert relative_l2(2 * one, one) == 1


def test_a_distance_is_computed_in_float64() -> None:
    large = np.full((2, 3), 1e30, np.float32)  # whose squares float32 does not hold
    assert relative_l2(large, 2 * large) == pytest.approx(0.5)


@pytest.mark.parametrize(("distance", "ratio"), [(1, 0), (0.1, 20), (1e-3, 60), (0, 300)])
def test_a_tenth_of_the_distance_adds_20_db_up_to_300(distance: float, ratio: float) -> None:
    assert sqnr_db(distance) == pytest.approx(ratio)


def test_drift_is_the_distance_of_the_tokens_of_each_group_of_iterations() -> None:
    random = np.random.default_rng(0)
    plan = build_plan(16, Sampling(iterations=4))
    order = np.stack([random.permutation(16) for _ in range(2)])
    expected = random.standard_normal((2, 3, 8, 8)).astype(np.float32)
    tokens = patchify(expected, 2)  # [B, L, D]
    for number, iteration in enumerate(plan.iterations):
        for image in range(2):
            generated = order[image, iteration.known : iteration.known + iteration.count]
            tokens[image, generated] *= 1 + 10.0**-number
    found = unpatchify(tokens, (4, 4), 2)
    entries = drift(found, expected, order, plan, patch_size=2)
    assert [entry["iteration"] for entry in entries] == [1, 2, 3, 4]
    assert [entry["relative_l2"] for entry in entries] == pytest.approx([1, 0.1, 0.01, 0.001], rel=1e-3)
    assert [entry["sqnr_db"] for entry in entries] == pytest.approx([0, 20, 40, 60], abs=0.01)
    pairs = drift(found, expected, order, plan, patch_size=2, every=2)
    assert [entry["iteration"] for entry in pairs] == [2, 4]
    assert 0.1 < pairs[0]["relative_l2"] < 1

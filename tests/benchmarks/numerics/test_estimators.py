"""Choices of images, and the bias and spread of distances of Gaussians whose true distance is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.numerics.estimators import bias_of_perfect_images, choices, measure_set, perfect_images, spread
from training.evaluation.metrics import Moments, frechet_distance
from training.evaluation.uncertainty import moments

CHANNELS = 4


def gaussian(images: int, shift: float, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    random = np.random.default_rng(seed)
    return (shift + random.standard_normal((images, CHANNELS))).astype(np.float32)


def test_choices_have_no_image_in_common_while_there_are_enough() -> None:
    first, second, third = choices(10, 5, 3)
    assert sorted([*first, *second]) == list(range(10))
    assert len(set(third)) == 5
    assert {*third} != {*first}


def test_the_spread_of_overlapping_choices_is_that_of_an_infinite_set() -> None:
    """Means of half of the numbers of a finite set vary by 1/sqrt(2) of the means of as many independent numbers."""
    found = []
    for seed in range(40):
        values = np.random.default_rng(seed).standard_normal(200)
        found.append(spread([values[rows].mean() for rows in choices(200, 150, 20)], 150, 200))
    assert np.mean(found) == pytest.approx(1 / np.sqrt(150), rel=0.12)
    assert spread([1.0, 3.0], 2, 100) == pytest.approx(np.sqrt(2))


def test_the_figures_of_a_set_agree_with_what_is_known_of_gaussians() -> None:
    features, real = gaussian(3000, 0.5, 0), gaussian(1000, 0.0, 1)
    report = measure_set(features, real, sizes=(100, 1000, 5000))
    assert [row["images"] for row in report["rows"]] == [100, 1000]  # there are no 5,000
    assert report["frechet"] == pytest.approx(0.25 * CHANNELS, rel=0.15)
    few, many = (row["frechet"] for row in report["rows"])
    assert few["mean"] - report["frechet"] == pytest.approx(few["bias"], rel=0.5)
    assert few["bias"] > 5 * many["bias"] > 0
    assert few["spread"] == pytest.approx(few["standard_error"], rel=0.5)
    kernels = [row["kernel_distance"] for row in report["rows"]]
    assert abs(kernels[0]["mean"] - kernels[1]["mean"]) < kernels[0]["spread"]  # without bias
    assert kernels[0]["spread"] == pytest.approx(kernels[0]["standard_error"], rel=0.5)


def test_the_bias_of_perfect_images_is_the_mean_of_repeated_draws() -> None:
    spread_of = np.array([2.0, 1.0, 0.5, 0.1])
    own = Moments(np.zeros(CHANNELS), np.diag(np.square(spread_of)))
    draws = (spread_of * np.random.default_rng(seed).standard_normal((400, CHANNELS)) for seed in range(400))
    distances = [frechet_distance(moments(each), own) for each in draws]
    assert np.mean(distances) == pytest.approx(bias_of_perfect_images(own, 400), rel=0.1)
    assert bias_of_perfect_images(Moments(np.zeros(3), np.eye(3)), 100) == pytest.approx((3 + (9 + 3) / 4) / 100)


def test_fewer_images_than_features_have_no_expected_bias() -> None:
    report = perfect_images(gaussian(100, 0.0, 0), (3, 4, 5, 500))
    assert [row["images"] for row in report["rows"]] == [5, 500]

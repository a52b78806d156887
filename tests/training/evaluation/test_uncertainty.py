"""Standard errors and biases of metrics, against repeated draws from Gaussians whose distances are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from training.evaluation.metrics import Moments, frechet_distance, kernel_distance, kernel_distance_and_influence
from training.evaluation.uncertainty import (
    frechet_influence,
    frechet_uncertainty,
    mean_standard_error,
    moments,
    share_standard_error,
)

CHANNELS = 6
REAL = Moments(np.zeros(CHANNELS), np.eye(CHANNELS))
MEAN, SPREAD = np.array([1.0, 0, 0, 0, 0, -0.5]), np.array([1.5, 1, 1, 0.7, 1, 1])
TRUE = float(np.square(MEAN).sum() + np.square(SPREAD - 1).sum())


def draw(images: int, seed: int) -> NDArray[np.float64]:
    return MEAN + SPREAD * np.random.default_rng(seed).standard_normal((images, CHANNELS))


@pytest.mark.parametrize("images", [100, 400])
def test_the_uncertainty_of_the_frechet_distance_is_what_repeated_draws_show(images: int) -> None:
    sets = [draw(images, seed) for seed in range(400)]
    distances = [frechet_distance(moments(each), REAL) for each in sets]
    found = [frechet_uncertainty(each, images, REAL) for each in sets]
    errors, biases = zip(*((each.standard_error, each.bias) for each in found if each), strict=True)
    # 400 draws know a standard deviation to 1 / sqrt(800) = 3.5%, and the mean to a twentieth of it.
    assert np.mean(errors) == pytest.approx(np.std(distances), rel=0.12)
    assert np.mean(biases) == pytest.approx(np.mean(distances) - TRUE, abs=0.15 * np.std(distances))
    assert np.mean(biases) > 0.25 * np.mean(errors)  # and not about 0


def test_more_images_than_features_are_kept_of_make_the_uncertainty_smaller() -> None:
    one = frechet_uncertainty(draw(500, 1), 500, REAL)
    four = frechet_uncertainty(draw(500, 1), 2000, REAL)
    assert one
    assert four
    assert four.standard_error == pytest.approx(one.standard_error / 2)
    assert four.bias == pytest.approx(one.bias / 4)


def test_too_few_images_have_no_known_uncertainty() -> None:
    assert frechet_uncertainty(draw(2 * CHANNELS + 1, 0), 2 * CHANNELS + 1, REAL) is None
    assert frechet_uncertainty(draw(2 * CHANNELS + 2, 0), 2 * CHANNELS + 2, REAL) is not None


def test_the_influence_of_an_image_is_what_leaving_it_out_changes() -> None:
    features = draw(4000, 0)
    own = moments(features)
    influence = frechet_influence(features, own, REAL)
    influence -= influence.mean()
    whole = frechet_distance(own, REAL)
    changes = [whole - frechet_distance(moments(np.delete(features, row, axis=0)), REAL) for row in range(8)]
    np.testing.assert_allclose(influence[:8] / len(features), changes, atol=2e-5)
    assert np.abs(changes).max() > 2e-4


def test_a_constant_feature_changes_nothing() -> None:
    features = draw(300, 0)
    padded = np.concatenate([features, np.full((300, 1), 2.0)], axis=1)
    real = Moments(np.append(REAL.mean, 2.0), np.pad(REAL.covariance, (0, 1)))
    one, other = frechet_uncertainty(features, 300, REAL), frechet_uncertainty(padded, 300, real)
    assert one
    assert other
    assert other.standard_error == pytest.approx(one.standard_error, rel=1e-6)
    assert other.bias == pytest.approx(one.bias, rel=1e-6)


def test_the_standard_error_of_the_kernel_distance_is_what_repeated_draws_show() -> None:
    real = np.random.default_rng(10_000).standard_normal((300, CHANNELS))
    found = [kernel_distance_and_influence(draw(200, seed), real) for seed in range(200)]
    errors = [mean_standard_error(influence, 200) for _, influence in found]
    assert np.mean(errors) == pytest.approx(np.std([distance for distance, _ in found]), rel=0.15)
    assert found[0][0] == kernel_distance(draw(200, 0), real)


def test_the_standard_error_of_a_share() -> None:
    assert share_standard_error(0.9, 900) == pytest.approx(0.01)
    assert share_standard_error(1.0, 10) == 0

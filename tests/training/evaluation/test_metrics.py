"""Metrics of feature sets whose values are known, and the statistics that they are computed from."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from training.evaluation import feature_networks, metrics
from training.evaluation.feature_networks import extract_features
from training.evaluation.metrics import (
    Moments,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)


def _cloud(centre: float, count: int = 60, seed: int = 0) -> NDArray[np.float64]:
    return centre + np.random.default_rng(seed).standard_normal((count, 3))


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (3.0, 1.0), (0.0, 2.5), (-1.0, 0.1)])
def test_the_distance_of_gaussians_in_one_direction(mean: float, spread: float) -> None:
    """(m - n)^2 + (s - t)^2 in every independent direction."""
    one = Moments(np.zeros(2), np.eye(2))
    other = Moments(np.array([mean, 0.0]), np.diag([spread**2, 1.0]))
    assert frechet_distance(one, other) == pytest.approx(mean**2 + (1 - spread) ** 2, abs=1e-12)


def _moments(features: NDArray[np.float64]) -> Moments:
    return Moments(features.mean(axis=0), np.cov(features, rowvar=False))


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_the_distance_of_gaussians_is_its_closed_form(shift: float) -> None:
    """For commuting covariances it is |shift|^2 + the squared distance of the standard deviations."""
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.standard_normal((4, 4)))[0]
    one, other = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 2.0, 1.5, 0.1])
    # Whitened, so that mean and covariance are exact and not estimates.
    sample = random.standard_normal((500, 4))
    sample -= sample.mean(axis=0)
    sample = sample @ np.linalg.inv(np.linalg.cholesky(np.cov(sample, rowvar=False))).T
    distance = frechet_distance(
        _moments(sample * one @ basis.T), _moments(sample * other @ basis.T + shift * basis[:, 0])
    )
    assert distance == pytest.approx(shift**2 + np.square(one - other).sum(), rel=1e-9)


def test_the_distance_from_itself_is_zero_and_the_distance_is_symmetric() -> None:
    random = np.random.default_rng(1)
    a = _moments(random.standard_normal((100, 8)))
    b = _moments(random.standard_normal((80, 8)) @ random.standard_normal((8, 8)))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) > 0.1


def test_the_kernel_distance_is_the_mean_over_pairs_of_different_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out pair by pair; the blocks of rows do not show."""
    a, b = _cloud(0.0, 7), _cloud(0.5, 5, seed=1)

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
        return float((x @ y / 3 + 1) ** 3)

    within = [np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]) for s in (a, b)]
    expected = sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b])
    monkeypatch.setattr(metrics, "_ROWS", 2)
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert kernel_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_of_samples_of_one_distribution_is_about_zero() -> None:
    near, other = _cloud(0.0, 500), _cloud(0.0, 500, seed=1)
    assert abs(kernel_distance(near, other)) < 0.2 < kernel_distance(near, other + 1)


def test_precision_and_recall_of_a_set_with_itself_are_1_and_with_a_distant_set_0() -> None:
    near, far = _cloud(0.0), _cloud(100.0)
    assert precision_recall(near, near) == (1.0, 1.0)
    assert precision_recall(near, far) == (0.0, 0.0)


def test_missing_modes_lower_recall_and_invented_modes_lower_precision() -> None:
    one, other = _cloud(0.0, seed=1), _cloud(100.0, seed=2)
    both = np.concatenate([one, other])
    assert precision_recall(real=both, generated=one) == (1.0, 0.5)
    assert precision_recall(real=one, generated=both) == (0.5, 1.0)


def test_the_radius_of_a_ball_is_the_distance_of_the_third_nearest_neighbour() -> None:
    """Real points at 0, 1, 2, 3 of a line: the ball of 0 reaches to 3, that of 1 to 3, and so on."""
    real = np.array([[0.0], [1.0], [2.0], [3.0]])
    inside, outside = np.array([[-3.0], [6.0]]), np.array([[-3.01], [6.01]])
    assert precision_recall(real, inside)[0] == 1.0
    assert precision_recall(real, outside)[0] == 0.0


def test_the_size_of_blocks_does_not_change_precision_and_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = _cloud(0.0, 50, seed=3), _cloud(0.8, 70, seed=4)
    whole = precision_recall(real, generated)
    monkeypatch.setattr("training.evaluation.metrics._ROWS", 7)
    assert precision_recall(real, generated) == whole
    assert 0 < whole[0] < 1


def test_the_inception_score_is_the_number_of_distinguished_classes() -> None:
    certain = 1000 * np.eye(4)[np.arange(400) % 4]
    assert inception_score(certain) == pytest.approx(4.0)
    assert inception_score(np.zeros((400, 4))) == pytest.approx(1.0)
    assert inception_score(certain[:, :1] * np.ones(4)) == pytest.approx(1.0)


def test_an_impossible_class_does_not_change_the_inception_score() -> None:
    impossible = np.full((400, 1), -1000.0)  # e^-1000 is 0 in float64
    random = np.random.default_rng(0).standard_normal((400, 4))
    assert inception_score(np.hstack([random, impossible])) == pytest.approx(inception_score(random), rel=1e-12)


class _Means:
    """A network whose features are the mean colour of the four corners of an image."""

    name, sha256, knows_classes = "means", "0" * 64, True

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        half = images.shape[1] // 2
        corners = [images[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
        return np.stack([corner.mean(axis=(1, 2, 3)) for corner in corners], axis=1).astype(np.float32)

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return features


def test_statistics_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_networks, "MAX_SAMPLE", 25)
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    features = _Means().features(images)
    labels = features.argmax(axis=1).astype(np.int64)
    labels[:10] = (labels[:10] + 1) % 4
    statistics = extract_features(
        _Means(), zip(np.split(images, cuts := [7, 20, 33]), np.split(labels, cuts), strict=True)
    )
    assert statistics.images == 40
    assert statistics.top1_accuracy == 0.75
    np.testing.assert_array_equal(statistics.sample, features[:25])
    np.testing.assert_allclose(statistics.moments.mean, features.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(
        statistics.moments.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9
    )

"""Figures of feature sets that are known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from training.evaluation import feature_networks
from training.evaluation.feature_networks import look
from training.evaluation.metrics import Moments, frechet, inception_score, precision_recall


def _cloud(centre: float, count: int = 60, seed: int = 0) -> NDArray[np.float64]:
    return centre + np.random.default_rng(seed).standard_normal((count, 3))


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (3.0, 1.0), (0.0, 2.5), (-1.0, 0.1)])
def test_the_distance_of_gaussians_in_one_direction(mean: float, spread: float) -> None:
    """(m - n)^2 + (s - t)^2 in every independent direction."""
    one = Moments(np.zeros(2), np.eye(2))
    other = Moments(np.array([mean, 0.0]), np.diag([spread**2, 1.0]))
    assert frechet(one, other) == pytest.approx(mean**2 + (1 - spread) ** 2, abs=1e-12)


def test_a_set_lies_within_itself_and_not_within_one_far_away() -> None:
    near, far = _cloud(0.0), _cloud(100.0)
    assert precision_recall(near, near) == (1.0, 1.0)
    assert precision_recall(near, far) == (0.0, 0.0)


def test_what_is_missing_costs_recall_and_what_is_invented_precision() -> None:
    one, other = _cloud(0.0, seed=1), _cloud(100.0, seed=2)
    both = np.concatenate([one, other])
    assert precision_recall(real=both, drawn=one) == (1.0, 0.5)
    assert precision_recall(real=one, drawn=both) == (0.5, 1.0)


def test_a_ball_reaches_to_the_third_nearest() -> None:
    """Real points at 0, 1, 2, 3 of a line: the ball of 0 reaches to 3, that of 1 to 3, and so on."""
    real = np.array([[0.0], [1.0], [2.0], [3.0]])
    inside, outside = np.array([[-3.0], [6.0]]), np.array([[-3.01], [6.01]])
    assert precision_recall(real, inside)[0] == 1.0
    assert precision_recall(real, outside)[0] == 0.0


def test_neighbours_are_looked_for_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    real, drawn = _cloud(0.0, 50, seed=3), _cloud(0.8, 70, seed=4)
    whole = precision_recall(real, drawn)
    monkeypatch.setattr("training.evaluation.metrics._ROWS", 7)
    assert precision_recall(real, drawn) == whole
    assert 0 < whole[0] < 1


def test_the_inception_score_is_the_number_of_classes_that_are_told_apart() -> None:
    sure = 1000 * np.eye(4)[np.arange(400) % 4]
    assert inception_score(sure) == pytest.approx(4.0)
    assert inception_score(np.zeros((400, 4))) == pytest.approx(1.0)
    assert inception_score(sure[:, :1] * np.ones(4)) == pytest.approx(1.0)


def test_a_class_that_no_image_can_be_of_changes_no_inception_score() -> None:
    never = np.full((400, 1), -1000.0)  # e^-1000 is 0 in float64
    random = np.random.default_rng(0).standard_normal((400, 4))
    assert inception_score(np.hstack([random, never])) == pytest.approx(inception_score(random), rel=1e-12)


class _Means:
    """A network whose features are the mean colour of the four corners of an image."""

    name, sha256, knows_classes = "means", "0" * 64, True

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        half = images.shape[1] // 2
        corners = [images[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
        return np.stack([corner.mean(axis=(1, 2, 3)) for corner in corners], axis=1).astype(np.float32)

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return features


def test_what_is_seen_of_a_set_does_not_depend_on_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_networks, "MOST_COMPARED", 25)
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    features = _Means().features(images)
    labels = features.argmax(axis=1).astype(np.int64)
    labels[:10] = (labels[:10] + 1) % 4
    seen = look(_Means(), zip(np.split(images, cuts := [7, 20, 33]), np.split(labels, cuts), strict=True))
    assert seen.images == 40
    assert seen.top1_accuracy == 0.75
    np.testing.assert_array_equal(seen.sample, features[:25])
    np.testing.assert_allclose(seen.moments.mean, features.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(seen.moments.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-9)

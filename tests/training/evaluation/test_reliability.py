"""Warnings about figures that mean little."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.feature_networks import FeatureStatistics
from training.evaluation.metrics import Moments
from training.evaluation.reliability import doubts


def statistics(images: int, features: int, accuracy: float | None) -> FeatureStatistics:
    moments = Moments(np.zeros(features), np.eye(features))
    return FeatureStatistics(images, moments, np.zeros((2, features), np.float32), accuracy, None)


@pytest.mark.parametrize(
    ("generated", "real", "features", "accuracy", "expected"),
    [
        (5000, 5000, 64, 0.9, []),
        (64, 5000, 64, 0.9, ["64 generated images do not determine the covariance of 64 features"]),
        (65, 99, 64, 0.9, ["65 generated images are few", "99 real images are few"]),
        (5000, 1000, 1280, 0.9, ["1000 real images do not determine the covariance of 1280 features"]),
        (5000, 5000, 64, 0.45, ["it recognises only 45.0% of the real images, so it is no judge"]),
    ],
)
def test_figures_that_mean_little_are_named(
    generated: int, real: int, features: int, accuracy: float | None, expected: list[str]
) -> None:
    lines = doubts("net", {"generated": generated}, statistics(real, features, accuracy), knows_classes=True)
    assert [line.startswith(f"net: {start}") for line, start in zip(lines, expected, strict=True)] == [True] * len(
        expected
    )


def test_a_network_of_other_classes_is_not_judged_by_its_accuracy() -> None:
    assert doubts("net", {}, statistics(5000, 64, 0.01), knows_classes=False) == []

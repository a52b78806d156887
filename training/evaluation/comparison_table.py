"""Metrics of image sets compared with real images, as JSON values and as a table of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime.text_table import aligned
from training.evaluation.feature_networks import FeatureNetwork, FeatureStatistics
from training.evaluation.metrics import frechet_distance, kernel_distance_and_influence, precision_recall
from training.evaluation.uncertainty import mean_standard_error, uncertainty_of, with_standard_error

GENERATED, TRAINING = "generated", "real_training"
_COLUMNS = {
    "top1_accuracy": "{:.1%}",
    "frechet": "{:.3f}",
    "kernel_distance": "{:.5f}",
    "precision": "{:.3f}",
    "recall": "{:.3f}",
    "inception_score": "{:.2f}",
}


def compare_with_real(
    network: FeatureNetwork, image_sets: Mapping[str, FeatureStatistics], real: FeatureStatistics
) -> dict[str, Any]:
    """Compute the metrics of image sets against real images.

    Args:
        network: The network that computed all of the statistics.
        image_sets: The statistics of each image set, by its name.
        real: The statistics of the real images.

    Returns:
        For JSON: `weights_sha256` of the network; for each image set, by its name, and for `real`, `images`,
        `top1_accuracy` and `inception_score`; for the image sets also `frechet`, `kernel_distance`,
        `precision` and `recall`, `frechet_bias`, and `standard_error` with those of the metrics that have one.
    """
    value: dict[str, Any] = {"weights_sha256": network.sha256}
    for name, statistics in image_sets.items():
        precision, recall = precision_recall(real.sample, statistics.sample)
        kernel, influence = kernel_distance_and_influence(statistics.sample, real.sample)
        uncertainty = uncertainty_of(statistics, real)
        uncertainty["standard_error"]["kernel_distance"] = mean_standard_error(influence, len(influence))
        value[name] = {
            **_own_metrics(statistics),
            "frechet": frechet_distance(statistics.moments, real.moments),
            "kernel_distance": kernel,
            "precision": precision,
            "recall": recall,
            **uncertainty,
        }
    return {**value, "real": _own_metrics(real)}


def comparison_table(comparisons: Mapping[str, Mapping[str, Any]]) -> str:
    """Format what `compare_with_real` returned for each network, by its name, as lines of text.

    A standard error stands behind its metric, after ±.
    """
    rows = [["", *(name.replace("_", " ") for name in _COLUMNS)]]
    for network, comparison in comparisons.items():
        for name, metrics in comparison.items():
            if isinstance(metrics, dict):
                of_set = f"{network}: {metrics['images']} {name.replace('_', ' ')}"
                rows.append([of_set, *(with_standard_error(metrics, key, form) for key, form in _COLUMNS.items())])
    return "\n".join(aligned(rows, right=range(1, 1 + len(_COLUMNS))))


def _own_metrics(statistics: FeatureStatistics) -> dict[str, Any]:
    """The metrics of an image set that need no other set."""
    return {
        "images": statistics.images,
        "top1_accuracy": statistics.top1_accuracy,
        "inception_score": statistics.inception_score,
    }

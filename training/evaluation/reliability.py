"""Warnings about figures of an evaluation that mean little: of too few images, or by a classifier that is too weak."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.checks import pluralize
from training.evaluation.feature_networks import FeatureStatistics

_WEAK = 0.7  # the top-1 accuracy on real images below which a classifier is no judge
_FEW = 100  # images


def doubts(network: str, counts: Mapping[str, int], real: FeatureStatistics, knows_classes: bool) -> list[str]:
    """Return one line for each reason to doubt the figures that a network gives.

    Args:
        network: The name of the network.
        counts: The number of images of each compared set, by the name of the set.
        real: The statistics of the real images.
        knows_classes: Whether the network was trained to tell the classes of the dataset apart.
    """
    lines = []
    features = len(real.moments.mean)
    for name, count in {**counts, "real": real.images}.items():
        images = pluralize(count, f"{name} image")
        if count <= features:
            lines.append(
                f"{network}: {images} do not determine the covariance of {features} features, so the Fréchet distance "
                "is too large, and comparable only between sets of the same size; use more images than features"
            )
        elif count < _FEW:
            lines.append(f"{network}: {images} are few, and the figures vary with the choice of images")
    accuracy = real.top1_accuracy
    if knows_classes and accuracy is not None and accuracy < _WEAK:
        lines.append(
            f"{network}: it recognises only {accuracy:.1%} of the real images, so it is no judge of generated ones; "
            "compare features of another network too, or train it on more images"
        )
    return lines

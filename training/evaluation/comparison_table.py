"""How good images are: what a network sees of them against what it sees of real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.evaluation.feature_networks import FeatureNetwork, Seen
from training.evaluation.metrics import frechet, precision_recall

GENERATED, TRAINING = "generated", "real_training"
_SHOWN = {
    "top1_accuracy": "{:.1%}",
    "frechet": "{:.3f}",
    "precision": "{:.3f}",
    "recall": "{:.3f}",
    "inception_score": "{:.2f}",
}

Figures = Mapping[str, Any]


def figures_of(network: FeatureNetwork, seen: Mapping[str, Seen], real: Seen) -> dict[str, Any]:
    """The figures of every set in `seen` against `real`, by its name, for JSON."""
    told: dict[str, Any] = {"weights_sha256": network.sha256}
    for name, one in seen.items():
        precision, recall = precision_recall(real.sample, one.sample)
        distance = frechet(one.moments, real.moments)
        told[name] = {**_alone(one), "frechet": distance, "precision": precision, "recall": recall}
    return {**told, "real": _alone(real)}


def table(figures: Mapping[str, Figures]) -> str:
    """The figures of every network, in lines."""
    lines = [f"{'':40}" + "".join(f"{name.replace('_', ' '):>17}" for name in _SHOWN)]
    for network, of_network in figures.items():
        for name, one in of_network.items():
            if isinstance(one, dict):
                cells = [_SHOWN[key].format(one[key]) if one.get(key) is not None else "" for key in _SHOWN]
                row = f"{network}: {one['images']} {name.replace('_', ' ')}"
                lines.append(f"{row:40}" + "".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines)


def _alone(seen: Seen) -> dict[str, Any]:
    """What is told of a set without another."""
    return {"images": seen.images, "top1_accuracy": seen.top1_accuracy, "inception_score": seen.inception_score}

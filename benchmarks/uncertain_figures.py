"""Figures of image sets with their standard errors, for the tables of the documentation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from training.evaluation.feature_networks import CLASSIFIER
from training.evaluation.uncertainty import share_standard_error

FRECHET_RULE = 1.0
"""The standard error of the classifier's Fréchet distance, divided by sqrt(distance / images).

It is for reports of the time before `mar evaluate` and `mar study` measured the standard error themselves.
`docs/benchmarks/uncertainty.md` measures the factor.
"""


def accuracy_cell(row: Mapping[str, Any]) -> str:
    """Return the top-1 accuracy of a set of images with its standard error; nothing where there is none."""
    accuracy = row["top1_accuracy"]
    return "" if accuracy is None else f"{accuracy:.1%} ± {share_standard_error(accuracy, row['images']):.1%}"


def frechet_cell(row: Mapping[str, Any], network: str = CLASSIFIER) -> str:
    """Return the Fréchet distance of a set of images with its standard error: the measured one, or that of the rule.

    Args:
        row: The figures of the set.
        network: The network of the features. There is a rule for the classifier only.
    """
    error = row.get("standard_error", {}).get("frechet")
    if error is None and network == CLASSIFIER:
        error = FRECHET_RULE * math.sqrt(row["frechet"] / row["images"])
    return f"{row['frechet']:.3f}" + ("" if error is None else f" ± {error:.3f}")

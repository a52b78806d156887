"""Figures of image sets with their standard errors, for the tables of the documentation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from training.evaluation.feature_networks import CLASSIFIER
from training.evaluation.uncertainty import share_standard_error, with_standard_error

FRECHET_RULE = 6.3
"""The standard error of the classifier's Fréchet distance, divided by sqrt(distance / images).

It is for reports of the time before `mar evaluate` and `mar study` measured the standard error themselves.
`docs/benchmarks/uncertainty.md` measures the factor.
"""


def accuracy_cell(row: Mapping[str, Any]) -> str:
    """Return the top-1 accuracy of a set of images with its standard error; nothing where there is none."""
    accuracy = row["top1_accuracy"]
    error = None if accuracy is None else share_standard_error(accuracy, row["images"])
    return with_standard_error({**row, "standard_error": {"top1_accuracy": error}}, "top1_accuracy", "{:.1%}")


def frechet_cell(row: Mapping[str, Any], network: str = CLASSIFIER) -> str:
    """Return the Fréchet distance of a set of images with its standard error: the measured one, or that of the rule.

    Args:
        row: The figures of the set.
        network: The network of the features. There is a rule for the classifier only.
    """
    if row.get("standard_error", {}).get("frechet") is None and network == CLASSIFIER:
        row = {**row, "standard_error": {"frechet": FRECHET_RULE * math.sqrt(row["frechet"] / row["images"])}}
    return with_standard_error(row, "frechet", "{:.3f}")

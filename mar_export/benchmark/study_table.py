"""The report of a study as the cells of a table, for a terminal and for a page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from training.evaluation.comparison_table import TRAINING
from training.evaluation.uncertainty import with_standard_error


def study_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of a table: a header, one of each setting, and one of real training images.

    Presets are compared with the first `exact`, by the first network; settings of samplers are not, since they have no
    guidance.

    Args:
        report: What `mar_export.benchmark.study.summarize_study` returned.
    """
    networks = list(report["real"])
    exact = next((row for row in report["settings"] if row["name"].split()[-1] == "exact"), None)
    distances = [f"Fréchet distance, {network}" for network in networks]
    rows = [["", "top-1 accuracy", *distances, "against exact", "head evaluations", "ms an image"]]
    for row in report["settings"]:
        against = ""
        if exact is not None and row["sampler"] is None:
            against = (
                f"{mean_of_seeds(row, networks[0], 'frechet') / mean_of_seeds(exact, networks[0], 'frechet') - 1:+.1%}"
            )
        rows.append(
            [
                row["name"],
                *_cells(row["features"]),
                against,
                str(row["head_evaluations"]),
                f"{row['milliseconds']['median']:.0f}",
            ]
        )
    training = {network: [metrics[TRAINING]] for network, metrics in report["real"].items() if TRAINING in metrics}
    return [*rows, ["real training images", *_cells(training), "", "", ""]] if training else rows


def mean_of_seeds(row: Mapping[str, Any], network: str, metric: str) -> float:
    """Return a metric of a row of the report, as the mean over its seeds."""
    return statistics.fmean(metrics[metric] for metrics in row["features"][network])


def metric_cell(seeds: Sequence[Mapping[str, Any]], metric: str, form: str) -> str:
    """Return a metric as text: of one seed with its standard error, of several their mean, least and largest.

    Args:
        seeds: The metrics of each seed.
        metric: The name of the metric.
        form: How numbers are written, such as `{:.1%}`.
    """
    if len(seeds) == 1 or seeds[0].get(metric) is None:
        return with_standard_error(seeds[0], metric, form)
    values = [metrics[metric] for metrics in seeds]
    mean, least, most = (form.format(value) for value in (statistics.fmean(values), min(values), max(values)))
    return f"{mean} ({least} to {most})"


def _cells(features: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the top-1 accuracy, by the network that knows the classes, and the distance by every network."""
    accuracies = [metric_cell(seeds, "top1_accuracy", "{:.1%}") for seeds in features.values()]
    return ["".join(accuracies), *(metric_cell(seeds, "frechet", "{:.3f}") for seeds in features.values())]

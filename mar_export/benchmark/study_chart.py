"""The chart of a study: quality against time, samplers on the left and presets on the right."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mar_export.benchmark.log_axis import number_plainly
from mar_export.benchmark.study_table import mean_of_seeds
from runtime.storage.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_study_chart(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw a report of `mar_export.benchmark.study.summarize_study` as a PNG file at `path`, by its first network.

    A point is the mean over the seeds; a line through it spans them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    network = next(iter(report["real"]))
    presets = [row for row in report["settings"] if row["sampler"] is None]
    samplers: dict[str, list[Mapping[str, Any]]] = {}
    for row in report["settings"]:
        if row["sampler"] is not None:
            samplers.setdefault(row["sampler"], []).append(row)
    figure = Figure(figsize=(12 if samplers else 7, 5), layout="constrained")
    *left, right = figure.subplots(1, 2 if samplers else 1, squeeze=False)[0]
    for axes in left:
        _draw_samplers(axes, samplers, network)
    _draw_presets(right, presets, network)
    for axes in (*left, right):
        axes.set(xscale="log", xlabel="ms an image, batch 1", ylabel=f"Fréchet distance, {network}; lower is better")
        number_plainly(axes.xaxis)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.15)
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _draw_samplers(axes: Axes, samplers: Mapping[str, Sequence[Mapping[str, Any]]], network: str) -> None:
    for sampler, rows in samplers.items():
        points = sorted(
            (_milliseconds(row), *_distances(row, network), row["sampling"]["diffusion_steps"]) for row in rows
        )
        times, means, below, above, steps = zip(*points, strict=True)
        line = axes.errorbar(times, means, [below, above], marker="o", label=sampler)[0]
        for x, y, count in zip(times, means, steps, strict=True):
            axes.annotate(str(count), (x, y), (4, 4), textcoords="offset points", color=line.get_color(), fontsize=8)
    axes.set_title("samplers, by diffusion steps (no guidance)", loc="left", fontsize=10)
    axes.set_yscale("log")
    number_plainly(axes.yaxis)
    axes.legend(frameon=False)


def _draw_presets(axes: Axes, rows: Sequence[Mapping[str, Any]], network: str) -> None:
    highest = 0.0
    for row in rows:
        x, (y, below, above) = _milliseconds(row), _distances(row, network)
        axes.errorbar([x], [y], [[below], [above]], marker="o", markersize=8)
        axes.annotate(row["name"], (x, y), (6, 6), textcoords="offset points")
        highest = max(highest, y + above)
    axes.set_title("presets, with guidance", loc="left", fontsize=10)
    axes.set_ylim(0, 1.2 * highest or 1)


def _milliseconds(row: Mapping[str, Any]) -> float:
    median: float = row["milliseconds"]["median"]
    return median


def _distances(row: Mapping[str, Any], network: str) -> tuple[float, float, float]:
    """Return the mean distance over the seeds, and how far the least and the largest lie below and above it."""
    mean, values = mean_of_seeds(row, network, "frechet"), [seed["frechet"] for seed in row["features"][network]]
    return mean, mean - min(values), max(values) - mean

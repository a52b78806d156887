"""The chart of `benchmarks.scaling`: for each axis the seconds of an image above, and the GFLOP/s reached below."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.chart_parts import plain, save_figure
from benchmarks.scaling_rows import AXES, Point, Row, Series, gflops, operations, seconds_an_image, series_of
from mar_export.benchmark.log_axis import number_plainly

_STYLES = {"fp32": "-", "int8": "--"}
_MARKERS = "osD^v"

Line = tuple[Series, tuple[int, ...]]
"""A series, and the fields of its points beside the axis."""


def scaling_chart(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw the parts of a report as a PNG file at `path`: a column for each axis that was measured."""
    axes_measured = [axis for axis in AXES if axis in report]
    all_series = dict.fromkeys(series_of(row) for axis in axes_measured for row in report[axis]["rows"])
    runners = list(dict.fromkeys(series.runner for series in all_series))
    figure = Figure(figsize=(1 + 4.2 * len(axes_measured), 8), layout="constrained")
    grid = figure.subplots(2, len(axes_measured), squeeze=False)
    for (above, below), axis in zip(grid.T, axes_measured, strict=True):
        lines = _lines(report[axis]["rows"], axis)
        others = list(dict.fromkeys(other for _, other in lines))
        for (series, other), rows in lines.items():
            style = {
                "color": f"C{runners.index(series.runner)}",
                "linestyle": _STYLES[series.precision],
                "marker": _MARKERS[others.index(other) % len(_MARKERS)],
                "markersize": 4,
                "linewidth": 1.4,
            }
            _draw(above, below, rows, axis, style)
        _as_operations(above, next(iter(lines.values())), axis)
        _label(above, below, axis, sorted({row[axis] for row in report[axis]["rows"]}))
    grid[0, 0].set_ylabel("seconds an image")
    grid[1, 0].set_ylabel("GFLOP/s, by the operations of float32")
    _legend(figure, grid[0, 0], runners, list(dict.fromkeys(series.precision for series in all_series)))
    figure.suptitle(f"{report['model']}, preset {report['preset']}", x=0.01, ha="left", fontsize=10)
    save_figure(figure, path)


def _lines(rows: Sequence[Row], axis: str) -> dict[Line, list[Row]]:
    """Return the rows of each line of a column, along the axis."""
    lines: dict[Line, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row[axis]):
        others = tuple(row[name] for name in Point._fields if name != axis)
        lines.setdefault((series_of(row), others), []).append(row)
    return lines


def _draw(above: Axes, below: Axes, rows: Sequence[Row], axis: str, style: Mapping[str, Any]) -> None:
    """Draw a line: medians, and from the least to the most of the rounds."""
    values = [row[axis] for row in rows]
    times = [seconds_an_image(row) for row in rows]
    middle = [statistics.median(each) for each in times]
    above.plot(values, middle, **style)
    above.vlines(values, [min(each) for each in times], [max(each) for each in times], color=style["color"], alpha=0.5)
    below.plot(values, [gflops(row) for row in rows], **style)


def _as_operations(above: Axes, rows: Sequence[Row], axis: str) -> None:
    """Draw how the seconds of a line would grow as the operations do."""
    rate = gflops(rows[0])
    seconds = [operations(row) / row["batch"] / rate / 1e9 for row in rows]
    above.plot([row[axis] for row in rows], seconds, color="gray", linestyle=":", linewidth=1)


def _label(above: Axes, below: Axes, axis: str, values: Sequence[int]) -> None:
    above.set(title=axis, xscale="log", yscale="log")
    below.set(xscale="log", xlabel=axis)
    below.set_ylim(bottom=0)
    for each in (above, below):
        each.set_xticks(values, [str(value) for value in values])
        each.xaxis.set_minor_locator(NullLocator())
        plain(each)
    number_plainly(above.yaxis)


def _legend(figure: Figure, axes: Axes, runners: Sequence[str], precisions: Sequence[str]) -> None:
    """Name the colours and the styles of the lines."""
    named: dict[str, dict[str, Any]] = {
        **{runner: {"color": f"C{number}"} for number, runner in enumerate(runners)},
        **{precision: {"color": "black", "linestyle": _STYLES[precision]} for precision in precisions},
        "as the operations": {"color": "gray", "linestyle": ":"},
    }
    handles = [axes.plot([], [], **style)[0] for style in named.values()]
    figure.legend(handles, list(named), loc="outside lower center", ncols=len(named), frameon=False, fontsize=8)

"""The chart of a benchmark: one bar for each case, split into stages, with the least time beside it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.storage.files import replacing

_COLOURS = {
    "backbone": "#31688e",
    "conditioning": "#35b779",
    "denoise": "#fde725",
    "head": "#b5c94c",
    "device": "#31688e",
    "rest": "#bbbbbb",
}


def save_chart(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw a report of `mar_export.benchmark.report.build_report` as a PNG file at `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases, batch = report["cases"], report["batch"]
    colours = _stage_colours(list(dict.fromkeys(stage for case in cases for stage in case["stage_seconds"])))
    slowest = max(case["seconds"]["median"] for case in cases)
    figure = Figure(figsize=(10, 1.6 + 0.5 * len(cases)), layout="constrained")
    axes = figure.add_subplot()
    for row, case in enumerate(cases):
        left = 0.0
        for stage, seconds in case["stage_seconds"].items():
            width = seconds["median"] / batch
            axes.barh(row, width, left=left, color=colours[stage], height=0.7)
            left += width
        if case["share_of_roofline"] is not None:
            least = sum(report["plans"][case["preset"]]["roofline_seconds"].values()) / batch
            axes.plot([least, least], [row - 0.4, row + 0.4], color="black", linewidth=2)
            left = max(left, least)
        axes.text(
            left,
            row,
            f"  {case['seconds']['median'] / batch:.2f} s, {case['times_the_baseline']:.1f}x",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(range(len(cases)), [f"{case['runner']}, {case['preset']}" for case in cases])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.22 * slowest / batch)
    axes.set_xlabel("seconds an image (medians); black line: the least time that this processor allows in float32")
    axes.legend(
        [axes.barh(0, 0, color=colour) for colour in colours.values()],
        list(colours),
        loc="upper left",
        bbox_to_anchor=(1, 1),
        frameon=False,
    )
    axes.set_title(report["title"], loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _stage_colours(stages: Sequence[str]) -> dict[str, Any]:
    """Return a colour for each stage; those of engines that only some models have are shades of red, in their order."""
    from matplotlib import colormaps

    others = [stage for stage in stages if stage not in _COLOURS]
    shades = colormaps["Reds"].resampled(len(others) + 2)
    return {stage: _COLOURS.get(stage) or shades(len(others) + 1 - others.index(stage)) for stage in stages}

"""The chart of a benchmark: one bar for each case, split into stages, with the least time beside it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from runtime.model.recap_engines import FULL, LOCAL
from runtime.storage.files import replacing

_COLOURS = {
    "backbone": "#31688e",
    FULL: "#3b528b",
    LOCAL: "#21918c",
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
    slowest = max(case["seconds"]["median"] for case in cases)
    figure = Figure(figsize=(10, 1.6 + 0.5 * len(cases)), layout="constrained")
    axes = figure.add_subplot()
    for row, case in enumerate(cases):
        left = 0.0
        for stage, seconds in case["stage_seconds"].items():
            width = seconds["median"] / batch
            axes.barh(row, width, left=left, color=_COLOURS[stage], height=0.7)
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
    stages = dict.fromkeys(stage for case in cases for stage in case["stage_seconds"])
    axes.legend(
        [axes.barh(0, 0, color=_COLOURS[stage]) for stage in stages],
        list(stages),
        loc="upper left",
        bbox_to_anchor=(1, 1),
        frameon=False,
    )
    axes.set_title(report["title"], loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)

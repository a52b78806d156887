"""The chart of a study: quality against time, samplers on the left and presets on the right."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from runtime.sampling.samplers import SAMPLERS
from runtime.storage.files import replacing


def save_study_chart(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw a report of `mar_export.benchmark.study.summarize_study` as a PNG file at `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    settings = {setting["name"]: setting for setting in report["settings"]}
    for sampler in SAMPLERS:
        points = sorted(
            (setting["milliseconds"]["median"], setting["frechet"], setting["sampling"]["diffusion_steps"])
            for name, setting in settings.items()
            if name.rpartition(" ")[0] == sampler
        )
        if points:
            (line,) = left.plot([x for x, _, _ in points], [y for _, y, _ in points], marker="o", label=sampler)
            for x, y, count in points:
                left.annotate(
                    str(count), (x, y), (4, 4), textcoords="offset points", color=line.get_color(), fontsize=8
                )
    presets = [name for name in settings if " " not in name]  # the name of a sampler's setting is `SAMPLER STEPS`
    for name in presets:
        x, y = settings[name]["milliseconds"]["median"], settings[name]["frechet"]
        right.scatter(x, y, s=60)
        right.annotate(f"{name}, {settings[name]['top1_accuracy']:.1%}", (x, y), (6, 6), textcoords="offset points")
    left.set_title("samplers, by diffusion steps (16 iterations, no guidance)", loc="left", fontsize=10)
    right.set_title("presets, with guidance, and their top-1 accuracy", loc="left", fontsize=10)
    for axes in (left, right):
        axes.set(xscale="log", xlabel="ms an image, batch 1", ylabel="Fréchet distance, lower is better")
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.15)
    right.set_ylim(0, 1.2 * max((settings[name]["frechet"] for name in presets), default=1))
    left.set_yscale("log")
    if left.lines:
        left.legend(frameon=False)
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)

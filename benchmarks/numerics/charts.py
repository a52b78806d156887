"""The charts of the four pages about numbers, each from the JSON of its command."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.chart_parts import plain, save_figure
from runtime.model.engine_spec import ENGINES

_COLOURS = {"backbone": "tab:blue", "conditioning": "tab:orange", "denoise": "tab:green", "all": "black"}
_SMALLEST = 1e-9  # what stands for no difference in a logarithmic chart


def growth_chart(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw the errors by iteration above and by timestep below, a column for each precision."""
    precisions = report["example"]
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    grid = figure.subplots(2, len(precisions), sharey="row", sharex="row", squeeze=False)
    for (above, below), (name, found) in zip(grid.T, precisions.items(), strict=True):
        for part in (*ENGINES, "all"):
            errors = found[part]
            above.plot(range(1, len(errors["accumulated"]) + 1), errors["accumulated"], color=_COLOURS[part], lw=1.2)
            below.plot(report["timesteps"], errors["chain"], color=_COLOURS[part], lw=1.2, label=part)
        above.set(title=name, yscale="log", xlabel="iteration")
        below.set(yscale="log", xlabel="timestep, noisy to clean", xlim=(1000, 0))
        for axes in (above, below):
            plain(axes)
    grid[0, 0].set_ylabel("error of the tokens, accumulated")
    grid[1, 0].set_ylabel("error of the state, of the iteration alone")
    grid[1, 0].legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def estimators_chart(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw the bias of the Fréchet distance, its spread, and the kernel distance, against the number of images."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    bias, deviation, kernel = figure.subplots(1, 3)
    for number, (name, found) in enumerate(report["sets"].items()):
        colour, limit = f"C{number}", found["frechet"] - (found["frechet_bias"] or 0.0)
        rows = [(row["images"], row["frechet"]) for row in found["rows"]]
        sizes = [size for size, _ in rows]
        bias.plot(sizes, [row["mean"] - limit for _, row in rows], "o-", color=colour, label=name, ms=4)
        deviation.plot(sizes, [row["spread"] for _, row in rows], "o-", color=colour, label=name, ms=4)
        known = [(size, row["standard_error"]) for size, row in rows if row["standard_error"] is not None]
        deviation.plot(*zip(*known, strict=True), "--", color=colour, lw=1) if known else None
        kernels = [(row["images"], row["kernel_distance"]) for row in found["rows"] if row["kernel_distance"]]
        if found["features"] < 1000:
            kernel.errorbar(
                [size * 1.06**number for size, _ in kernels],
                [row["mean"] for _, row in kernels],
                [row["spread"] for _, row in kernels],
                fmt="o-",
                color=colour,
                capsize=3,
                ms=4,
                label=name,
            )
    for number, (name, found) in enumerate(report["perfect"].items()):
        rows = [(row["images"], row["mean"]) for row in found["rows"]]
        bias.plot(*zip(*rows, strict=True), "s:", color=f"C{5 + number}", label=f"{name}, perfect images", ms=4)
    bias.set(ylabel="bias of the Fréchet distance", xscale="log", yscale="log")
    deviation.set(ylabel="spread of the Fréchet distance\n(dashed: expected from one set)", xscale="log", yscale="log")
    kernel.set(ylabel="kernel distance, classifier: mean and spread", xscale="log")
    for axes in (bias, deviation, kernel):
        axes.set_xlabel("images")
        plain(axes)
    bias.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def convergence_chart(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw the errors of every solver against the number of steps, a panel for each family."""
    families = list(dict.fromkeys(row["family"] for row in report["rows"]))
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    panels = dict(zip(families, figure.subplots(1, len(families), sharey=True), strict=True))
    for family, axes in panels.items():
        rows = [row for row in report["rows"] if row["family"] == family]
        solvers = list(dict.fromkeys(row["solver"] for row in rows))
        for row in rows:
            errors = {int(steps): error for steps, error in row["strong"].items()}
            axes.plot(
                list(errors),
                list(errors.values()),
                "o-" if row["guided"] else "o--",
                color=f"C{solvers.index(row['solver'])}",
                ms=4,
                label=f"{row['solver']}{', guidance' if row['guided'] else ''}",
            )
        _slopes(axes)
        axes.set(title=family, xscale="log", yscale="log", xlabel="intervals")
        axes.set_xticks([8, 32, 128, 512], ["8", "32", "128", "512"])
        plain(axes)
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    panels[families[0]].set_ylabel("strong error, relative L2")
    save_figure(figure, path)


def _slopes(axes: Axes) -> None:
    """Draw lines of order 1 and 2 for the eye."""
    for order in (1, 2):
        axes.plot([64, 256], [0.5, 0.5 / 4**order], color="gray", lw=0.8)
        axes.annotate(
            f"order {order}", (256, 0.5 / 4**order), (3, 0), textcoords="offset points", fontsize=8, color="gray"
        )


def determinism_chart(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Draw the distance of the latents from the baseline, a bar for each setting; none where the bits are the same."""
    rows = [row for row in report["rows"] if "failed" not in row and row["kind"] != "baseline"]
    figure = Figure(figsize=(11, 1 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names = [f"{row['backend']}, {row['precision']}: {row['name']}" for row in rows]
    axes.barh(names, [0 if row["latents"] else max(row["distance"], _SMALLEST) for row in rows], color="tab:red")
    for place, row in enumerate(rows):
        if row["latents"]:
            axes.annotate(
                "same bits", (_SMALLEST, place), (4, -3), textcoords="offset points", fontsize=8, color="tab:green"
            )
    axes.set(xscale="log", xlim=(_SMALLEST, 1), xlabel="relative L2 distance of the latents from the baseline")
    axes.invert_yaxis()
    plain(axes)
    save_figure(figure, path)


CHARTS: Mapping[str, Callable[[Mapping[str, Any], pathlib.Path], None]] = {
    "error-growth": growth_chart,
    "estimators": estimators_chart,
    "convergence": convergence_chart,
    "determinism": determinism_chart,
}
"""The chart of each command."""

"""Time and Fréchet distance of the example model with local iterations of ReCAP, beside fewer iterations without them.

    python -m benchmarks.recap_quality docs/benchmarks/data/recap-quality.json docs/images/recap.png --count 2000

Results that are in `out/recap/results` already are used again. Images, orders and noises are the same for all settings.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.uncertain_figures import accuracy_cell, frechet_cell
from mar_export.benchmark.study import Setting, Study, run_study, summarize_study, time_settings
from runtime.backends import available_threads
from runtime.provenance import commit
from runtime.storage.files import replacing, write_json
from runtime.workers.worker_group import Workers

EXAMPLE = pathlib.Path("examples/fashion-mnist")
FOLDER = pathlib.Path("out/recap")
REPEATS = 5
CHAIN = {"preset": "exact", "sampler": "ddim", "diffusion_steps": 14}
"""Guidance in all iterations, and chains as short as those of `fast`: long ones would take hours."""
GROUPS = {"1/2 local": (0, 1), "3/4 local": (0, 3)}
"""Iterations before the first group, and local ones after each full pass."""


def settings_of(iterations: Sequence[int], reduced: Sequence[int]) -> list[Setting]:
    """Return full passes only, and groups with the buffer anew and reused, at each number of iterations.

    Args:
        iterations: The numbers of iterations with and without groups.
        reduced: Further ones without groups.
    """
    settings = [Setting(f"full {count}", {**CHAIN, "iterations": count}) for count in (*iterations, *reduced)]
    for count in iterations:
        for name, (plain, local) in GROUPS.items():
            for reused in (False, True):
                recap = {
                    "recap_plain_iterations": plain,
                    "recap_local_iterations": local,
                    "recap_cache_buffer": reused,
                }
                label = f"{name}, buffer {'reused' if reused else 'anew'} {count}"
                settings.append(Setting(label, {**CHAIN, "iterations": count, **recap}))
    return settings


def main(json_file: pathlib.Path, chart: pathlib.Path, data: pathlib.Path, count: int, iterations: list[int]) -> None:
    """Evaluate and time all settings; write the figures and the chart."""
    artifact = FOLDER / "example"
    if not artifact.exists():
        artifact.parent.mkdir(parents=True, exist_ok=True)
        line = ["--out", str(artifact), "--cfg-scale=2.0", "--diffusion-steps=ddim100", "--recap"]
        subprocess.run([sys.executable, "-m", "runtime.cli", "export", str(EXAMPLE), *line], check=True)
    study = Study(artifact, EXAMPLE, None, data, count)
    settings = settings_of(iterations, [count * 3 // 4 for count in iterations] + [count // 2 for count in iterations])
    run_study(study, settings, FOLDER / "results", Workers.of_this_machine(1, 1), print)
    times = time_settings(study, settings, available_threads(), REPEATS)
    report = summarize_study(study, settings, FOLDER / "results", times) | {"commit": commit()}
    write_json(json_file, report)
    save_chart(report["settings"], chart)
    print(recap_quality_table(report))


def recap_quality_table(report: Mapping[str, Any]) -> str:
    """Return the figures as a table, a line for each setting."""
    lines = [
        f"Commit {report['commit']}.",
        "",
        "| setting | iterations | ms an image | top-1 accuracy | Fréchet distance |",
        "|---|---|---|---|---|",
    ]
    for row in report["settings"]:
        name, _, number = row["name"].rpartition(" ")
        lines.append(
            f"| {name} | {number} | {row['milliseconds']['median']:.0f} | {accuracy_cell(row)} | {frechet_cell(row)} |"
        )
    return "\n".join(lines)


def save_chart(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draw measured time against Fréchet distance, a line for each kind of setting."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for kind in dict.fromkeys(row["name"].rpartition(" ")[0] for row in rows):
        points = sorted(
            (row["milliseconds"]["median"], row["frechet"], row["standard_error"]["frechet"], row["name"].split()[-1])
            for row in rows
            if row["name"].rpartition(" ")[0] == kind
        )
        line = axes.errorbar(
            [x for x, *_ in points], [y for _, y, *_ in points], [e for *_, e, _ in points], marker="o", label=kind
        )
        for x, y, _, number in points:
            axes.annotate(number, (x, y), (4, 4), textcoords="offset points", color=line[0].get_color(), fontsize=8)
    axes.set(xlabel="ms an image, batch 1", ylabel="Fréchet distance, lower is better")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json_file", type=pathlib.Path)
    parser.add_argument("chart", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--iterations", type=int, nargs="+", default=[64, 14])
    arguments = parser.parse_args()
    main(arguments.json_file, arguments.chart, arguments.data, arguments.count, arguments.iterations)

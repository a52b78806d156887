"""Time and Fréchet distance of the example model with local iterations of ReCAP, beside fewer iterations without them.

    python -m benchmarks.recap_quality reuse docs/benchmarks/data/recap-quality.json docs/images/recap.png
    python -m benchmarks.recap_quality instant docs/benchmarks/data/instant-quality.json docs/images/instant.png

`reuse` has equal chains in all settings, so they differ in what is reused. `instant` has the preset, other candidates
for it, and `fast`. Results that are in `out/recap/results` already are used again. Images, orders and noises are the
same for all settings.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mar_export.benchmark.study import Results, open_judges, run_study, summarize_study, time_settings
from mar_export.benchmark.study_settings import Setting, Study
from mar_export.benchmark.study_table import metric_cell
from runtime.backends import available_threads
from runtime.checks import pluralize
from runtime.cost.operations import plan_costs
from runtime.provenance import commit, processor_name
from runtime.sampling.constraints import default_sampling, plan_for
from runtime.sampling.presets import resolve_sampling
from runtime.storage.files import write_json
from training.evaluation.feature_networks import CLASSIFIER
from training.models.model_sizes import model_config

EXAMPLE = pathlib.Path("examples/fashion-mnist")
FOLDER = pathlib.Path("out/recap")
ARTIFACT = FOLDER / "example"
REPEATS = 15
CHAIN = {"preset": "exact", "sampler": "ddim", "diffusion_steps": 14}
"""Guidance in all iterations, and chains as short as those of `fast`: long ones would take hours."""
GROUPS = {"every second local": 1, "3 of 4 local": 3}
"""Local iterations after each full pass."""
LARGE_MODEL, LARGE_GUIDANCE = "mar_base", 2.9
"""What the operations in the tables are of: MAR-B, at its published guidance."""
ITERATIONS = (64, 14)
"""Those of `exact` and `fast`, with and without groups."""


def reuse_settings() -> list[Setting]:
    """Return full passes only, also three quarters and half as many, and groups with the buffer anew and reused."""
    counts = [*ITERATIONS, *(count * 3 // 4 for count in ITERATIONS), *(count // 2 for count in ITERATIONS)]
    settings = [Setting(f"full {count}", ARTIFACT, {**CHAIN, "iterations": count}) for count in counts]
    for count in ITERATIONS:
        for name, local in GROUPS.items():
            for reused in (False, True):
                recap = {"recap_local_iterations": local, "recap_cache_buffer": reused}
                label = f"{name}, buffer {'reused' if reused else 'anew'} {count}"
                settings.append(Setting(label, ARTIFACT, {**CHAIN, "iterations": count, **recap}))
    return settings


def instant_settings() -> list[Setting]:
    """Return `fast`, `instant`, and it with other iterations, local passes and shares of the tokens before guidance."""
    settings = [
        Setting("fast 14", ARTIFACT, {"preset": "fast"}),
        Setting("instant 6", ARTIFACT, {"preset": "instant"}),
    ]
    full = ((8, 0, 0.2), (7, 0, 0.4), (6, 0, 0.2), (5, 0, 0.1), (5, 0, 0.25))
    tens, sixes = ((10, 1, 0.15), (10, 2, 0.15)), ((6, 1, 0.2),)
    eights = ((8, 1, 0.15), (8, 2, 0.15), (8, 1, 0.2), (8, 1, 0.3), (8, 2, 0.3))
    for count, local, start in (*full, *tens, *eights, *sixes):
        sampling: dict[str, Any] = {"preset": "instant", "iterations": count, "cfg_interval": (start, 1.0)}
        if local:
            sampling |= {"recap_plain_iterations": 2, "recap_local_iterations": local}
        passes = pluralize(local, "local pass") if local else "full passes"
        settings.append(Setting(f"{passes}, guidance from {start:.0%} {count}", ARTIFACT, sampling))
    return settings


SETTINGS = {"reuse": reuse_settings, "instant": instant_settings}


def operations_of(setting: Setting) -> float:
    """Return the operations of an image of the large model, with the first pass of a class that is kept."""
    config = model_config(LARGE_MODEL)
    sampling = resolve_sampling(default_sampling(config), config, {**setting.sampling, "cfg_scale": LARGE_GUIDANCE})
    return sum(cost.operations for cost in plan_costs(config, plan_for(config, sampling), 1).values())


def main(settings: list[Setting], json_file: pathlib.Path, chart: pathlib.Path, data: pathlib.Path, count: int) -> None:
    """Evaluate and time settings; write the figures and the chart."""
    if not ARTIFACT.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        line = ["--out", str(ARTIFACT), "--cfg-scale=2.0", "--diffusion-steps=ddim100", "--recap"]
        subprocess.run([sys.executable, "-m", "runtime.cli", "export", str(EXAMPLE), *line], check=True)
    study = Study(data, count)
    results = Results(study, open_judges(study, settings), FOLDER / "results")
    run_study(study, settings, results, 1, available_threads(), print)
    times = time_settings(study, settings, available_threads(), REPEATS)
    measured = {"processor": processor_name(), "threads": available_threads(), "repeats": REPEATS, "commit": commit()}
    report = summarize_study(study, settings, results, times) | measured
    for row, setting in zip(report["settings"], settings, strict=True):
        row["operations"] = operations_of(setting)
    write_json(json_file, report)
    save_chart(report["settings"], chart)
    print(recap_quality_table(report))


def recap_quality_table(report: Mapping[str, Any]) -> str:
    """Return the figures as a table, a line for each setting."""
    lines = [
        f"{report['images']:,} images each. Times of single images in float32, {report['repeats']} rounds in turns, "
        f"10% to 90%: {report['processor']}, {pluralize(report['threads'], 'thread')}, commit {report['commit']}.",
        "",
        f"| setting | iterations | TFLOP of {LARGE_MODEL} | ms an image | top-1 accuracy | Fréchet distance |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["settings"]:
        (name, _, number), times = row["name"].rpartition(" "), row["milliseconds"]
        taken = f"{times['median']:.0f} ({times['p10']:.0f} to {times['p90']:.0f})"
        operations = f"{row['operations'] / 1e12:.2f}"
        seeds = row["features"][CLASSIFIER]
        accuracy, distance = metric_cell(seeds, "top1_accuracy", "{:.1%}"), metric_cell(seeds, "frechet", "{:.3f}")
        lines.append(f"| {name} | {number} | {operations} | {taken} | {accuracy} | {distance} |")
    return "\n".join(lines)


def save_chart(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draw measured time against Fréchet distance, a line for each kind of setting."""
    from matplotlib.figure import Figure

    from benchmarks.chart_parts import plain, save_figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.add_subplot()
    kinds = dict.fromkeys(row["name"].rpartition(" ")[0] for row in rows)
    for kind, marker in zip(kinds, itertools.cycle("osD^vPX")):
        points = sorted(
            (
                row["milliseconds"]["median"],
                metrics["frechet"],
                metrics["standard_error"]["frechet"],
                row["name"].split()[-1],
            )
            for row in rows
            for metrics in row["features"][CLASSIFIER]
            if row["name"].rpartition(" ")[0] == kind
        )
        times, distances, errors, _ = zip(*points, strict=True)
        line = axes.errorbar(times, distances, errors, marker=marker, label=kind)
        for x, y, _, number in points:
            axes.annotate(number, (x, y), (4, 4), textcoords="offset points", color=line[0].get_color(), fontsize=8)
    axes.set(xlabel="ms an image, batch 1", ylabel="Fréchet distance, lower is better")
    plain(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    save_figure(figure, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", choices=SETTINGS)
    parser.add_argument("json_file", type=pathlib.Path)
    parser.add_argument("chart", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--count", type=int, default=2000)
    arguments = parser.parse_args()
    main(SETTINGS[arguments.settings](), arguments.json_file, arguments.chart, arguments.data, arguments.count)

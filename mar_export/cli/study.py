"""The command `mar study`."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import click
import torch

from mar_export.benchmark.study import Results, open_judges, run_study, summarize_study, time_settings
from mar_export.benchmark.study_chart import save_study_chart
from mar_export.benchmark.study_settings import Study, preset_settings, sampler_settings
from mar_export.benchmark.study_table import study_rows
from runtime.backends import available_threads
from runtime.cli.background_option import background_option
from runtime.cli.options import PATH, backend_options, threads_option
from runtime.cli.result_files import (
    OUTPUT,
    check_result_file,
    force_option,
    is_forced,
    result_file,
    write_result_json,
)
from runtime.errors import RequestError
from runtime.image_files import Color
from runtime.storage.files import holding_folder
from runtime.text_table import aligned
from training.cli.evaluation_options import evaluation_options
from training.reporting.progress import print_lines, print_warnings

_REPEATS = 5


@click.command()
@click.argument("artifacts", type=PATH, nargs=-1, required=True, metavar="ARTIFACT...")
@click.option("--data", type=PATH, required=True, help="The dataset that the models were trained on.")
@click.option(
    "--preset",
    "presets",
    multiple=True,
    metavar="NAME",
    help="Evaluate this preset only, of each artifact that has it. The option can be repeated. Default: every preset, "
    "and for one artifact every sampler.",
)
@click.option("--presets-only", is_flag=True, help="Evaluate every preset, but not the samplers.")
@click.option(
    "--count", type=int, default=5000, show_default=True, help="Images that each setting draws with each seed."
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="The number of seeds. Several show how much the figures depend on the noise.",
)
@evaluation_options
@click.option(
    "--out",
    type=PATH,
    default="out/study",
    show_default=True,
    help="The folder of results and images; existing ones are kept.",
)
@background_option
@backend_options
@threads_option
@click.option("--report", "report_file", type=OUTPUT, help="Write the report to this file as JSON.")
@click.option(
    "--chart", type=OUTPUT, help="Write a chart of the report, by the first of --features, to this file as PNG."
)
@force_option("Replace results of other settings in --out, and files that something else made.")
def study(
    artifacts: Sequence[pathlib.Path],
    data: pathlib.Path,
    presets: Sequence[str],
    presets_only: bool,
    count: int,
    seeds: int,
    features: Sequence[str],
    classifier: pathlib.Path | None,
    out: pathlib.Path,
    background: Color,
    processes: int,
    backend: str,
    device: str | None,
    cuda_graphs: bool,
    threads: int | None,
    report_file: pathlib.Path | None,
    chart: pathlib.Path | None,
) -> None:
    """Measure the time and the quality of every preset and every sampler of an artifact, or of presets of several.

    This takes hours. When the command is stopped and given again, it keeps the results and the images in --out.
    """
    if count < 2:
        raise RequestError(f"--count must be at least 2, found {count}")
    for path in (report_file, chart):
        if path is not None:
            check_result_file(path)
    if threads is not None:
        torch.set_num_threads(threads)
    threads = threads or available_threads()
    backend_arguments = {"backend": backend, "device": device, "cuda_graphs": cuda_graphs}
    inputs = Study(
        data, count, seeds, tuple(dict.fromkeys(features)), classifier, background, tuple(backend_arguments.items())
    )
    settings = preset_settings(artifacts, presets)
    if len(artifacts) == 1 and not (presets or presets_only):
        settings += sampler_settings(artifacts[0])
    with holding_folder(out):
        judges = open_judges(inputs, settings)
        print_lines(dict.fromkeys([*judges.real.train.notes, *judges.real.compared.notes]))
        results = Results(inputs, judges, out)
        if not is_forced():
            results.check(settings)
        run_study(inputs, settings, results, processes, threads, click.echo)
        report = summarize_study(inputs, settings, results, time_settings(inputs, settings, threads, _REPEATS))
    print_warnings([*report["doubts"], *judges.real.train.warnings, *judges.real.compared.warnings])
    rows = study_rows(report)
    click.echo("\n" + "\n".join(aligned(rows, right=range(1, len(rows[0])))))
    _write(report, report_file, chart)


def _write(report: Mapping[str, Any], report_file: pathlib.Path | None, chart: pathlib.Path | None) -> None:
    if report_file is not None:
        write_result_json(report_file, report)
    if chart is not None:
        with result_file(chart) as temporary:
            save_study_chart(report, temporary)

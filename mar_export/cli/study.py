"""The command `mar study`."""

from __future__ import annotations

import pathlib

import click

from mar_export.benchmark.study import (
    Study,
    check_results,
    preset_settings,
    run_study,
    sampler_settings,
    study_doubts,
    summarize_study,
    time_settings,
)
from mar_export.benchmark.study_chart import save_study_chart
from runtime.artifact.artifact_folder import Artifact
from runtime.backends import available_threads
from runtime.cli.background_option import background_option
from runtime.cli.options import PATH, threads_option
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
from runtime.model.families import check_supported
from runtime.storage.files import holding_folder
from runtime.workers.worker_group import Workers
from training.cli.options import echo_warnings
from training.cli.run_settings import background_of_run
from training.evaluation.uncertainty import with_standard_error

_REPEATS = 5


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--checkpoint", type=PATH, required=True, help="The weights that the artifact was exported from.")
@click.option("--data", type=PATH, required=True, help="The dataset that the model was trained on.")
@click.option(
    "--classifier",
    type=PATH,
    help="The file of the classifier, which is trained first if it does not exist. Default: one in out/classifiers for "
    "each dataset.",
)
@click.option("--count", type=int, default=5000, show_default=True, help="Images that each setting generates.")
@click.option(
    "--out", type=PATH, default="out/study", show_default=True, help="The folder of results; existing ones are kept."
)
@click.option("--presets-only", is_flag=True, help="Evaluate the presets only, not the samplers.")
@background_option
@click.option(
    "--processes",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="The number of settings that are evaluated at the same time. More than one need the extra ray.",
)
@threads_option
@click.option("--report", "report_file", type=OUTPUT, help="Write the report to this file as JSON.")
@click.option("--chart", type=OUTPUT, help="Write a chart of the report to this file as PNG.")
@force_option("Replace results of other settings in --out, and files that something else made.")
def study(
    artifact: pathlib.Path,
    checkpoint: pathlib.Path,
    data: pathlib.Path,
    classifier: pathlib.Path | None,
    count: int,
    out: pathlib.Path,
    presets_only: bool,
    background: Color,
    processes: int,
    threads: int | None,
    report_file: pathlib.Path | None,
    chart: pathlib.Path | None,
) -> None:
    """Measure the time and the quality of every preset and every sampler with ARTIFACT.

    This takes hours. When the command is stopped and given again, it keeps the results in --out.
    """
    if count < 2:
        raise RequestError(f"--count must be at least 2, found {count}")
    for path in (report_file, chart):
        if path is not None:
            check_result_file(path)
    threads = threads or available_threads()
    manifest = Artifact(artifact).manifest
    config = check_supported(manifest.model, "mar study")
    settings = preset_settings(manifest.presets) + ([] if presets_only else sampler_settings(config))
    inputs = Study(artifact, checkpoint, classifier, data, count, background_of_run(checkpoint, background))
    with holding_folder(out):
        if not is_forced():
            check_results(inputs, settings, out)
        run_study(inputs, settings, out, Workers.of_this_machine(processes, threads), click.echo)
    echo_warnings(study_doubts(inputs))
    report = summarize_study(inputs, settings, out, time_settings(inputs, settings, threads, _REPEATS))
    click.echo(f"\n{'':20}{'head evaluations':>18}{'ms':>9}{'top-1':>16}{'Fréchet distance':>18}")
    for setting in report["settings"]:
        click.echo(
            f"{setting['name']:20}{setting['head_evaluations']:18}{setting['milliseconds']['median']:9.0f}"
            f"{with_standard_error(setting, 'top1_accuracy', '{:.1%}'):>16}"
            f"{with_standard_error(setting, 'frechet', '{:.3f}'):>18}"
        )
    if report_file is not None:
        write_result_json(report_file, report)
    if chart is not None:
        with result_file(chart) as temporary:
            save_study_chart(report, temporary)

"""`mar study`."""

from __future__ import annotations

import pathlib

import click

from mar_export.benchmark.study import Study, preset_settings, run_study, sampler_settings, summary, time_settings
from mar_export.benchmark.study_chart import save_study_chart
from runtime.artifact.artifact_folder import Artifact
from runtime.backends import available_threads
from runtime.cli.options import PATH, threads_option
from runtime.errors import RequestError
from runtime.files import check_writable, write_json

_REPEATS = 5


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--checkpoint", type=PATH, required=True, help="The weights the artifact was exported from.")
@click.option("--data", type=PATH, required=True, help="The dataset the model was trained on.")
@click.option(
    "--classifier", type=PATH, default="out/classifier.safetensors", show_default=True, help="Made if missing."
)
@click.option("--images", type=int, default=5000, show_default=True, help="Images of each setting to draw.")
@click.option("--out", type=PATH, default="out/study", show_default=True, help="Folder of what is judged already.")
@click.option("--presets-only", is_flag=True, help="Leave the samplers out.")
@threads_option
@click.option("--json", "json_file", type=PATH, help="Where to write what was found.")
@click.option("--chart", type=PATH, help="Where to draw it, as PNG.")
def study(
    artifact: pathlib.Path,
    checkpoint: pathlib.Path,
    data: pathlib.Path,
    classifier: pathlib.Path,
    images: int,
    out: pathlib.Path,
    presets_only: bool,
    threads: int | None,
    json_file: pathlib.Path | None,
    chart: pathlib.Path | None,
) -> None:
    """Judge every preset and every sampler on ARTIFACT: what it costs, and what is lost.

    This takes hours; stopped, it goes on where it was.
    """
    if images < 2:
        raise RequestError(f"--images must be at least 2, found {images}")
    for path in (json_file, chart):
        if path is not None:
            check_writable(path)
    threads = threads or available_threads()
    manifest = Artifact(artifact).manifest
    settings = preset_settings(manifest.presets) + ([] if presets_only else sampler_settings(manifest.model))
    asked = Study(artifact, checkpoint, classifier, data, images)
    run_study(asked, settings, out, threads, click.echo)
    value = summary(asked, settings, out, time_settings(asked, settings, threads, _REPEATS))
    click.echo(f"\n{'':20}{'head evaluations':>18}{'ms':>9}{'top1_accuracy':>12}{'Fréchet distance':>18}")
    for setting in value["settings"]:
        click.echo(
            f"{setting['name']:20}{setting['head_evaluations']:18}{setting['milliseconds']['median']:9.0f}"
            f"{setting['top1_accuracy']:12.1%}{setting['frechet']:18.3f}"
        )
    if json_file is not None:
        write_json(json_file, value)
    if chart is not None:
        save_study_chart(value, chart)

"""`mar study`."""

from __future__ import annotations

import pathlib

import click

from mar_export.benchmark.study import Study, preset_ways, run_study, sampler_ways, summary, time_ways
from mar_export.benchmark.study_chart import save_study_chart
from runtime.artifact.manifest import Artifact
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
@click.option("--images", type=int, default=5000, show_default=True, help="Images of each way to draw.")
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
    ways = preset_ways(manifest.presets) + ([] if presets_only else sampler_ways(manifest.model))
    asked = Study(artifact, checkpoint, classifier, data, images)
    run_study(asked, ways, out, threads, click.echo)
    value = summary(asked, ways, out, time_ways(asked, ways, threads, _REPEATS))
    click.echo(f"\n{'':20}{'head evaluations':>18}{'ms':>9}{'top1_accuracy':>12}{'Fréchet distance':>18}")
    for way in value["ways"]:
        click.echo(
            f"{way['name']:20}{way['head_evaluations']:18}{way['milliseconds']['median']:9.0f}"
            f"{way['top1_accuracy']:12.1%}{way['frechet']:18.3f}"
        )
    if json_file is not None:
        write_json(json_file, value)
    if chart is not None:
        save_study_chart(value, chart)

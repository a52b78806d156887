"""The command `mar export-triton`."""

from __future__ import annotations

import pathlib

import click

from runtime.artifact.artifact_folder import Artifact
from runtime.cli.batch_options import batch_options
from runtime.cli.options import PATH, default_preset_option, server_backend_options
from runtime.cli.result_files import force_option, is_forced
from runtime.triton.repository import TritonSettings, write_model

_DEFAULTS = TritonSettings()


@click.command("export-triton")
@click.argument("artifact", type=PATH)
@click.option("--out", type=PATH, required=True, metavar="REPOSITORY", help="The folder of the model repository.")
@click.option("--name", help="The name of the model. Default: the name of the artifact's folder.")
@default_preset_option
@batch_options(
    "The largest number of images that are drawn together, and of images in one request.",
    "How many milliseconds Triton waits for further requests, to draw them together.",
)
@click.option(
    "--partial-images",
    type=click.IntRange(0, 64),
    default=_DEFAULTS.partial_images,
    show_default=True,
    help="How many times each image is sent before it is finished. Above 0, clients must read a stream.",
)
@server_backend_options
@force_option("Replace another model of this name.")
def export_triton(
    artifact: pathlib.Path,
    out: pathlib.Path,
    name: str | None,
    preset: str | None,
    max_batch: int,
    max_wait_ms: float,
    partial_images: int,
    backend: str,
    device: str | None,
    threads: int | None,
) -> None:
    """Write ARTIFACT as a model for the Python backend of Triton Inference Server."""
    opened = Artifact(artifact)
    settings = TritonSettings(preset, max_batch, max_wait_ms, partial_images, backend, device, threads)
    name = name or artifact.resolve().name
    write_model(opened, out, name, settings, is_forced())
    click.echo(f"{out / name} written; start the server with tritonserver --model-repository={out.resolve()}")

"""The command `mar generate-dataset`."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.backends import available_threads, uses_gpu
from runtime.checks import pluralize
from runtime.cli.calibration_note import tell_other_plan
from runtime.cli.options import CLASS_HELP, PATH, backend_options, preset_option, sampling_options, threads_option
from runtime.dataset.artifact_model import open_artifact
from runtime.dataset.draw import draw_dataset
from runtime.dataset.formats import FORMATS
from runtime.dataset.plan import DrawingPlan
from runtime.errors import RequestError
from runtime.image_records.record import ImageRecord, settings_values
from runtime.model.families import check_supported
from runtime.progress import Progress, readable_time
from runtime.requests.validation import check_batch, check_seed, parse_class
from runtime.sampling.constraints import plan_for
from runtime.workers.worker_group import Workers

_ALL = "all"


@click.command("generate-dataset")
@click.argument("artifact", type=PATH)
@click.option("--out", type=PATH, required=True, help="The folder of the dataset. A stopped command resumes there.")
@click.option("--count", type=int, required=True, help="Number of images; they take the classes in turn.")
@click.option(
    "--classes",
    metavar=f"{_ALL}|NUMBER|NAME",
    multiple=True,
    default=(_ALL,),
    show_default=True,
    help=f"A class of the images, {CLASS_HELP}. Repeat it for several classes.",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(list(FORMATS)),
    default="png",
    show_default=True,
    help="A PNG file for each image in a folder for each class, tar files for WebDataset, or .npz files of arrays.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same images.")
@click.option(
    "--workers",
    type=click.IntRange(1, 4096),
    help="Number of processes that draw. More than one need Ray. Default: 1; with --ray, one a processor or GPU.",
)
@click.option(
    "--ray",
    "address",
    metavar="ADDRESS",
    help="Draw on the machines of a Ray cluster: HOST:PORT of its head, or auto for the one that runs on this machine.",
)
@click.option("--batch-size", type=int, default=16, show_default=True, help="Number of images generated together.")
@click.option(
    "--shard-size",
    type=int,
    help="Number of images that a worker draws before they are written, and of the images in a tar or .npz file. It is "
    "a multiple of --batch-size.  [default: 4 batches]",
)
@preset_option
@sampling_options
@backend_options
@threads_option
def generate_dataset(
    artifact: pathlib.Path,
    out: pathlib.Path,
    count: int,
    classes: Sequence[str],
    format_name: str,
    seed: int,
    workers: int | None,
    address: str | None,
    batch_size: int,
    shard_size: int | None,
    backend: str,
    device: str | None,
    cuda_graphs: bool,
    threads: int | None,
    **settings: Any,
) -> None:
    """Draw many images with ARTIFACT into a folder, with several workers on this machine or on many.

    The images, their names and the index are the same with any number of workers. --threads are those of all workers
    together; with --ray, those of each.
    """
    manifest = Artifact(artifact).manifest
    check_supported(manifest.model, "mar generate-dataset")
    manifest.check_decoder(str(artifact))
    model = _model_record(manifest, seed, settings)
    chosen = _parse_classes(classes, manifest)
    size = 4 * batch_size if shard_size is None else shard_size
    plan = DrawingPlan(model, chosen, manifest.class_names, count, batch_size, size)
    sampling = manifest.resolve_sampling(settings)
    check_batch(batch_size, plan_for(manifest.model, sampling).noise_steps, manifest.model)
    tell_other_plan(manifest, sampling)
    who = _workers(workers, address, threads, backend, device)
    arguments = {"backend": backend, "device": device, "cuda_graphs": cuda_graphs, "threads": who.threads}
    place = pathlib.Path(artifact).absolute()
    open_model = functools.partial(open_artifact, place, manifest.content_sha256, sampling, arguments)
    _draw(plan, open_model, format_name, out, who)


def _draw(plan: DrawingPlan, open_model: Any, format_name: str, out: pathlib.Path, workers: Workers) -> None:
    """Draw a dataset with a progress bar, and print what was done."""
    started = time.monotonic()
    before = 0
    with Progress(plan.count, "drawing images", unit="images") as bar:

        def update(images: int, were_there: bool) -> None:
            nonlocal before
            if were_there:
                before += images
                bar.skip(images)
            else:
                bar.update(images)

        draw_dataset(plan, open_model, format_name, out, workers, update)
    drawn = pluralize(plan.count - before, "image")
    already = f"; {before:,} were there before" if before else ""
    click.echo(f"{drawn} written to {out} in {readable_time(time.monotonic() - started)}{already}")


def _model_record(manifest: Manifest, seed: int, settings: Mapping[str, Any]) -> ImageRecord:
    """Return what the records of all images have in common, without opening an engine."""
    values = settings_values(manifest.resolve_sampling(settings))
    return ImageRecord(0, "", check_seed(seed), 0, values, settings.get("preset"), manifest.content_sha256)


def _parse_classes(texts: Sequence[str], manifest: Manifest) -> Sequence[int]:
    if tuple(texts) == (_ALL,):
        return range(manifest.model.class_num)
    chosen = [parse_class(text, manifest.class_names) for text in texts]
    wrong = [label for label in chosen if not 0 <= label < manifest.model.class_num]
    if wrong:
        raise RequestError(
            f"class {wrong[0]} is out of range; this model has classes 0..{manifest.model.class_num - 1}"
        )
    return chosen


def _workers(count: int | None, address: str | None, threads: int | None, backend: str, device: str | None) -> Workers:
    """Return who draws: processor threads are shared on this machine, and each worker has its own in a cluster."""
    gpu = uses_gpu(backend, device)
    if address is not None:
        return Workers(count, threads or 1, gpu, address)
    return Workers.of_this_machine(count or 1, threads or available_threads(), gpu)

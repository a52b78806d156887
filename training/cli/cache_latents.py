"""`mar cache-latents`."""

from __future__ import annotations

import pathlib

import click
import torch

from runtime.checks import pluralize
from runtime.cli.options import PATH, progress_bar, threads_option
from runtime.errors import DataError, RequestError
from runtime.files import sha256
from training.checkpoints.published_files import load_vae
from training.data.datasets import open_dataset, to_rgb
from training.data.latent_cache import CachedLatents, cache_latents


@click.command("cache-latents")
@click.option("--data", type=PATH, required=True, help="A folder with IDX files, or with a sub-folder for each class.")
@click.option("--tokenizer", type=PATH, required=True, help="The KL autoencoder: a published .ckpt or a .safetensors.")
@click.option("--out", type=PATH, required=True, help="The folder to make, or to go on with.")
@click.option("--image-size", type=int, default=256, show_default=True, help="Side of the images in pixels.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Images encoded together.")
@click.option(
    "--bad-data",
    type=click.Choice(["report", "stop"]),
    default="report",
    show_default=True,
    help="What to do about images that cannot be read or had to be enlarged, and classes without any.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: a GPU where there is one.")
@threads_option
def cache(
    data: pathlib.Path,
    tokenizer: pathlib.Path,
    out: pathlib.Path,
    image_size: int,
    batch_size: int,
    bad_data: str,
    device: str | None,
    threads: int | None,
) -> None:
    """Encode images and their mirror images once, for mar train --data OUT.

    What cannot be read is told and left out. Stopped, it goes on with the same command.
    """

    def complain(complaint: str) -> None:
        if bad_data == "stop":
            raise DataError(f"{complaint}; leave --bad-data stop away to go on without what cannot be read")
        click.echo(complaint, err=True)

    if threads is not None:
        torch.set_num_threads(threads)
    vae = load_vae(tokenizer)
    if image_size < 1 or image_size % vae.config.stride:
        raise RequestError(f"--image-size must be a multiple of {vae.config.stride}, found {image_size}")
    dataset = to_rgb(open_dataset(data, image_size))
    digest = sha256(tokenizer) if tokenizer.is_file() else str(tokenizer.resolve())
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with progress_bar(len(dataset.labels), "encoding") as bar:
        cache_latents(dataset, image_size, vae, digest, out, batch_size, kind, bar.update, complain)
    cached = CachedLatents(out, image_size)
    click.echo(
        f"{pluralize(len(cached.labels), 'image')} of {pluralize(len(cached.classes), 'class')}, straight and mirrored, "
        f"{len(dataset.labels) - len(cached.labels)} left out; train with mar train --data {out}"
    )

"""The command `mar cache-latents`."""

from __future__ import annotations

import pathlib

import click
import torch

from runtime.checks import pluralize
from runtime.cli.background_option import background_option
from runtime.cli.options import PATH, threads_option
from runtime.errors import DataError
from runtime.image_files import Color
from runtime.log import LOG
from runtime.progress import Progress
from runtime.storage.files import holding_folder, sha256
from training.checkpoints.published_files import load_vae
from training.checkpoints.run_folder import check_new_folder
from training.cli.options import check_image_size, echo_warnings, latent_scale_options
from training.data.datasets import open_dataset, to_rgb
from training.data.latent_cache import CachedLatents, LatentEncoder, cache_latents, is_cache
from training.reporting.progress import print_lines


@click.command("cache-latents")
@click.option(
    "--data",
    type=PATH,
    required=True,
    help="The dataset: a folder with IDX files, or with one sub-folder per class.",
)
@click.option(
    "--tokenizer", type=PATH, required=True, help="The file of the KL autoencoder, a published .ckpt or a .safetensors."
)
@click.option("--out", type=PATH, required=True, help="The folder to create, or to resume.")
@click.option("--image-size", type=int, default=256, show_default=True, help="The side of the images in pixels.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="The number of images to encode together.",
)
@click.option(
    "--bad-data",
    type=click.Choice(["report", "stop"]),
    default="report",
    show_default=True,
    help="What to do about unreadable images, images that are too small, and classes without images.",
)
@click.option(
    "--mirror/--no-mirror",
    default=True,
    show_default=True,
    help="Encode mirror images too, which mar train needs unless its setting flip is false.",
)
@background_option
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="The device to encode on. Default: cuda if there is a GPU, otherwise cpu.",
)
@latent_scale_options
@threads_option
def cache(
    data: pathlib.Path,
    tokenizer: pathlib.Path,
    out: pathlib.Path,
    image_size: int,
    batch_size: int,
    bad_data: str,
    mirror: bool,
    background: Color,
    device: str | None,
    threads: int | None,
    latent_scale: float | None,
    latent_shift: float | None,
) -> None:
    """Encode the images of a dataset into latents for mar train --data OUT.

    Unreadable images are reported and left out. A stopped command resumes when it is repeated.
    """

    def warn(warning: str, progress: Progress) -> None:
        if bad_data == "stop":
            raise DataError(f"{warning}; remove --bad-data stop to leave out images that cannot be read")
        progress.message(warning, LOG.warning)

    if threads is not None:
        torch.set_num_threads(threads)
    vae = load_vae(tokenizer, latent_scale, latent_shift, lambda warning: echo_warnings([warning]))
    check_image_size(image_size, vae.config.stride)
    dataset = to_rgb(open_dataset(data, image_size, background=background))
    print_lines(dataset.notes)
    digest = sha256(tokenizer) if tokenizer.is_file() else str(tokenizer.resolve())
    if latent_scale is not None or latent_shift is not None:
        digest += f", latent scale {vae.describe_scale()}"
    torch_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    encoder = LatentEncoder(vae, digest, image_size, batch_size, torch_device, mirror)
    if not is_cache(out):
        check_new_folder(out, "cache of latents")
    with holding_folder(out), Progress(len(dataset.labels), "encoding", unit="images") as progress:
        cache_latents(dataset, encoder, out, progress.update, lambda line: warn(line, progress), progress.skip)
    cached = CachedLatents(out, image_size)
    images, classes = pluralize(len(cached.labels), "image"), pluralize(len(cached.classes), "class")
    click.echo(
        f"wrote {out} with the latents of {images} of {classes}{' and of their mirror images' if mirror else ''}, "
        f"{len(dataset.labels) - len(cached.labels)} left out; train with mar train --data {out}"
    )

"""The command `mar evaluate-tokenizer`."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import click
import torch

from runtime.checks import pluralize
from runtime.cli.background_option import background_option
from runtime.cli.options import PATH, threads_option
from runtime.cli.result_files import OUTPUT, check_result_file, force_option, result_file
from runtime.image_files import Color
from runtime.progress import Progress
from training.checkpoints.published_files import load_vae
from training.cli.options import check_image_size, echo_warnings, latent_scale_options
from training.data.datasets import open_dataset, to_rgb
from training.evaluation.feature_networks import EFFICIENTNET, INCEPTION, EfficientNet, FeatureNetwork, Inception
from training.reporting.progress import print_lines, print_warnings
from training.tokenizer.reconstruction import ReconstructionEvaluator

_NETWORKS: dict[str, type[EfficientNet] | type[Inception]] = {EFFICIENTNET: EfficientNet, INCEPTION: Inception}


@click.command("evaluate-tokenizer")
@click.argument("tokenizer", type=PATH)
@click.option("--data", type=PATH, required=True, help="The folder of a dataset.")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True)
@click.option("--image-size", type=int, default=256, show_default=True, help="The side of the images in pixels.")
@click.option(
    "--count",
    type=click.IntRange(2),
    default=5000,
    show_default=True,
    help="The number of images, chosen at random; always the same ones of a dataset.",
)
@click.option(
    "--features",
    "names",
    type=click.Choice(list(_NETWORKS)),
    multiple=True,
    help="A network whose features are compared. The option can be repeated. Default: PSNR alone.",
)
@click.option("--grid", type=OUTPUT, help="Write a PNG with eight images above their reconstructions.")
@background_option
@latent_scale_options
@threads_option
@force_option("Replace a --grid that something else made.")
def evaluate_tokenizer(
    tokenizer: pathlib.Path,
    data: pathlib.Path,
    split: str,
    image_size: int,
    count: int,
    names: Sequence[str],
    grid: pathlib.Path | None,
    background: Color,
    latent_scale: float | None,
    latent_shift: float | None,
    threads: int | None,
) -> None:
    """Compare images of a dataset with their reconstructions by TOKENIZER, a KL autoencoder.

    The PSNR is the mean over images. The Fréchet distance of reconstructions is named rFID in papers, in features of
    inception.
    """
    if grid is not None:
        check_result_file(grid)
    if threads is not None:
        torch.set_num_threads(threads)
    vae = load_vae(tokenizer, latent_scale, latent_shift, lambda warning: echo_warnings([warning])).eval()
    check_image_size(image_size, vae.config.stride)
    dataset = to_rgb(open_dataset(data, image_size, split, background))
    print_lines(dataset.notes)
    networks: list[FeatureNetwork | None] = [_NETWORKS[name]() for name in dict.fromkeys(names)]
    count = min(count, len(dataset.labels))
    for network in networks or [None]:
        label = "reconstructing" if network is None else network.name
        with Progress(ReconstructionEvaluator.passes(network) * count, label, unit="images") as progress:
            evaluator = ReconstructionEvaluator(dataset, count, network, progress.update)
            metrics = evaluator.evaluate(vae)
        line = f"PSNR {metrics['psnr']:.2f} dB"
        if network is not None:
            line += f", Fréchet distance {metrics['frechet']:.3f} in features of {network.name}"
        click.echo(f"{line}, on {pluralize(count, 'image')}")
    if grid is not None:
        with result_file(grid) as temporary:
            evaluator.save_grid(temporary, vae)
    print_warnings(dataset.warnings)

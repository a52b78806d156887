"""The command `mar edit`."""

from __future__ import annotations

import pathlib
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from runtime.cli.background_option import background_option
from runtime.cli.options import (
    CLASS_HELP,
    PATH,
    backend_options,
    bar_shown,
    preset_option,
    progress_bar,
    sampling_options,
    threads_option,
)
from runtime.errors import RequestError
from runtime.files import replacing
from runtime.generator import Generator
from runtime.image_files import Color, read_image, read_mask
from runtime.image_grid import check_image_file, save_grid, save_image
from runtime.log import LOG
from runtime.requests.inpainting import Edit, check_mask
from runtime.requests.validation import check_labels, parse_class

_GRID_COLUMNS = 8


@click.command()
@click.argument("artifact", type=PATH)
@click.option(
    "--image",
    "image_file",
    type=PATH,
    required=True,
    help="The image to edit. It must have the size of the artifact's images.",
)
@click.option(
    "--mask",
    "mask_file",
    type=PATH,
    required=True,
    help="An image of the same size: white pixels are regenerated, black ones kept. If it has transparent pixels, "
    "these are regenerated, and all others kept.",
)
@click.option(
    "--class",
    "classes",
    metavar="NUMBER|NAME",
    multiple=True,
    required=True,
    help=f"The class of the image, {CLASS_HELP}.",
)
@click.option("--out", type=PATH, required=True, help="The PNG file to write.")
@click.option(
    "--count",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Number of different results; several are written as a labelled grid.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same images.")
@click.option(
    "--dilate",
    is_flag=True,
    help="Regenerate the tokens around the mask too, because latents depend on their surroundings.",
)
@click.option(
    "--paste/--no-paste", default=True, show_default=True, help="Restore the known pixels exactly after decoding."
)
@background_option
@preset_option
@sampling_options
@backend_options
@threads_option
def edit(
    artifact: pathlib.Path,
    image_file: pathlib.Path,
    mask_file: pathlib.Path,
    classes: tuple[str, ...],
    out: pathlib.Path,
    count: int,
    seed: int,
    dilate: bool,
    paste: bool,
    background: Color,
    backend: str,
    device: str | None,
    cuda_graphs: bool,
    threads: int | None,
    **settings: Any,
) -> None:
    """Regenerate a part of an image: the white part of the mask, as an image of --class, to fit the rest."""
    if len(classes) > 1:
        raise RequestError(f"an edit takes one class, found --class {len(classes)} times; remove the others")
    check_image_file(out)
    with Generator.load(
        artifact, backend=backend, device=device, threads=threads, cuda_graphs=cuda_graphs
    ) as generator:
        config = generator.manifest.model
        if generator.manifest.tokenizer == "none":
            raise RequestError(f"{artifact} has no tokenizer, so it cannot read or generate images")
        gray = config.vae_stride == 1 and config.vae_embed_dim == 1
        image = _read_pixels(image_file, gray, background, config.img_size)
        mask, warnings = read_mask(mask_file)
        _check_size(mask_file, mask, config.img_size)
        _print_lines(warnings)
        label = parse_class(classes[0], generator.manifest.class_names)
        check_labels([label], config)
        edit_mask = check_mask(mask, dilate, config)
        plan = generator.plan(known_tokens=edit_mask.known, **settings)
        with progress_bar(len(plan.iterations), "generating") as bar:
            result = generator.generate(
                [label] * count,
                seed=seed,
                edit=Edit(image, mask, dilate=dilate, paste=paste),
                progress=(lambda done, total: bar.update(1)) if bar_shown() else None,
                **settings,
            )
    assert result.images is not None
    names = generator.manifest.class_names
    _save(out, result.images, names[label] if names else f"class {label}")
    _print_summary(edit_mask.tokens, out)


def _print_summary(regenerated: NDArray[np.bool_], out: pathlib.Path) -> None:
    """Print how many tokens were regenerated, and the file. `regenerated` is True for such tokens, bool [L]."""
    share = f"{regenerated.sum()} of {regenerated.size} tokens regenerated ({regenerated.mean():.0%})"
    click.echo(f"{share}; image written to {out}")


def _save(out: pathlib.Path, images: NDArray[np.uint8], caption: str) -> None:
    """Write one image as it is, or several as a grid."""
    with replacing(out) as temporary:
        if len(images) == 1:
            save_image(temporary, images[0])
        else:
            captions = [f"{caption} {number}" for number in range(len(images))]
            save_grid(temporary, images, captions, columns=min(len(images), _GRID_COLUMNS))


def _read_pixels(path: pathlib.Path, gray: bool, background: Color, size: int) -> NDArray[np.uint8]:
    """Return the image in a file, of size x size pixels: uint8 [H, W, 1] or [H, W, 3].

    Raises:
        RequestError: It cannot be read, or has another size.
    """
    image, warnings = read_image(path, background)
    pixels = np.asarray(image.convert("L"))[..., None] if gray else np.asarray(image)
    _check_size(path, pixels, size)
    _print_lines(warnings)
    return pixels


def _check_size(path: pathlib.Path, pixels: NDArray[np.generic], size: int) -> None:
    """Raise `RequestError` unless an image [H, W] or [H, W, c] has the size of the artifact's images."""
    height, width = pixels.shape[:2]
    if (width, height) != (size, size):
        raise RequestError(f"{path}: expected {size}x{size} pixels, as the artifact generates, found {width}x{height}")


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        LOG.warning(line)

"""The command `mar edit`."""

from __future__ import annotations

import pathlib
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.cli.options import (
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
from runtime.image_grid import check_image_file, save_grid, save_image
from runtime.requests.inpainting import Edit, check_mask
from runtime.requests.validation import check_labels, parse_class

_GRID_COLUMNS = 8
_WHITE = 128  # of 255: the darkest gray that counts as white


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
    help="An image of the same size: white pixels are regenerated, black ones kept.",
)
@click.option(
    "--class",
    "classes",
    metavar="NUMBER|NAME",
    multiple=True,
    required=True,
    help="The class of the image, by number or name.",
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
        image = _read(image_file, "L" if gray else "RGB", config.img_size)
        mask = _read(mask_file, "L", config.img_size) >= _WHITE
        label = parse_class(classes[0], generator.manifest.class_names)
        check_labels([label], config)
        edit_mask = check_mask(mask, dilate, config)
        plan = generator.plan(known_tokens=edit_mask.known, **settings)
        with progress_bar(len(plan.iterations), "generating") as bar:
            result = generator.generate(
                [label] * count,
                seed=seed,
                edit=Edit(image[..., None] if gray else image, mask, dilate=dilate, paste=paste),
                progress=(lambda done, total: bar.update(1)) if bar_shown() else None,
                **settings,
            )
    assert result.images is not None
    names = generator.manifest.class_names
    _save(out, result.images, names[label] if names else f"class {label}")
    regenerated = edit_mask.tokens
    click.echo(
        f"{regenerated.sum()} of {config.tokens} tokens regenerated ({regenerated.mean():.0%}); image written to {out}"
    )


def _save(out: pathlib.Path, images: NDArray[np.uint8], caption: str) -> None:
    """Write one image as it is, or several as a grid."""
    with replacing(out) as temporary:
        if len(images) == 1:
            save_image(temporary, images[0])
        else:
            captions = [f"{caption} {number}" for number in range(len(images))]
            save_grid(temporary, images, captions, columns=min(len(images), _GRID_COLUMNS))


def _read(path: pathlib.Path, mode: str, size: int) -> NDArray[np.uint8]:
    """Return the image in a file, of size x size pixels, in Pillow's mode L or RGB: uint8 [H, W] or [H, W, 3].

    Raises:
        RequestError: It cannot be read, or has another size or more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if (width, height) != (size, size):
                raise RequestError(
                    f"{path}: expected {size}x{size} pixels, as the artifact generates, found {width}x{height}"
                )
            if image.mode.startswith(("I", "F")):  # Pillow would clip nearly all pixels to white
                raise RequestError(f"{path}: expected 8 bits a channel, found an image of mode {image.mode}")
            return np.asarray(image.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Syntax: damaged PNG
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{path}: not a readable image ({reason})") from None

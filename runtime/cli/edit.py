"""`mar edit`."""

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
@click.option("--image", "image_file", type=PATH, required=True, help="The image to edit, of the artifact's size.")
@click.option("--mask", "mask_file", type=PATH, required=True, help="An image of that size, white where to draw.")
@click.option("--class", "classes", metavar="NUMBER|NAME", multiple=True, required=True, help="The class to draw.")
@click.option("--out", type=PATH, required=True, help="Where to write what was drawn, as PNG.")
@click.option(
    "--count",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Different ways to draw it; several as a labelled grid.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--dilate", is_flag=True, help="Draw the tokens around the mask anew too: latents know their surroundings."
)
@click.option("--paste/--no-paste", default=True, show_default=True, help="Put the known pixels back as they were.")
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
    """Draw a part of an image anew: what is white in the mask, as --class, fitting what is not."""
    if len(classes) > 1:
        raise RequestError(f"an edit draws one class, found --class {len(classes)} times; leave one")
    check_image_file(out)
    with Generator.load(
        artifact, backend=backend, device=device, threads=threads, cuda_graphs=cuda_graphs
    ) as generator:
        config = generator.manifest.model
        if generator.manifest.tokenizer == "none":
            raise RequestError(f"{artifact} has no tokenizer, so it cannot read or make images")
        gray = config.vae_stride == 1 and config.vae_embed_dim == 1
        image = _read(image_file, "L" if gray else "RGB", config.img_size)
        mask = _read(mask_file, "L", config.img_size) >= _WHITE
        label = parse_class(classes[0], generator.manifest.class_names)
        check_labels([label], config)
        hole = check_mask(mask, dilate, config)
        plan = generator.plan(known_tokens=hole.known, **settings)
        with progress_bar(len(plan.iterations), "drawing") as bar:
            result = generator.generate(
                [label] * count,
                seed=seed,
                edit=Edit(image[..., None] if gray else image, mask, dilate=dilate, paste=paste),
                progress=(lambda done, of: bar.update(1)) if bar_shown() else None,
                **settings,
            )
    assert result.images is not None
    names = generator.manifest.class_names
    with replacing(out) as temporary:
        if count == 1:
            save_image(temporary, result.images[0])
        else:
            captions = [f"{names[label] if names else f'class {label}'} {number}" for number in range(count)]
            save_grid(temporary, result.images, captions, columns=min(count, _GRID_COLUMNS))
    share = hole.tokens.mean()
    click.echo(f"{hole.tokens.sum()} of {config.tokens} tokens drawn anew ({share:.0%}); written to {out}")


def _read(path: pathlib.Path, mode: str, size: int) -> NDArray[np.uint8]:
    """The image at `path`, which must be size x size, in Pillow's `mode`: [H, W] or [H, W, 3]."""
    try:
        with Image.open(path) as image:
            if image.size != (size, size):
                raise RequestError(
                    f"{path}: expected {size}x{size} pixels, as the artifact draws, found {image.width}x{image.height}"
                )
            if image.mode.startswith(("I", "F")):  # Pillow would make nearly all of it white
                raise RequestError(f"{path}: expected 8 bits a channel, found an image of mode {image.mode}")
            return np.asarray(image.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Syntax: damaged PNG
        why = getattr(error, "strerror", None) or error
        raise RequestError(f"{path}: not a readable image ({why})") from None

"""The command `mar edit`."""

from __future__ import annotations

import pathlib
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from runtime.artifact.artifact_folder import Artifact
from runtime.checks import pluralize
from runtime.cli.background_option import background_option
from runtime.cli.calibration_note import tell_other_plan
from runtime.cli.edit_files import read_image_and_mask
from runtime.cli.generate_grid import COLUMNS, check_grid, write_images
from runtime.cli.options import (
    CLASS_HELP,
    PATH,
    backend_options,
    preset_option,
    sampling_options,
    threads_option,
)
from runtime.cli.path_types import OutputFile
from runtime.cli.result_files import check_result_file, force_option, result_file
from runtime.cli.subject_options import ChosenSubjects, subject_options
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.image_files import Color
from runtime.image_grid import check_image_file
from runtime.image_records.subject import Subject, subject_arguments
from runtime.log import LOG
from runtime.model.families import check_supported
from runtime.progress import Progress, terminal_shown
from runtime.requests.inpainting import Edit, check_mask


@click.command()
@click.argument("artifact", type=PATH)
@click.option(
    "--image",
    "image_file",
    type=PATH,
    required=True,
    help="The image to edit. The square in its middle is scaled to the size of the artifact's images.",
)
@click.option(
    "--mask",
    "mask_file",
    type=PATH,
    required=True,
    help="An image of the same proportions: white pixels are regenerated, black ones kept. If it has transparent "
    "pixels, these are regenerated, and all others kept.",
)
@subject_options(
    f"The class of the image, {CLASS_HELP}. It can be left out if the model has one class only.",
    "What the image shows, for a model that draws from text.",
)
@click.option("--out", type=OutputFile("give the name of a PNG file"), required=True, help="The PNG file to write.")
@click.option(
    "--count",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Number of different results; several are written as a labelled grid.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same images.")
@click.option(
    "--first", type=int, default=0, show_default=True, help="The number of the first image in the sequence of the seed."
)
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
@force_option("Replace a file at --out that something else made.")
def edit(
    artifact: pathlib.Path,
    image_file: pathlib.Path,
    mask_file: pathlib.Path,
    classes: tuple[str, ...],
    prompts: tuple[str, ...],
    negative_prompt: str | None,
    out: pathlib.Path,
    count: int,
    seed: int,
    first: int,
    dilate: bool,
    paste: bool,
    background: Color,
    backend: str,
    device: str | None,
    cuda_graphs: bool,
    threads: int | None,
    **settings: Any,
) -> None:
    """Regenerate a part of an image: the white part of the mask, as --class or --prompt says, to fit the rest."""
    check_image_file(out)
    check_result_file(out)
    check_supported(Artifact(artifact).manifest.model, "mar edit")
    with Generator.load(
        artifact, backend=backend, device=device, threads=threads, cuda_graphs=cuda_graphs
    ) as generator:
        config = generator.manifest.model
        _check_tokenizer(generator, artifact)
        image, mask, lines = read_image_and_mask(image_file, mask_file, config, background)
        for line in lines:
            LOG.warning(line)
        subject = _subject(ChosenSubjects(classes, prompts, negative_prompt), generator, artifact)
        check_grid(count, min(count, COLUMNS), config.image_shape, "lower --count")
        edit_mask = check_mask(mask, dilate, config)
        plan = generator.plan(known_tokens=edit_mask.known, **settings)
        tell_other_plan(generator.manifest, generator.sampling(**settings))
        with Progress(len(plan.iterations), "generating") as bar:
            result = generator.generate(
                seed=seed,
                index=range(first, first + count),
                edit=Edit(image, mask, dilate=dilate, paste=paste),
                progress=(lambda done, total: bar.update(1)) if terminal_shown() else None,
                **subject_arguments([subject] * count),
                **settings,
            )
    assert result.images is not None
    with result_file(out) as temporary:
        write_images(temporary, result.images, result.records, min(count, COLUMNS), numbered=True)
    _print_summary(edit_mask.tokens, out)


def _check_tokenizer(generator: Generator, artifact: pathlib.Path) -> None:
    if generator.manifest.tokenizer == "none":
        raise RequestError(f"{artifact} has no tokenizer, so it cannot read or generate images")


def _subject(chosen: ChosenSubjects, generator: Generator, artifact: pathlib.Path) -> Subject:
    """Return what the image shows. Raises `RequestError` unless one subject is given, or the model has one class."""
    config = generator.manifest.model
    for option, kind, given in (("--class", "class", chosen.classes), ("--prompt", "prompt", chosen.prompts)):
        if len(given) > 1:
            raise RequestError(f"an edit takes one {kind}, found {option} {len(given)} times; remove the others")
    subjects = chosen.of(generator, artifact)
    if not subjects and config.class_num > 1:
        raise RequestError(f"give --class, the class of the image; the model has {config.class_num} classes")
    if not subjects and not config.class_num:
        raise RequestError("give --prompt, what the image shows")
    return subjects[0] if subjects else 0


def _print_summary(regenerated: NDArray[np.bool_], out: pathlib.Path) -> None:
    """Print how many tokens were regenerated, and the file. `regenerated` is True for such tokens, bool [L]."""
    share = f"{regenerated.sum()} of {pluralize(regenerated.size, 'token')} regenerated ({regenerated.mean():.0%})"
    click.echo(f"{share}; image written to {out}")

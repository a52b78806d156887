"""The command `mar generate`."""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from runtime.checks import check_int, pluralize
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
from runtime.files import check_writable, replacing
from runtime.generator import Generator, Result
from runtime.image_grid import check_image_file, save_grid
from runtime.requests.validation import MAX_BATCH, parse_class
from runtime.structured_files import FaultReport, NpzFile

_MAX_COUNT = 100_000
_GRID_COLUMNS = 8


@click.command()
@click.argument("artifact", type=PATH)
@click.option(
    "--class",
    "classes",
    metavar="NUMBER|NAME",
    multiple=True,
    help=f"The class of the images, {CLASS_HELP}. Repeat it for several classes. Default: all classes.",
)
@click.option(
    "--count", type=int, help="Number of images; they take the classes in turn. Default: one image of each class."
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same images.")
@click.option("--out", type=PATH, help="The PNG file to write, a grid of all images.")
@click.option("--save-latents", type=PATH, help="The .npy file to write, with the latents [B, C, h, w].")
@preset_option
@sampling_options
@click.option("--batch-size", type=int, default=16, show_default=True, help="Number of images generated together.")
@click.option(
    "--order-file", type=PATH, help="An .npz file with generation_order [B, L], used instead of the order of the seed."
)
@click.option(
    "--noise-file", type=PATH, help="An .npz file with noise [T+1, B, L, D], used instead of the noise of the seed."
)
@click.option(
    "--decode-batch",
    type=int,
    default=1,
    show_default=True,
    help="Number of images decoded together, if the artifact has a decoder.",
)
@backend_options
@threads_option
def generate(
    artifact: pathlib.Path,
    classes: tuple[str, ...],
    count: int | None,
    seed: int,
    out: pathlib.Path | None,
    save_latents: pathlib.Path | None,
    batch_size: int,
    order_file: pathlib.Path | None,
    noise_file: pathlib.Path | None,
    decode_batch: int,
    backend: str,
    device: str | None,
    cuda_graphs: bool,
    threads: int | None,
    **settings: Any,
) -> None:
    """Generate images with ARTIFACT, and write them as a grid, as latents, or both."""
    _check_outputs(out, save_latents)
    order = _read_array(order_file, "generation_order")
    noise = _read_array(noise_file, "noise")
    with Generator.load(
        artifact, backend=backend, device=device, threads=threads, cuda_graphs=cuda_graphs
    ) as generator:
        manifest = generator.manifest
        if out is not None and manifest.tokenizer == "none":
            raise RequestError(
                f"{artifact} has no decoder, so it makes latents, not images; use --save-latents instead of --out, "
                "or export it with --tokenizer"
            )
        chosen = [parse_class(text, manifest.class_names) for text in classes]
        labels = _labels(chosen or range(manifest.model.class_num), count)
        started = time.perf_counter()
        results = _generate(generator, labels, batch_size, seed, order, noise, decode_batch, settings)
        seconds = time.perf_counter() - started
    if save_latents is not None:
        with replacing(save_latents) as temporary, temporary.open("wb") as file:
            np.save(file, np.concatenate([result.latents for result in results]))
    if out is not None:
        _save_grid(out, results, labels, manifest.class_names)
    click.echo(
        f"{pluralize(len(labels), 'image')} in {seconds:.2f} s, {seconds / len(labels):.3f} s each "
        f"({generator.description})"
    )
    for what, path in (("latents", save_latents), ("grid", out)):
        if path is not None:
            click.echo(f"{what} written to {path}")


def _check_outputs(out: pathlib.Path | None, save_latents: pathlib.Path | None) -> None:
    """Check that there is an output, and that every output can be written."""
    if out is None and save_latents is None:
        raise RequestError("nothing to write: give --out GRID.png, --save-latents FILE.npy, or both")
    if out is not None and save_latents is not None and out.resolve() == save_latents.resolve():
        raise RequestError(f"--out and --save-latents are both {out}; give them different files")
    if out is not None:
        check_image_file(out)
    if save_latents is not None:
        check_writable(save_latents)


def _save_grid(out: pathlib.Path, results: list[Result], labels: list[int], names: Sequence[str]) -> None:
    images = np.concatenate([result.images for result in results if result.images is not None])
    captions = [names[label] if names else f"class {label}" for label in labels]
    with replacing(out) as temporary:
        save_grid(temporary, images, captions, columns=min(len(labels), max(len(set(labels)), _GRID_COLUMNS)))


def _labels(classes: Sequence[int], count: int | None) -> list[int]:
    """Return the classes in turn for `count` images, or each class once."""
    total = len(classes) if count is None else count
    if not 1 <= total <= _MAX_COUNT:
        raise RequestError(f"--count must lie in 1..{_MAX_COUNT}, found {total}")
    return [classes[number % len(classes)] for number in range(total)]


def _generate(
    generator: Generator,
    labels: list[int],
    batch_size: int,
    seed: int,
    order: NDArray[np.generic] | None,
    noise: NDArray[np.generic] | None,
    decode_batch: int,
    settings: dict[str, Any],
) -> list[Result]:
    """Generate all images, batch by batch, with a progress bar."""
    check_int("--decode-batch", decode_batch, 1, MAX_BATCH)
    batches = generator.generate_batches(
        labels,
        batch_size,
        seed=seed,
        order=order,
        noise=noise,
        decode_batch=decode_batch,
        progress=(lambda done, total: bar.update(1)) if bar_shown() else None,
        **settings,
    )
    passes = math.ceil(len(labels) / batch_size) * len(generator.plan(**settings).iterations)
    with progress_bar(passes, "generating") as bar:
        return list(batches)


def _read_array(path: pathlib.Path | None, key: str) -> NDArray[np.generic] | None:
    if path is None:
        return None
    with NpzFile(path, FaultReport(RequestError)) as file:
        return file.read(key, "biufc")  # a request checks shape and dtype

"""The command `mar generate`."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from runtime.artifact.artifact_folder import Artifact
from runtime.checks import check_int, pluralize
from runtime.cli.calibration_note import tell_other_plan
from runtime.cli.generate_batches import generate_batches
from runtime.cli.generate_folder import fill_folder
from runtime.cli.generate_outputs import FOLDER_HINT, Outputs
from runtime.cli.generate_sequence import ImageSequence, image_sequence, parse_shard
from runtime.cli.json_document import PrintDocument, json_document, json_option
from runtime.cli.options import (
    CLASS_HELP,
    PATH,
    backend_options,
    preset_option,
    sampling_options,
    threads_option,
)
from runtime.cli.path_types import OutputFile
from runtime.cli.result_files import force_option
from runtime.cli.subject_options import ChosenSubjects, subject_options
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.image_records.record import ImageRecord
from runtime.image_records.subject import Subject, subject_arguments
from runtime.model.families import check_supported
from runtime.requests.validation import MAX_BATCH, check_batch
from runtime.result import Result
from runtime.storage.structured_files import FaultReport, NpzFile


@click.command()
@click.argument("artifact", type=PATH)
@subject_options(
    f"The class of the images, {CLASS_HELP}. Repeat it for several classes. Default: all classes.",
    "What the images show, for a model that draws from text. Repeat it for several prompts.",
)
@click.option(
    "--count",
    type=int,
    help="Number of images. They take the classes or prompts in turn. Default: one image of each.",
)
@click.option(
    "--seed",
    "seeds",
    type=int,
    multiple=True,
    default=(0,),
    show_default=True,
    help="The number that random values begin with; the same seed gives the same images. Repeat it to give each class "
    "a seed of its own, or one class several seeds.",
)
@click.option(
    "--first",
    type=int,
    default=0,
    show_default=True,
    help="The number of the first image; a seed gives a sequence of images, counted from 0.",
)
@click.option("--out", type=OutputFile(FOLDER_HINT), help="The PNG file to write: one image, or a grid of several.")
@click.option(
    "--out-dir",
    type=PATH,
    help="The folder to write images into, one PNG file each, with a list of them, index.jsonl. If the command is "
    "stopped, give it again to continue.",
)
@click.option("--shard", metavar="K/N", help="With --out-dir: generate only the K-th of N shards of the images.")
@click.option(
    "--save-latents",
    type=OutputFile("give the name of a .npy file"),
    help="The .npy file to write, with the latents [B, C, h, w].",
)
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
@force_option("Replace a file at --out or --save-latents that something else made.")
@json_option
def generate(
    artifact: pathlib.Path,
    classes: tuple[str, ...],
    prompts: tuple[str, ...],
    negative_prompt: str | None,
    count: int | None,
    seeds: tuple[int, ...],
    first: int,
    out: pathlib.Path | None,
    out_dir: pathlib.Path | None,
    shard: str | None,
    save_latents: pathlib.Path | None,
    batch_size: int,
    order_file: pathlib.Path | None,
    noise_file: pathlib.Path | None,
    decode_batch: int,
    backend: str,
    device: str | None,
    cuda_graphs: bool,
    threads: int | None,
    print_document: PrintDocument,
    **settings: Any,
) -> None:
    """Generate images with ARTIFACT.

    --out writes one image, or a grid of several; --out-dir writes a file for each; --save-latents writes latents.
    """
    outputs = Outputs(out, out_dir, save_latents, None if shard is None else parse_shard(shard))
    outputs.check(given_numbers=order_file is not None or noise_file is not None)
    check_int("--decode-batch", decode_batch, 1, MAX_BATCH)
    check_supported(Artifact(artifact).manifest.model, "mar generate")
    chosen = ChosenSubjects(classes, prompts, negative_prompt)
    given = {"order": _read_array(order_file, "generation_order"), "noise": _read_array(noise_file, "noise")}
    with Generator.load(
        artifact, backend=backend, device=device, threads=threads, cuda_graphs=cuda_graphs
    ) as generator:
        outputs.check_decoder(generator, artifact)
        sequence = image_sequence(_subjects(chosen, generator, artifact), seeds, first, count)
        columns = outputs.columns(sequence, generator.manifest.model.image_shape)
        records = _records(generator, sequence, batch_size, settings)
        tell_other_plan(generator.manifest, generator.sampling(**settings))
        started = time.perf_counter()
        drawn, results = _draw(generator, records, outputs, given, settings, batch_size, decode_batch)
        seconds = time.perf_counter() - started
    if out_dir is None:
        outputs.write(results, columns)
    _print_time(drawn, seconds, generator)
    outputs.print_places(len(records))
    content = {"artifact": str(artifact), "images": len(records), "drawn": drawn, "seconds": seconds}
    print_document(json_document("generate", content | _describe(generator, settings) | outputs.to_dict()))


def _draw(
    generator: Generator,
    records: Sequence[ImageRecord],
    outputs: Outputs,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
    batch_size: int,
    decode_batch: int,
) -> tuple[int, list[Result]]:
    """Return how many images were drawn, and their results; a folder has its images already, and keeps no results."""
    if outputs.out_dir is not None:
        return fill_folder(generator, outputs.out_dir, records, outputs.shard, batch_size, decode_batch, settings), []
    together = 0 if outputs.out is None else decode_batch
    return len(records), list(
        generate_batches(generator, records, batch_size, settings, decode_batch=together, **given)
    )


def _print_time(drawn: int, seconds: float, generator: Generator) -> None:
    """Print how long the images took, if any were drawn."""
    if drawn:
        each = f"{pluralize(drawn, 'image')} in {seconds:.2f} s, {seconds / drawn:.3f} s each"
        click.echo(f"{each} ({generator.description})")


def _describe(generator: Generator, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the images are generated with, for the JSON document."""
    sampling = dataclasses.asdict(generator.sampling(**settings))
    return {"runs_on": generator.description, "preset": settings["preset"], "sampling": sampling}


def _subjects(chosen: ChosenSubjects, generator: Generator, artifact: pathlib.Path) -> Sequence[Subject]:
    """Return what the options name, or all classes of the model."""
    subjects: Sequence[Subject] = chosen.of(generator, artifact) or range(generator.manifest.model.class_num)
    if not subjects:
        raise RequestError(f"give --prompt, what the images show; {artifact} draws from text")
    return subjects


def _records(
    generator: Generator, sequence: ImageSequence, batch_size: int, settings: Mapping[str, Any]
) -> tuple[ImageRecord, ...]:
    """Return how the images are made. Raises `RequestError` if a setting or the size of a batch is wrong."""
    check_batch(batch_size, generator.plan(**settings).noise_steps, generator.manifest.model)
    shown = subject_arguments(sequence.subjects_of_images)
    return generator.records(seed=sequence.seeds_of_images, index=sequence.indices, **shown, **settings)


def _read_array(path: pathlib.Path | None, key: str) -> NDArray[np.generic] | None:
    if path is None:
        return None
    with NpzFile(path, FaultReport(RequestError)) as file:
        return file.read(key, "biufc")  # a request checks shape and dtype

"""`mar quality`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import click
import numpy as np
import torch
from numpy.typing import NDArray

from runtime.errors import DataError, MarError, RequestError
from runtime.files import check_writable, write_json
from runtime.generator import Generator
from runtime.options import PATH, preset_option, progress_bar, sampling_options, threads_option
from training.data import Dataset, open_dataset
from training.quality import batches, frechet_distance, judge, load_or_train_classifier

_BATCH = 50


@click.command()
@click.argument("artifact", type=PATH)
@click.option(
    "--data", type=PATH, required=True, help="The dataset the model was trained on; its test split is needed."
)
@click.option("--images", "count", type=int, default=5000, show_default=True, help="Pictures to draw.")
@click.option(
    "--classifier", type=PATH, default="out/classifier.safetensors", show_default=True, help="Made if missing."
)
@preset_option
@sampling_options
@click.option("--seed", type=int, default=0, show_default=True)
@threads_option
@click.option("--at-least", type=click.FloatRange(0, 1), help="Fail if a smaller share is recognised.")
@click.option("--json", "json_file", type=PATH, help="Where to write the figures too.")
def quality(
    artifact: pathlib.Path,
    data: pathlib.Path,
    count: int,
    classifier: pathlib.Path,
    seed: int,
    threads: int | None,
    at_least: float | None,
    json_file: pathlib.Path | None,
    **settings: object,
) -> None:
    """Judge pictures drawn with ARTIFACT by a classifier trained on the real ones."""
    if json_file is not None:
        check_writable(json_file)
    if threads is not None:
        torch.set_num_threads(threads)
    with Generator.load(artifact, threads=threads) as generator:
        config = generator.manifest.model
        train, test = (open_dataset(data, config.img_size, split) for split in ("train", "test"))
        _check(generator, train, test, count)
        with progress_bar(100, "classifier") as bar:
            model = load_or_train_classifier(classifier, train, _hundredths(bar.update))
        real = judge(model, batches(test, len(test.labels)), test.labels)
        reference = judge(model, batches(train, count), train.labels[:count])
        labels = np.arange(count, dtype=np.int64) % config.class_num
        with progress_bar(count, "drawing") as bar:
            drawn = judge(model, _draw(generator, labels, seed, settings, bar.update), labels)
    figures = {
        "images": count,
        "recognised_generated": drawn.recognised,
        "recognised_real_test": real.recognised,
        "frechet_generated": frechet_distance(drawn.features, real.features),
        "frechet_real_train": frechet_distance(reference.features, real.features),
        "sampling": dataclasses.asdict(generator.sampling(**settings)),
        "seed": seed,
    }
    click.echo(
        f"{'':22}{'recognised':>12}{'Fréchet distance to test':>28}\n"
        f"{f'{count} generated':22}{drawn.recognised:>12.1%}{figures['frechet_generated']:>28.3f}\n"
        f"{f'{count} real, training':22}{reference.recognised:>12.1%}{figures['frechet_real_train']:>28.3f}\n"
        f"{f'{len(test.labels)} real, test':22}{real.recognised:>12.1%}{0:>28.3f}"
    )
    if json_file is not None:
        write_json(json_file, figures)
    if at_least is not None and drawn.recognised < at_least:
        raise MarError(f"{drawn.recognised:.1%} of the pictures are recognised, where {at_least:.1%} are asked for")


def _check(generator: Generator, train: Dataset, test: Dataset, count: int) -> None:
    """Refuse before the work what could not be judged after it."""
    manifest = generator.manifest
    if manifest.tokenizer == "none":
        raise RequestError("this artifact has no decoder, so it makes no pictures to judge")
    if train.classes != test.classes:
        raise DataError("the training and the test pictures have different classes")
    if len(train.classes) != manifest.model.class_num or train.channels != manifest.model.vae_embed_dim:
        raise RequestError(
            f"the data has {len(train.classes)} classes of {train.channels} channels, the artifact "
            f"{manifest.model.class_num} of {manifest.model.vae_embed_dim}"
        )
    if not 2 <= count <= len(train.labels):
        raise RequestError(f"--images must lie in 2..{len(train.labels)}, the training pictures, found {count}")


def _draw(
    generator: Generator,
    labels: NDArray[np.int64],
    seed: int,
    settings: dict[str, object],
    advance: Callable[[int], None],
) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(labels), _BATCH):
        batch = labels[start : start + _BATCH]
        result = generator.generate(
            batch.tolist(),
            seed=seed,
            index=range(start, start + len(batch)),
            **settings,  # type: ignore[arg-type]
        )
        assert result.images is not None  # an artifact without a decoder was refused
        advance(len(batch))
        yield result.images


def _hundredths(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    """A progress callable (done, of) on top of a bar of 100 steps."""

    def progress(done: int, of: int) -> None:
        advance(done * 100 // of - (done - 1) * 100 // of)

    return progress

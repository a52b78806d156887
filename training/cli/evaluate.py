"""`mar evaluate`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import click
import torch

from runtime.checks import pluralize
from runtime.cli.options import PATH, backend_options, preset_option, progress_bar, sampling_options, threads_option
from runtime.errors import DataError, MarError, RequestError
from runtime.files import check_writable, write_json
from training.cli.options import checkpoint_options
from training.data.datasets import Dataset, open_dataset
from training.evaluation.classifier import load_or_train_classifier
from training.evaluation.comparison_table import GENERATED, TRAINING, figures_of, table
from training.evaluation.feature_networks import (
    CLASSIFIER,
    EFFICIENTNET,
    INCEPTION,
    NETWORKS,
    EfficientNet,
    FeatureNetwork,
    Inception,
    OwnClassifier,
    in_colours,
    look,
)
from training.evaluation.generate_images import Drawing, draw, drawn
from training.evaluation.real_statistics import reference
from training.reporting.progress import tell_complaints


@click.command()
@click.argument("subject", type=PATH, metavar="CHECKPOINT|ARTIFACT")
@click.option("--data", type=PATH, required=True, help="The dataset the model was trained on.")
@click.option(
    "--split", type=click.Choice(["test", "train"]), default="test", show_default=True, help="What is compared with."
)
@click.option("--real", "real_count", type=click.IntRange(2), help="Real images to compare with. Default: all.")
@click.option("--images", "count", type=int, default=5000, show_default=True, help="Images to draw.")
@click.option(
    "--features",
    "names",
    type=click.Choice(NETWORKS),
    multiple=True,
    default=(CLASSIFIER,),
    show_default=True,
    help="In whose features; can be given several times.",
)
@click.option(
    "--classifier", type=PATH, default="out/classifier.safetensors", show_default=True, help="Made if missing."
)
@click.option("--inception-weights", type=PATH, help="The weights of torch-fidelity's Inception.")
@click.option(
    "--out", type=PATH, default="out/evaluation", show_default=True, help="Folder of what is drawn and seen already."
)
@click.option("--processes", type=click.IntRange(1, 1024), default=1, show_default=True, help="That draw.")
@backend_options
@preset_option
@sampling_options
@checkpoint_options
@click.option("--seed", type=int, default=0, show_default=True)
@threads_option
@click.option("--at-least", type=click.FloatRange(0, 1), help="Fail if the classifier recognises a smaller share.")
@click.option("--json", "json_file", type=PATH, help="Where to write the figures too.")
def evaluate(
    subject: pathlib.Path,
    data: pathlib.Path,
    split: str,
    real_count: int | None,
    count: int,
    names: Sequence[str],
    classifier: pathlib.Path,
    inception_weights: pathlib.Path | None,
    out: pathlib.Path,
    processes: int,
    backend: str,
    device: str | None,
    cuda_graphs: bool,
    model: str | None,
    tokenizer: pathlib.Path | None,
    config_file: pathlib.Path | None,
    seed: int,
    threads: int | None,
    at_least: float | None,
    json_file: pathlib.Path | None,
    **settings: Any,
) -> None:
    """Judge images of an artifact, or of a checkpoint in eager PyTorch, beside real ones.

    Stopped, it goes on where it was: images are drawn once, and so are the figures of real ones.
    """
    if at_least is not None and CLASSIFIER not in names:
        raise RequestError("--at-least is what the classifier recognises; add --features classifier")
    if json_file is not None:
        check_writable(json_file)
    if threads is not None:
        torch.set_num_threads(threads)
    drawing = Drawing(
        subject,
        seed,
        tuple(settings.items()),
        (("backend", backend), ("device", device), ("cuda_graphs", cuda_graphs)),
        (("name", model), ("tokenizer", tokenizer), ("config_file", config_file)),
    )
    config, sampling, _ = drawing.described
    train = open_dataset(data, config.img_size, "train")
    real = train if split == "train" else open_dataset(data, config.img_size, split)
    _check(config.class_num, train, real, count)
    of_real = min(real_count or len(real.labels), len(real.labels))
    networks = [_opened(name, classifier, inception_weights, train) for name in dict.fromkeys(names)]
    with progress_bar(count, "drawing") as bar:
        draw(drawing, count, out, processes, threads, bar.update)
    figures = {}
    for network in networks:
        with progress_bar(of_real, f"{network.name}: real images") as bar:
            expected = reference(network, real, of_real, out, bar.update)
        images = ((in_colours(batch, real.channels), labels) for batch, labels in drawn(drawing, count, out))
        seen = {GENERATED: look(network, images)}
        if split == "test":  # how near as many real images come
            few = min(count, len(train.labels))
            with progress_bar(few, f"{network.name}: training images") as bar:
                seen[TRAINING] = reference(network, train, few, out, bar.update)
        figures[network.name] = figures_of(network, seen, expected)
    tell_complaints([*train.warnings, *real.warnings])
    click.echo(table(figures))
    if json_file is not None:
        settings_used = dataclasses.asdict(sampling)
        write_json(json_file, {"seed": seed, "split": split, "sampling": settings_used, "features": figures})
    if at_least is not None and (share := figures[CLASSIFIER][GENERATED]["top1_accuracy"]) < at_least:
        raise MarError(f"{share:.1%} of the images are recognised, where {at_least:.1%} are asked for")


def _opened(
    name: str, classifier: pathlib.Path, inception_weights: pathlib.Path | None, train: Dataset
) -> FeatureNetwork:
    if name == EFFICIENTNET:
        return EfficientNet()
    if name == INCEPTION:
        return Inception(inception_weights)
    with progress_bar(100, "classifier") as bar:
        return OwnClassifier(load_or_train_classifier(classifier, train, _hundredths(bar.update)), classifier)


def _check(classes: int, train: Dataset, real: Dataset, count: int) -> None:
    """Refuse before the work what could not be judged after it."""
    if train.classes != real.classes:
        raise DataError("the training and the test images have different classes")
    if len(train.classes) != classes:
        raise RequestError(f"the data has {pluralize(len(train.classes), 'class')}, the model {classes}")
    if count < 2:
        raise RequestError(f"--images must be at least 2, found {count}")


def _hundredths(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    """A progress callable (done, of) on top of a bar of 100 steps."""

    def progress(done: int, of: int) -> None:
        advance(done * 100 // of - (done - 1) * 100 // of)

    return progress

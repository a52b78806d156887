"""The command `mar evaluate`."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import torch

from runtime.checks import pluralize
from runtime.cli.background_option import background_option
from runtime.cli.json_document import PrintDocument, json_document, json_option
from runtime.cli.options import PATH, backend_options, preset_option, sampling_options, threads_option
from runtime.cli.result_files import OUTPUT, check_result_file, force_option, write_result_json
from runtime.errors import DataError, MarError, RequestError
from runtime.image_files import Color
from runtime.progress import Progress
from runtime.storage.files import holding_folder
from training.cli.named_checkpoint import take_checkpoint_options
from training.cli.options import checkpoint_options, echo_warnings
from training.cli.run_settings import background_of_run, setting_of_run
from training.data.class_names import check_known_classes
from training.data.datasets import ImageDataset
from training.data.validation_split import open_train_and_test
from training.evaluation.comparison_table import GENERATED, TRAINING, compare_with_real, comparison_table
from training.evaluation.feature_networks import (
    CLASSIFIER,
    EFFICIENTNET,
    INCEPTION,
    NETWORKS,
    DatasetClassifier,
    EfficientNet,
    FeatureNetwork,
    Inception,
    convert_channels,
    extract_features,
)
from training.evaluation.generate_images import GenerationJob, generate_images, read_images
from training.evaluation.real_statistics import load_or_compute_statistics
from training.evaluation.reliability import doubts
from training.reporting.progress import print_lines, print_warnings


@dataclasses.dataclass(frozen=True)
class _RealImages:
    """The real images of a comparison.

    Attributes:
        train: The images that the model and the classifier were trained on.
        compared: The images that generated ones are compared with.
        split: The name of their split, `train` or `test`.
        count: How many of them are used.
    """

    train: ImageDataset
    compared: ImageDataset
    split: str
    count: int


@click.command()
@click.argument("source", type=PATH, metavar="CHECKPOINT|ARTIFACT")
@click.option("--data", type=PATH, required=True, help="The folder of the dataset that the model was trained on.")
@click.option(
    "--split",
    type=click.Choice(["test", "train"]),
    default="test",
    show_default=True,
    help="The split of the real images that generated images are compared with.",
)
@click.option(
    "--real-count",
    type=click.IntRange(2),
    help="The number of real images to compare with. Default: all images of the split.",
)
@click.option(
    "--validation-share",
    type=click.FloatRange(0, 1, max_open=True),
    help="The share that mar train held out. The held-out images are the test split of a dataset that has none. "
    "Default: that of the run.",
)
@click.option("--count", type=int, default=5000, show_default=True, help="The number of images to generate.")
@click.option(
    "--features",
    "names",
    type=click.Choice(NETWORKS),
    multiple=True,
    default=(CLASSIFIER,),
    show_default=True,
    help="The network whose features are compared. The option can be repeated.",
)
@click.option(
    "--classifier",
    type=PATH,
    help="The file of the classifier, which is trained first if it does not exist. Default: one in out/classifiers for "
    "each dataset.",
)
@click.option(
    "--out",
    type=PATH,
    default="out/evaluation",
    show_default=True,
    help="The folder that keeps generated images and statistics of real images for the next evaluation.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="The number of processes that generate images, which share --threads. More than one need the extra ray.",
)
@background_option
@backend_options
@preset_option
@sampling_options
@checkpoint_options
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of the generated images.")
@threads_option
@click.option(
    "--min-accuracy",
    type=click.FloatRange(0, 1),
    help="Fail if the top-1 accuracy of the classifier on the generated images is lower than this share.",
)
@click.option("--report", "report_file", type=OUTPUT, help="Write the metrics to this file as JSON.")
@force_option("Replace a report that something else made.")
@json_option
def evaluate(
    source: pathlib.Path,
    data: pathlib.Path,
    split: str,
    real_count: int | None,
    validation_share: float | None,
    count: int,
    names: Sequence[str],
    classifier: pathlib.Path | None,
    out: pathlib.Path,
    processes: int,
    background: Color,
    backend: str,
    device: str | None,
    cuda_graphs: bool,
    seed: int,
    threads: int | None,
    min_accuracy: float | None,
    report_file: pathlib.Path | None,
    print_document: PrintDocument,
    **settings: Any,
) -> None:
    """Compare generated images with real ones.

    An artifact runs with its own engines. A checkpoint runs in eager PyTorch on the CPU. The command can be stopped and
    repeated: it resumes with the images and statistics that are in --out.
    """
    _check_options(names, min_accuracy, report_file, count)
    if threads is not None:
        torch.set_num_threads(threads)
    backend_arguments = {"backend": backend, "device": device, "cuda_graphs": cuda_graphs}
    checkpoint_arguments = take_checkpoint_options(settings)
    job = GenerationJob(
        source, seed, *(tuple(values.items()) for values in (settings, backend_arguments, checkpoint_arguments))
    )
    echo_warnings(job.resolved.warnings)
    real = _open_real_images(data, split, real_count, background, validation_share, job)
    networks = [_open_network(name, classifier, real.train) for name in dict.fromkeys(names)]
    with holding_folder(out):
        with Progress(count, "generating", unit="images") as progress:
            generate_images(job, count, out, processes, threads, progress.update, progress.skip)
        comparisons = {network.name: _compare(network, job, real, count, out) for network in networks}
    print_warnings([*real.train.warnings, *real.compared.warnings])
    click.echo(comparison_table(comparisons))
    about = {**_describe(job), "data": str(data), "split": split, "count": count, "min_accuracy": min_accuracy}
    document = json_document("evaluate", {**about, "features": comparisons})
    if report_file is not None:
        write_result_json(report_file, document)
    print_document(document)
    _check_accuracy(comparisons, min_accuracy)


def _check_options(
    names: Sequence[str], min_accuracy: float | None, report_file: pathlib.Path | None, count: int
) -> None:
    if min_accuracy is not None and CLASSIFIER not in names:
        raise RequestError("--min-accuracy is measured by the classifier; add --features classifier")
    if count < 2:
        raise RequestError(f"--count must be at least 2, found {count}")
    if report_file is not None:
        check_result_file(report_file)


def _check_accuracy(comparisons: Mapping[str, Any], least: float | None) -> None:
    if least is not None and (accuracy := comparisons[CLASSIFIER][GENERATED]["top1_accuracy"]) < least:
        raise MarError(f"the top-1 accuracy is {accuracy:.1%}, and --min-accuracy requires {least:.1%}")


def _held_out_share(source: pathlib.Path, validation_share: float | None) -> float:
    """Return the share of the images that training held out: the given one, or that of a run.

    Raises:
        RequestError: The run held out another share than the given one.
    """
    saved = setting_of_run(source, "validation_share")
    if validation_share is None:
        return saved if isinstance(saved, float) else 0.0
    if isinstance(saved, float) and saved != validation_share:
        raise RequestError(f"{source} held out a share of {saved}, found --validation-share {validation_share}")
    return validation_share


def _open_real_images(
    data: pathlib.Path,
    split: str,
    real_count: int | None,
    background: Color,
    validation_share: float | None,
    job: GenerationJob,
) -> _RealImages:
    """Open the dataset in the size of the model's images, and check that it has the model's classes."""
    config = job.resolved.config
    share = _held_out_share(job.source, validation_share)
    color = background_of_run(job.source, background)
    train, test = open_train_and_test(data, config.image_shape[0], color, share, with_test=split == "test")
    compared = train if test is None else test
    print_lines(dict.fromkeys([*train.notes, *compared.notes]))
    check_known_classes(train.classes, job.resolved.class_names, str(data), str(job.source))
    if train.classes != compared.classes:
        raise DataError(f"{data}: the training and the test images have different classes")
    if len(train.classes) != config.class_num:
        classes = pluralize(len(train.classes), "class")
        raise RequestError(f"{data} has {classes}, but the model has {config.class_num}; give the model's own dataset")
    available = len(compared.labels)
    return _RealImages(train, compared, split, min(real_count or available, available))


def _describe(job: GenerationJob) -> dict[str, Any]:
    """Return what decides the generated images, for the JSON document."""
    sampling = dataclasses.asdict(job.resolved.sampling)
    return {"source": str(job.source), "seed": job.seed, "sampling": sampling}


def _open_network(name: str, classifier: pathlib.Path | None, train: ImageDataset) -> FeatureNetwork:
    if name == EFFICIENTNET:
        return EfficientNet()
    if name == INCEPTION:
        return Inception()
    if len(train.classes) == 1:
        raise RequestError(
            f"--features {CLASSIFIER} tells classes apart, and this data has one; give --features {EFFICIENTNET}"
        )
    with Progress(100, "training the classifier") as progress:
        return DatasetClassifier.load_or_train(classifier, train, _percent_progress(progress.update))


def _compare(
    network: FeatureNetwork, job: GenerationJob, real: _RealImages, count: int, out: pathlib.Path
) -> dict[str, Any]:
    """Compute the metrics of the generated images, and of as many training images, against the real images."""
    with Progress(real.count, f"{network.name}: real", unit="images") as progress:
        compared = load_or_compute_statistics(network, real.compared, real.count, out, progress.update)
    channels = real.compared.channels
    generated = ((convert_channels(images, channels), labels) for images, labels in read_images(job, count, out))
    image_sets = {GENERATED: extract_features(network, generated)}
    if real.split == "test":  # training images show which values perfect images would reach
        train_count = min(count, len(real.train.labels))
        with Progress(train_count, f"{network.name}: training", unit="images") as progress:
            image_sets[TRAINING] = load_or_compute_statistics(network, real.train, train_count, out, progress.update)
    counts = {name.replace("_", " "): statistics.images for name, statistics in image_sets.items()}
    print_warnings(doubts(network.name, counts, compared, network.knows_classes))
    return compare_with_real(network, image_sets, compared)


def _percent_progress(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    """Adapt a progress bar of 100 steps to a progress function of (steps done, steps in total)."""

    def progress(done: int, total: int) -> None:
        advance(done * 100 // total - (done - 1) * 100 // total)

    return progress

"""The generated images of a job, compared with real ones by one network after another."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from runtime.errors import RequestError
from runtime.progress import Progress
from training.data.datasets import ImageDataset
from training.evaluation.comparison_table import GENERATED, TRAINING, compare_with_real
from training.evaluation.feature_networks import (
    CLASSIFIER,
    EFFICIENTNET,
    INCEPTION,
    DatasetClassifier,
    EfficientNet,
    FeatureNetwork,
    FeatureStatistics,
    Inception,
    convert_channels,
    extract_features,
)
from training.evaluation.generate_images import GenerationJob, read_images
from training.evaluation.real_images import RealImages
from training.evaluation.real_statistics import load_or_compute_statistics
from training.evaluation.reliability import doubts


class Comparison(NamedTuple):
    """What networks say of generated images.

    Attributes:
        metrics: What `compare_with_real` returns, by the name of each network.
        doubts: One line for each reason to doubt them.
    """

    metrics: dict[str, dict[str, Any]]
    doubts: list[str]


def open_networks(names: Iterable[str], classifier: pathlib.Path | None, train: ImageDataset) -> list[FeatureNetwork]:
    """Open feature networks by their names, each once.

    Args:
        names: Names of `NETWORKS`.
        classifier: The file of the classifier, which is trained on `train` and written if it does not exist. None: that
            of `training.evaluation.classifier.default_file`.
        train: The training images of the dataset.

    Raises:
        BackendError: A package that a network needs is not installed.
        RequestError: The dataset has one class, which leaves nothing to classify.
    """
    return [_open_network(name, classifier, train) for name in dict.fromkeys(names)]


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


def compare_job(
    networks: Iterable[FeatureNetwork], job: GenerationJob, real: RealImages, count: int, folder: pathlib.Path
) -> Comparison:
    """Compute the metrics of the generated images of a job, and of as many training images, against the real images.

    Args:
        networks: The networks.
        job: The job whose images `generate_images` has put into `folder`.
        real: The real images.
        count: How many of the job's images to use.
        folder: The folder of the images, which also keeps statistics of real images.

    Raises:
        DataError: A file of the folder is missing, damaged, or was altered.
    """
    comparison = Comparison({}, [])
    for network in networks:
        image_sets, compared = _statistics(network, job, real, count, folder)
        counts = {name.replace("_", " "): statistics.images for name, statistics in image_sets.items()}
        comparison.metrics[network.name] = compare_with_real(network, image_sets, compared)
        comparison.doubts.extend(doubts(network.name, counts, compared, network.knows_classes))
    return comparison


def _statistics(
    network: FeatureNetwork, job: GenerationJob, real: RealImages, count: int, folder: pathlib.Path
) -> tuple[dict[str, FeatureStatistics], FeatureStatistics]:
    """Return the statistics of the sets to compare, by their names, and of the real images."""
    with Progress(real.count, f"{network.name}: real", unit="images") as progress:
        compared = load_or_compute_statistics(network, real.compared, real.count, folder, progress.update)
    channels = real.compared.channels
    generated = ((convert_channels(images, channels), labels) for images, labels in read_images(job, count, folder))
    image_sets = {GENERATED: extract_features(network, generated)}
    if real.split == "test":  # training images show which values perfect images would reach
        train_count = min(count, len(real.train.labels))
        with Progress(train_count, f"{network.name}: training", unit="images") as progress:
            image_sets[TRAINING] = load_or_compute_statistics(network, real.train, train_count, folder, progress.update)
    return image_sets, compared


def _percent_progress(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    """Adapt a progress bar of 100 steps to a progress function of (steps done, steps in total)."""

    def progress(done: int, total: int) -> None:
        advance(done * 100 // total - (done - 1) * 100 // total)

    return progress

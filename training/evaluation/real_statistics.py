"""Feature statistics of real images, computed once and then read from a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import DataError
from runtime.storage.stored_files import load_arrays, save_arrays
from runtime.storage.structured_files import FaultReport, shape_fits
from training.data.datasets import ImageDataset, readable_batches
from training.evaluation.feature_networks import FeatureNetwork, FeatureStatistics, LabelledBatch, extract_features
from training.evaluation.metrics import Moments

_BATCH = 64
_FORMAT = 2


def load_or_compute_statistics(
    network: FeatureNetwork, dataset: ImageDataset, count: int, folder: pathlib.Path, progress: Callable[[int], None]
) -> FeatureStatistics:
    """Load the statistics of real images from `folder`, or compute them and save them there.

    A saved file is used only for the same images and the same weights of the network. Images that cannot be read are
    left out; the dataset's warnings name them.

    Args:
        network: The network whose features are collected.
        dataset: The real images.
        count: The number of images; they are chosen at random, always the same ones.
        folder: Where the file is.
        progress: Is called with the number of images of each finished batch, or once with `count`.

    Raises:
        DataError: The file is damaged or was altered.
    """
    key = {
        "format": _FORMAT,
        "network": network.name,
        "weights": network.sha256,
        "dataset": dataset.fingerprint,
        "images": count,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    file = folder / f"real-statistics-{network.name}-{digest[:16]}.npz"
    if file.exists():
        saved = _load(file, key)
        progress(count)
        return saved
    indices = np.random.default_rng(0).permutation(len(dataset.labels))[:count]
    statistics = extract_features(network, _readable_labelled_batches(dataset, indices, progress))
    moments = statistics.moments
    save_arrays(
        file,
        _Header(key, statistics.images, statistics.top1_accuracy, statistics.inception_score),
        {"mean": moments.mean, "covariance": moments.covariance, "sample": statistics.sample},
    )
    return statistics


@dataclasses.dataclass(frozen=True)
class _Header:
    """What a file of statistics holds beside arrays: what they are of, and fields of `FeatureStatistics`."""

    key: dict[str, Any]
    images: int
    top1_accuracy: float | None
    inception_score: float | None


def _readable_labelled_batches(
    dataset: ImageDataset, indices: NDArray[np.int64], progress: Callable[[int], None]
) -> Iterator[LabelledBatch]:
    for images, readable in readable_batches(dataset, indices, _BATCH):
        progress(len(images))
        yield images, dataset.labels[readable]


def _load(file: pathlib.Path, key: dict[str, Any]) -> FeatureStatistics:
    """Load saved statistics. Raises `DataError` if the file is damaged, altered, or of other images."""
    fault_report = FaultReport(DataError, "remove the file to compute the statistics of the real images again")
    header, arrays = load_arrays(file, _Header, fault_report)
    if header.key != key or arrays.keys() != {"mean", "covariance", "sample"}:
        fault_report.raise_(file, "statistics of other images or of another network")
    mean, covariance, sample = (arrays[name] for name in ("mean", "covariance", "sample"))
    if mean.ndim != 1 or not (
        shape_fits(covariance.shape, mean.shape * 2) and shape_fits(sample.shape, (None, len(mean)))
    ):
        fault_report.raise_(file, f"arrays of shapes {mean.shape}, {covariance.shape} and {sample.shape}")
    return FeatureStatistics(
        header.images, Moments(mean, covariance), sample, header.top1_accuracy, header.inception_score
    )

"""Feature statistics of real images, computed once and then read from a file."""

from __future__ import annotations

import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.files import replacing
from training.data.datasets import ImageDataset, readable_batches
from training.evaluation.feature_networks import FeatureNetwork, FeatureStatistics, LabelledBatch, extract_features
from training.evaluation.metrics import Moments

_BATCH = 64


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
    """
    key = {"network": network.name, "weights": network.sha256, "dataset": dataset.fingerprint, "images": count}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    file = folder / f"real-statistics-{network.name}-{digest[:16]}.npz"
    saved = _load(file, key)
    if saved is not None:
        progress(count)
        return saved
    indices = np.random.default_rng(0).permutation(len(dataset.labels))[:count]
    statistics = extract_features(network, _readable_labelled_batches(dataset, indices, progress))
    with replacing(file) as temporary:
        np.savez(
            temporary,
            key=json.dumps(key),
            mean=statistics.moments.mean,
            covariance=statistics.moments.covariance,
            sample=statistics.sample,
            figures=json.dumps([statistics.images, statistics.top1_accuracy, statistics.inception_score]),
        )
    return statistics


def _readable_labelled_batches(
    dataset: ImageDataset, indices: NDArray[np.int64], progress: Callable[[int], None]
) -> Iterator[LabelledBatch]:
    for images, readable in readable_batches(dataset, indices, _BATCH):
        progress(len(images))
        yield images, dataset.labels[readable]


def _load(file: pathlib.Path, key: dict[str, Any]) -> FeatureStatistics | None:
    """Load saved statistics; None if the file is missing or damaged, or has another key."""
    try:
        with np.load(file, allow_pickle=False) as saved:
            if json.loads(str(saved["key"])) != key:
                return None
            images, top1_accuracy, score = json.loads(str(saved["figures"]))
            moments = Moments(saved["mean"], saved["covariance"])
            return FeatureStatistics(images, moments, saved["sample"], top1_accuracy, score)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        return None

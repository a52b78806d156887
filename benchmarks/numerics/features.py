"""Features of the images of the estimators' page, computed once and then read from files."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from runtime.errors import MarError
from runtime.storage.stored_files import load_arrays, save_arrays
from runtime.storage.structured_files import FaultReport
from training.data.datasets import open_dataset
from training.evaluation.feature_networks import (
    DatasetClassifier,
    FeatureNetwork,
    Inception,
    LabelledBatch,
    labelled_batches,
)
from training.evaluation.generate_images import GenerationJob, generate_images, read_images

SIDE = 32
_GENERATED_WITH = (("backend", "onnxruntime"), ("device", None), ("cuda_graphs", True))  # as `mar evaluate` does

Features = NDArray[np.float32]


def classifier_features(data: pathlib.Path, split: str, folder: pathlib.Path) -> Features:
    """Return the features [n, 64] of all images of a split, under the classifier of the dataset."""
    dataset = open_dataset(data, SIDE, split)
    every = np.random.default_rng(0).permutation(len(dataset.labels))
    return _kept(folder / f"classifier-{split}.npz", _classifier(data), labelled_batches(dataset, every))


@dataclasses.dataclass(frozen=True)
class GeneratedImages:
    """Images that an artifact generates with a preset; `folder` keeps them and their features."""

    artifact: pathlib.Path
    preset: str
    count: int
    folder: pathlib.Path

    def classifier_features(self, data: pathlib.Path) -> Features:
        """Return their features [count, 64] under the classifier of the dataset."""
        return self._features("classifier", _classifier(data))

    def inception_features(self) -> Features:
        """Return their features [count, 2048] under Inception."""
        return self._features("inception", Inception())

    def _features(self, name: str, network: FeatureNetwork) -> Features:
        job = GenerationJob(self.artifact, 0, (("preset", self.preset),), _GENERATED_WITH)
        generate_images(job, self.count, self.folder, 1, 1, lambda done: None)
        file = self.folder / f"{name}-{self.preset}-{self.count}.npz"
        return _kept(file, network, read_images(job, self.count, self.folder))


def inception_features(data: pathlib.Path, count: int, folder: pathlib.Path) -> Features:
    """Return the features [count, 2048] of random training images, under Inception."""
    dataset = open_dataset(data, SIDE)
    chosen = np.random.default_rng(1).permutation(len(dataset.labels))[:count]
    return _kept(folder / f"inception-{count}.npz", Inception(), labelled_batches(dataset, chosen, 32))


def _classifier(data: pathlib.Path) -> DatasetClassifier:
    return DatasetClassifier.load_or_train(None, open_dataset(data, SIDE))


def _kept(file: pathlib.Path, network: FeatureNetwork, batches: Iterable[LabelledBatch]) -> Features:
    """Return the features in a file, or compute them and write it."""
    header = _Network(network.sha256)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        save_arrays(file, header, {"features": np.concatenate(list(_features(network, batches)))})
    saved, arrays = load_arrays(file, _Network, FaultReport(MarError, "remove it"))
    if saved != header:
        raise MarError(f"{file} has features of another network; remove it")
    return np.asarray(arrays["features"], np.float32)


@dataclasses.dataclass(frozen=True)
class _Network:
    """The header of a file of features."""

    sha256: str


def _features(network: FeatureNetwork, batches: Iterable[LabelledBatch]) -> Iterator[Features]:
    return (network.features(images) for images, _ in batches)

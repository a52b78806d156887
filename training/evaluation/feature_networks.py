"""Networks that turn images into features, and the statistics of an image set that metrics compare."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.errors import DataError
from runtime.storage.files import sha256
from training.data.datasets import ImageDataset, chunks
from training.evaluation.classifier import Classifier, default_file, load_or_train_classifier
from training.evaluation.efficientnet import efficientnet_file, load_efficientnet
from training.evaluation.inception import SHA256, load_inception, resize
from training.evaluation.metrics import Moments, inception_score

CLASSIFIER, EFFICIENTNET, INCEPTION = NETWORKS = ("classifier", "efficientnet-lite0", "inception")
MAX_SAMPLE = 10_000  # images whose nearest neighbours are searched: the distances of all pairs are one matrix
_SUB_BATCH = 4  # images: the feature maps of more do not fit the caches of a CPU, and take three times as long

LabelledBatch = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images uint8 [B, H, W, c] and the class of each, int64 [B]."""


class FeatureNetwork(Protocol):
    """A network whose features describe images.

    Attributes:
        name: One of `NETWORKS`, for reports and file names.
        sha256: SHA-256 of the file with its weights.
        knows_classes: Whether its scores are for the classes of the dataset, rather than those of ImageNet.
    """

    name: str
    sha256: str
    knows_classes: bool

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the features [B, d] of images [B, H, W, c] with 1 or 3 channels."""

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Compute the logits [B, classes] of features [B, d]; None where the network has no classifier."""


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
    """The features of an image set under one network, reduced to what metrics need.

    Attributes:
        images: The number of images in the set.
        moments: Mean and covariance of the features of all images.
        sample: The features of the first 10,000 images, float32 [<= 10000, d].
        top1_accuracy: The share of images that the network classifies as their label, 0..1. None if the network does
            not know the classes of the dataset.
        inception_score: The Inception Score. None if the network knows the classes of the dataset, or has no
            classifier.
    """

    images: int
    moments: Moments
    sample: NDArray[np.float32]
    top1_accuracy: float | None
    inception_score: float | None


def extract_features(network: FeatureNetwork, batches: Iterable[LabelledBatch]) -> FeatureStatistics:
    """Run `network` over an image set and collect the statistics of its features.

    Args:
        network: The network.
        batches: Images with their labels, at least two images in total.
    """
    samples: list[NDArray[np.float32]] = []
    all_scores: list[NDArray[np.float32]] = []
    all_labels: list[NDArray[np.int64]] = []
    total, products, count = np.float64(0), np.float64(0), 0
    for images, labels in batches:
        features = network.features(images)
        all_labels.append(labels)
        if (scores := network.scores(features)) is not None:
            all_scores.append(scores)
        samples.append(features[: max(0, MAX_SAMPLE - count)])
        exact = features.astype(np.float64)
        total, products, count = total + exact.sum(axis=0), products + exact.T @ exact, count + len(images)
    mean = np.asarray(total / count)
    covariance = np.asarray(products - count * np.outer(mean, mean)) / (count - 1)
    logits = np.concatenate(all_scores) if all_scores else None  # [n, classes]
    accuracy = score = None
    if logits is not None and network.knows_classes:
        accuracy = float((logits.argmax(axis=1) == np.concatenate(all_labels)).mean())
    elif logits is not None:
        score = inception_score(logits)
    return FeatureStatistics(count, Moments(mean, covariance), np.concatenate(samples), accuracy, score)


def labelled_batches(dataset: ImageDataset, indices: NDArray[np.int64], size: int = 256) -> Iterator[LabelledBatch]:
    """Yield the images of `dataset` at `indices` [n] with their labels, at most `size` together."""
    return ((dataset.images(part), dataset.labels[part]) for part in chunks(indices, size))


class DatasetClassifier:
    """A small classifier that was trained on the dataset itself (see `training.evaluation.classifier`).

    Args:
        model: The classifier, in evaluation mode.
        file: The file with its weights.
    """

    name, knows_classes = CLASSIFIER, True

    def __init__(self, model: Classifier, file: pathlib.Path) -> None:
        self._model = model
        self.sha256 = sha256(file)

    @classmethod
    def load_or_train(
        cls,
        file: pathlib.Path | None,
        dataset: ImageDataset,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> DatasetClassifier:
        """Load the classifier of `dataset` from `file`; train it and save it there if there is none.

        Without `file`, it is that of `training.evaluation.classifier.default_file`.
        """
        file = file or default_file(dataset)
        return cls(load_or_train_classifier(file, dataset, progress), file)

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the features [B, 64] of images [B, H, W, c] with the channels of the dataset."""
        return self._model.features(images).numpy()

    @torch.inference_mode()
    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the logits [B, classes] of features [B, 64]."""
        return self._model.score(torch.from_numpy(features)).numpy()


class EfficientNet:
    """EfficientNet-Lite0 with its ImageNet weights (see `training.evaluation.efficientnet`).

    Raises:
        BackendError: The package with the weights is not installed.
    """

    name, knows_classes = EFFICIENTNET, False

    def __init__(self) -> None:
        self._model = load_efficientnet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.sha256 = sha256(efficientnet_file())

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the features [B, 1280] of images [B, H, W, c] with 1 or 3 channels."""
        parts = (_rgb_tensor(images) / 127.5 - 1).split(_SUB_BATCH)
        return torch.cat([self._model.features(part) for part in parts]).numpy()

    @torch.inference_mode()
    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the ImageNet logits [B, 1000] of features [B, 1280]."""
        return self._model.scores(torch.from_numpy(features)).numpy()


class Inception:
    """The Inception-v3 of published FIDs (see `training.evaluation.inception`); it has no classifier.

    Raises:
        BackendError: The package with the network is not installed.
        CheckpointError: The file in the package is missing or another one.
    """

    name, knows_classes = INCEPTION, False

    def __init__(self) -> None:
        self._model = load_inception()
        self.sha256 = SHA256

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the features [B, 2048] of images [B, H, W, c] with 1 or 3 channels."""
        resized = (resize(_rgb_tensor(images)) - 128) / 128
        parts = resized.contiguous(memory_format=torch.channels_last).split(_SUB_BATCH)  # a seventh faster
        return torch.cat([self._model(part) for part in parts]).numpy()

    def scores(self, features: NDArray[np.float32]) -> None:
        """Return None: there is no classifier."""


def convert_channels(images: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Convert images [B, H, W, c] between gray (1 channel, the mean of three) and RGB (3 channels).

    Raises:
        DataError: The images have neither `channels` channels nor the other of 1 and 3.
    """
    current = images.shape[-1]
    if current == channels:
        return images
    if (current, channels) == (3, 1):
        return np.rint(images.mean(axis=-1, keepdims=True)).astype(np.uint8)
    if (current, channels) == (1, 3):
        return images.repeat(3, axis=-1)
    raise DataError(f"the images have {current} channels, expected {channels}")


def _rgb_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Convert images [B, H, W, c] to float32 [B, 3, H, W] in 0..255."""
    return torch.from_numpy(convert_channels(images, 3).transpose(0, 3, 1, 2).astype(np.float32))

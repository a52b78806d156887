"""The networks in whose features sets of images are compared, and what such a network sees of a set."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.errors import BackendError, CheckpointError, DataError
from runtime.files import sha256
from training.evaluation.classifier import Classifier
from training.evaluation.efficientnet import efficientnet_file, load_efficientnet
from training.evaluation.metrics import Moments, inception_score

CLASSIFIER, EFFICIENTNET, INCEPTION = NETWORKS = ("classifier", "efficientnet-lite0", "inception")
MOST_COMPARED = 10_000  # images whose neighbours are looked for: their distances are a matrix
_TOGETHER = 4  # images: the maps of more do not fit a processor's caches, and take three times as long


class FeatureNetwork(Protocol):
    """`sha256` is that of its weights; `knows_classes`, whether its scores are of the classes of the data."""

    name: str
    sha256: str
    knows_classes: bool

    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images [B, H, W, c], c 1 or 3 -> [B, d]."""

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features [B, d] -> logits [B, classes]."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a network sees of `images` images.

    `moments` of all features, those of the first 10,000 as `sample` [<= 10000, d]; `recognised`, the share of images
    seen as their class, by a network that knows the classes, and `inception_score` by one that does not.
    """

    images: int
    moments: Moments
    sample: NDArray[np.float32]
    top1_accuracy: float | None
    inception_score: float | None


def look(network: FeatureNetwork, batches: Iterable[tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> Seen:
    """What `network` sees of images, in batches of them with their classes [B]; at least two in all."""
    samples: list[NDArray[np.float32]] = []
    all_scores: list[NDArray[np.float32]] = []
    all_labels: list[NDArray[np.int64]] = []
    total, products, seen = np.float64(0), np.float64(0), 0
    for batch, labels in batches:
        features = network.features(batch)
        all_labels.append(labels)
        all_scores.append(network.scores(features))
        samples.append(features[: max(0, MOST_COMPARED - seen)])
        wide = features.astype(np.float64)
        total, products, seen = total + wide.sum(axis=0), products + wide.T @ wide, seen + len(batch)
    mean = np.asarray(total / seen)
    covariance = np.asarray(products - seen * np.outer(mean, mean)) / (seen - 1)
    scores = np.concatenate(all_scores)  # [n, classes]
    return Seen(
        seen,
        Moments(mean, covariance),
        np.concatenate(samples),
        float((scores.argmax(axis=1) == np.concatenate(all_labels)).mean()) if network.knows_classes else None,
        None if network.knows_classes else inception_score(scores),
    )


class OwnClassifier:
    """The classifier that was trained on the data, at `file`."""

    name, knows_classes = CLASSIFIER, True

    def __init__(self, model: Classifier, file: pathlib.Path) -> None:
        self._model, self.sha256 = model, sha256(file)

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._model.features(images).numpy()

    @torch.inference_mode()
    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._model.score(torch.from_numpy(features)).numpy()


class EfficientNet:
    """EfficientNet-Lite0 with its ImageNet weights. Raises `BackendError` where they are not installed."""

    name, knows_classes = EFFICIENTNET, False

    def __init__(self) -> None:
        self._model = load_efficientnet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.sha256 = sha256(efficientnet_file())

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = (_in_colour(images) / 127.5 - 1).split(_TOGETHER)
        return torch.cat([self._model.features(part) for part in parts]).numpy()

    @torch.inference_mode()
    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._model.scores(torch.from_numpy(features)).numpy()


class Inception:
    """The Inception-v3 of published FID and Inception Scores, as `torch-fidelity` has it, with its weights at `file`.

    Raises `CheckpointError` without the weights, `BackendError` without the package.
    """

    name, knows_classes = INCEPTION, False

    def __init__(self, file: pathlib.Path | None) -> None:
        if file is None or not file.is_file():
            where = "no path was given" if file is None else f"there is no file {file}"
            raise CheckpointError(
                f"Inception needs its weights, and {where}; --inception-weights takes torch-fidelity's "
                "weights-inception-2015-12-05-6726825d.pth, which you have to fetch yourself"
            )
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # a torchvision built for another PyTorch raises the latter
            raise BackendError(
                f"Inception needs torch-fidelity, which cannot be imported ({error}); pip install 'mar-runtime[fid]'"
            ) from None
        try:
            torch.load(file, weights_only=True, map_location="meta")  # torch-fidelity would run what a file says
            self._model = FeatureExtractorInceptionV3(INCEPTION, ["2048"], feature_extractor_weights_path=str(file))
        except Exception as error:
            raise CheckpointError(f"{file}: not the weights of torch-fidelity's Inception ({error})") from None
        self.sha256 = sha256(file)

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = _in_colour(images).to(torch.uint8).split(_TOGETHER)
        return torch.cat([self._model(part)[0] for part in parts]).numpy()

    @torch.inference_mode()
    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        scores: Tensor = torch.from_numpy(features) @ self._model.fc.weight.T  # without the bias, as published
        return scores.numpy()


def in_colours(images: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Images [B, H, W, c] with `channels` colours, 1 or 3; gray is the mean of three. Raises `DataError`."""
    found = images.shape[-1]
    if found == channels:
        return images
    if (found, channels) == (3, 1):
        return np.rint(images.mean(axis=-1, keepdims=True)).astype(np.uint8)
    if (found, channels) == (1, 3):
        return images.repeat(3, axis=-1)
    raise DataError(f"images of {found} channels, where {channels} are expected")


def _in_colour(images: NDArray[np.uint8]) -> Tensor:
    """Images [B, H, W, c] as float32 [B, 3, H, W] of 0..255."""
    return torch.from_numpy(in_colours(images, 3).transpose(0, 3, 1, 2).astype(np.float32))

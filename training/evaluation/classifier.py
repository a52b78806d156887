"""How good generated images are, judged by a small classifier trained on the real ones.

Two figures: how often the classifier recognises the class that was asked for, and the Fréchet distance
(arXiv 1706.08500) between its features of generated and of real test images.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.errors import DataError
from training.checkpoints import checkpoint
from training.checkpoints.tensor_files import saved_metadata
from training.data.datasets import Dataset, in_parts, readable_batches
from training.evaluation.metrics import Moments, frechet

FEATURES = 64
_EPOCHS = 3
_BATCH = 128


class Classifier(nn.Module):
    """Images uint8 [B, H, W, c] -> class scores [B, classes], by way of 64 features."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels, 32, 64, 128)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.project = nn.Linear(widths[-1], FEATURES)
        self.score = nn.Linear(FEATURES, classes)

    def features(self, images: NDArray[np.uint8]) -> Tensor:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.max_pool2d(F.relu(norm(convolution(x))), 2)
        return F.relu(self.project(x.mean(dim=(2, 3))))

    def forward(self, images: NDArray[np.uint8]) -> Tensor:
        return self.score(self.features(images))


@dataclasses.dataclass(frozen=True)
class Judgement:
    """`recognised`: the share of images seen as their class; `features` [n, 64] for `frechet_distance`."""

    top1_accuracy: float
    features: NDArray[np.float64]


def train_classifier(dataset: Dataset, progress: Callable[[int, int], None]) -> Classifier:
    """Three epochs of AdamW under a one-cycle learning rate, always from the same seed."""
    torch.manual_seed(0)
    model = Classifier(dataset.channels, len(dataset.classes)).train()
    every = np.arange(len(dataset.labels))
    readable = np.concatenate([indices for _, indices in readable_batches(dataset, every, _BATCH)])
    steps_an_epoch = len(readable) // _BATCH
    if not steps_an_epoch:
        raise DataError(f"{len(readable)} training images are too few for a classifier; {_BATCH} are the least")
    steps = _EPOCHS * steps_an_epoch
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    random = np.random.default_rng(0)
    for epoch in range(_EPOCHS):
        order = random.permutation(readable)
        for step in range(steps_an_epoch):
            indices = order[step * _BATCH : (step + 1) * _BATCH]
            loss = F.cross_entropy(model(dataset.images(indices)), torch.from_numpy(dataset.labels[indices]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress(epoch * steps_an_epoch + step + 1, steps)
    return model.eval()


def load_or_train_classifier(file: pathlib.Path, dataset: Dataset, progress: Callable[[int, int], None]) -> Classifier:
    """The classifier that was trained on this very dataset and saved at `file`, or a new one, saved there."""
    if saved_metadata(file).get("dataset") == dataset.fingerprint:
        model = Classifier(dataset.channels, len(dataset.classes)).eval()
        checkpoint.load_into(model, file)
        return model
    model = train_classifier(dataset, progress)
    checkpoint.save_weights(file, model.state_dict(), {"dataset": dataset.fingerprint})
    return model


@torch.inference_mode()
def judge(model: Classifier, images: Iterator[NDArray[np.uint8]], labels: NDArray[np.int64]) -> Judgement:
    """Look at batches of `images`, whose classes in turn are `labels`."""
    features = torch.cat([model.features(batch) for batch in images])  # [n, 64]
    guesses = model.score(features).argmax(dim=1).numpy()
    return Judgement(float((guesses == labels).mean()), features.double().numpy())


def batches(dataset: Dataset, count: int) -> Iterator[NDArray[np.uint8]]:
    """The first `count` images of `dataset`."""
    return (dataset.images(part) for part in in_parts(np.arange(count), 256))


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The Fréchet distance of features [n, d] and [m, d]."""
    return frechet(Moments.of(a), Moments.of(b))

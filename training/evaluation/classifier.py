"""A small classifier for the classes of a dataset; its accuracy and its features measure image quality."""

from __future__ import annotations

import hashlib
import itertools
import pathlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from runtime.errors import DataError
from runtime.storage.files import clear_dead_lock, holding
from training.checkpoints import checkpoint
from training.checkpoints.tensor_files import read_metadata
from training.data.datasets import ImageDataset, readable_batches

FEATURES = 64
_EPOCHS = 3
_BATCH = 128


class Classifier(nn.Module):
    """Three convolutions, a projection to 64 features and a linear layer.

    Args:
        channels: Channels of the images, 1 or 3.
        classes: Number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        widths = (channels, 32, 64, 128)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.project = nn.Linear(widths[-1], FEATURES)
        self.score = nn.Linear(FEATURES, classes)

    def features(self, images: NDArray[np.uint8]) -> Tensor:
        """Compute the features, float32 [B, 64], of images uint8 [B, H, W, c]."""
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.max_pool2d(F.relu(norm(convolution(x))), 2)
        return F.relu(self.project(x.mean(dim=(2, 3))))

    def forward(self, images: NDArray[np.uint8]) -> Tensor:
        """Compute the logits, float32 [B, classes], of images uint8 [B, H, W, c]."""
        return self.score(self.features(images))


def train_classifier(dataset: ImageDataset, progress: Callable[[int, int], None]) -> Classifier:
    """Train a classifier for three epochs with AdamW and a one-cycle learning rate, always from the same seed.

    Args:
        dataset: The training images. Images that cannot be read are left out.
        progress: Is called after each training step with the steps done and the steps in total.

    Returns:
        The classifier in evaluation mode.

    Raises:
        DataError: There are fewer than 128 readable images.
    """
    torch.manual_seed(0)
    model = Classifier(dataset.channels, len(dataset.classes)).train()
    all_indices = np.arange(len(dataset.labels))
    readable = np.concatenate([indices for _, indices in readable_batches(dataset, all_indices, _BATCH)])
    steps_per_epoch = len(readable) // _BATCH
    if not steps_per_epoch:
        raise DataError(f"{len(readable)} training images are too few for a classifier; it needs at least {_BATCH}")
    steps = _EPOCHS * steps_per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    random = np.random.default_rng(0)
    for epoch in range(_EPOCHS):
        order = random.permutation(readable)
        for step in range(steps_per_epoch):
            indices = order[step * _BATCH : (step + 1) * _BATCH]
            loss = F.cross_entropy(model(dataset.images(indices)), torch.from_numpy(dataset.labels[indices]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress(epoch * steps_per_epoch + step + 1, steps)
    return model.eval()


def default_file(dataset: ImageDataset) -> pathlib.Path:
    """Return the file of the classifier of a dataset, read in one way, where no other is named."""
    digest = hashlib.sha256(dataset.fingerprint.encode()).hexdigest()
    return pathlib.Path("out") / "classifiers" / f"{digest[:16]}.safetensors"


def load_or_train_classifier(
    file: pathlib.Path, dataset: ImageDataset, progress: Callable[[int, int], None]
) -> Classifier:
    """Load the classifier of `dataset` from `file`, or train one and save it there if there is no such file.

    The other arguments are those of `train_classifier`.

    Raises:
        DataError: There are fewer than 128 readable images, or the file holds something else.
        MarError: Another process trains this classifier.
    """
    if file.exists():
        if read_metadata(file).get("dataset") != dataset.fingerprint:
            raise DataError(
                f"{file} is not the classifier of this dataset, read in this size, with this --background and "
                "--validation-share; give another --classifier, or remove the file to train a new one"
            )
        model = Classifier(dataset.channels, len(dataset.classes)).eval()
        checkpoint.load_into(model, file)
        clear_dead_lock(file)  # of a process that was killed after it had saved the classifier
        return model
    with holding(file):
        model = train_classifier(dataset, progress)
        checkpoint.save_weights(file, model.state_dict(), {"dataset": dataset.fingerprint})
    return model

"""What a network sees of real images, computed once and kept in a file that tells of what."""

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
from training.data.datasets import Dataset, readable_batches
from training.evaluation.feature_networks import FeatureNetwork, Seen, look
from training.evaluation.metrics import Moments

_BATCH = 64


def reference(
    network: FeatureNetwork, dataset: Dataset, images: int, folder: pathlib.Path, progress: Callable[[int], None]
) -> Seen:
    """What `network` sees of `images` of the dataset, taken evenly at random; kept in `folder`.

    `progress` is told of images as they are looked at. The file is used again only for the same images and the
    same weights of the network.
    """
    of = {"network": network.name, "weights": network.sha256, "dataset": dataset.fingerprint, "images": images}
    key = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
    file = folder / f"reference-{network.name}-{key[:16]}.npz"
    kept = _read(file, of)
    if kept is not None:
        progress(images)
        return kept
    chosen = np.random.default_rng(0).permutation(len(dataset.labels))[:images]
    seen = look(network, _batches(dataset, chosen, progress))
    with replacing(file) as temporary:
        np.savez(
            temporary,
            of=json.dumps(of),
            mean=seen.moments.mean,
            covariance=seen.moments.covariance,
            sample=seen.sample,
            figures=json.dumps([seen.images, seen.top1_accuracy, seen.inception_score]),
        )
    return seen


def _batches(
    dataset: Dataset, chosen: NDArray[np.int64], progress: Callable[[int], None]
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    for images, indices in readable_batches(dataset, chosen, _BATCH):
        progress(len(images))
        yield images, dataset.labels[indices]


def _read(file: pathlib.Path, of: dict[str, Any]) -> Seen | None:
    """What was kept; None if nothing was, if it is damaged, or of something else."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            if json.loads(str(kept["of"])) != of:
                return None
            images, top1_accuracy, score = json.loads(str(kept["figures"]))
            moments = Moments(kept["mean"], kept["covariance"])
            return Seen(images, moments, kept["sample"], top1_accuracy, score)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        return None

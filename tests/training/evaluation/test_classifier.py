"""The classifier of a dataset: training on data it can learn, saving and loading."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import DataError
from tests.helpers.tiny_runs import write_idx
from training.data.datasets import open_dataset
from training.evaluation.classifier import load_or_train_classifier
from training.evaluation.feature_networks import DatasetClassifier, extract_features, labelled_batches


class Stripes:
    """Images of two classes, dark with one bright half: left for class 0, right for class 1."""

    classes = ("left", "right")
    channels = 1

    def __init__(self, count: int, seed: int) -> None:
        self.labels = np.random.default_rng(seed).integers(2, size=count)
        self.fingerprint = f"{count} stripes of seed {seed}"
        self.warnings: list[str] = []

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        stripes = np.zeros((len(indices), 16, 16, 1), np.uint8)
        for stripe, label in zip(stripes, self.labels[indices], strict=True):
            stripe[:, 8 * label : 8 * label + 8] = 200
        return stripes


def test_a_classifier_is_trained_once_and_then_loaded(tmp_path: pathlib.Path) -> None:
    train, test, file = Stripes(2560, seed=0), Stripes(200, seed=1), tmp_path / "classifier.safetensors"
    progress: list[int] = []
    first = DatasetClassifier.load_or_train(file, train, lambda done, total: progress.append(done))
    steps = len(progress)
    second = DatasetClassifier.load_or_train(file, train, lambda done, total: progress.append(done))
    assert steps == 3 * 20
    assert len(progress) == steps  # the second call trains nothing
    [(images, labels)] = labelled_batches(test, np.arange(200))
    statistics = [extract_features(network, [(images, labels)]) for network in (first, second)]
    assert statistics[0].top1_accuracy == 1.0
    assert (statistics[0].sample == statistics[1].sample).all()
    assert extract_features(first, [(images, 1 - labels)]).top1_accuracy == 0.0


@pytest.mark.parametrize("other", [Stripes(256, seed=1), Stripes(384, seed=0)])
def test_a_classifier_of_other_data_is_refused_and_stays(tmp_path: pathlib.Path, other: Stripes) -> None:
    file = tmp_path / "classifier.safetensors"
    load_or_train_classifier(file, Stripes(256, seed=0), lambda done, total: None)
    before = file.read_bytes()
    with pytest.raises(DataError, match="is not the classifier of this dataset"):
        load_or_train_classifier(file, other, lambda done, total: None)
    assert file.read_bytes() == before


def test_each_dataset_has_a_classifier_of_its_own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    datasets = [Stripes(256, seed=seed) for seed in (0, 1)]
    first = [DatasetClassifier.load_or_train(None, dataset).sha256 for dataset in datasets]
    assert len(list((tmp_path / "out" / "classifiers").iterdir())) == 2
    assert first == [DatasetClassifier.load_or_train(None, dataset).sha256 for dataset in datasets]


def test_weights_of_something_else_are_not_replaced(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"mine")
    with pytest.raises(DataError, match="is not the classifier of this dataset"):
        load_or_train_classifier(file, Stripes(256, seed=0), lambda done, total: None)
    assert file.read_bytes() == b"mine"


def test_a_classifier_is_of_other_data_when_only_the_last_image_has_changed(tmp_path: pathlib.Path) -> None:
    train, file, steps = Stripes(256, seed=0), tmp_path / "classifier.safetensors", list[int]()
    pixels = train.images(np.arange(256))[..., 0]
    for _ in range(2):
        write_idx(tmp_path / "train-images-idx3-ubyte", pixels)
        write_idx(tmp_path / "train-labels-idx1-ubyte", train.labels.astype(np.uint8))
        if steps:
            with pytest.raises(DataError, match="is not the classifier of this dataset"):
                load_or_train_classifier(file, open_dataset(tmp_path, 16), lambda done, total: None)
        else:
            load_or_train_classifier(file, open_dataset(tmp_path, 16), lambda done, total: steps.append(done))
        pixels[-1] = 255 - pixels[-1]


def test_too_few_images_for_a_classifier_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="100 training images are too few"):
        load_or_train_classifier(tmp_path / "c.safetensors", Stripes(100, seed=0), lambda done, total: None)

"""How images are judged: the distance against its closed form, the classifier against data it can learn."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import DataError
from tests.helpers.tiny_runs import one_thread, write_idx
from training.data.datasets import open_dataset
from training.evaluation import classifier as quality
from training.evaluation.classifier import frechet_distance, judge, load_or_train_classifier


class Stripes:
    """Images of two classes, dark with one bright half: left for class 0, right for class 1."""

    classes = ("left", "right")
    channels = 1

    def __init__(self, count: int, seed: int) -> None:
        self.labels = np.random.default_rng(seed).integers(2, size=count)
        self.fingerprint = f"{count} stripes of seed {seed}"

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        stripes = np.zeros((len(indices), 16, 16, 1), np.uint8)
        for stripe, label in zip(stripes, self.labels[indices], strict=True):
            stripe[:, 8 * label : 8 * label + 8] = 200
        return stripes


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_the_distance_of_gaussians_is_its_closed_form(shift: float) -> None:
    """For commuting covariances it is |shift|^2 + the squared distance of the standard deviations."""
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.standard_normal((4, 4)))[0]
    one, other = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 2.0, 1.5, 0.1])
    # Whitened, so that mean and covariance are exact and not estimates.
    sample = random.standard_normal((500, 4))
    sample -= sample.mean(axis=0)
    sample = sample @ np.linalg.inv(np.linalg.cholesky(np.cov(sample, rowvar=False))).T
    found = frechet_distance(sample * one @ basis.T, sample * other @ basis.T + shift * basis[:, 0])
    assert found == pytest.approx(shift**2 + np.square(one - other).sum(), rel=1e-9)


def test_a_set_has_no_distance_from_itself_and_the_same_either_way() -> None:
    random = np.random.default_rng(1)
    a, b = random.standard_normal((100, 8)), random.standard_normal((80, 8)) @ random.standard_normal((8, 8))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, b) > 0.1


def test_a_classifier_is_trained_once_and_read_back(tmp_path: pathlib.Path) -> None:
    train, test, file = Stripes(2560, seed=0), Stripes(200, seed=1), tmp_path / "classifier.safetensors"
    seen: list[int] = []
    first = load_or_train_classifier(file, train, lambda done, of: seen.append(done))
    steps = len(seen)
    again = load_or_train_classifier(file, train, lambda done, of: seen.append(done))
    assert steps == 3 * 20
    assert len(seen) == steps  # the second time nothing was trained
    judged = [judge(model, quality.batches(test, 200), test.labels) for model in (first, again)]
    assert judged[0].top1_accuracy == 1.0
    assert (judged[0].features == judged[1].features).all()
    swapped = judge(first, quality.batches(test, 200), 1 - test.labels)
    assert swapped.top1_accuracy == 0.0


@pytest.mark.parametrize("other", [Stripes(256, seed=1), Stripes(384, seed=0)])
def test_a_classifier_of_other_data_is_trained_anew(tmp_path: pathlib.Path, other: Stripes) -> None:
    file, seen = tmp_path / "classifier.safetensors", list[int]()
    load_or_train_classifier(file, Stripes(256, seed=0), lambda done, of: None)
    load_or_train_classifier(file, other, lambda done, of: seen.append(done))
    assert seen


def test_a_classifier_is_trained_anew_when_only_the_last_image_has_changed(tmp_path: pathlib.Path) -> None:
    train, file, seen = Stripes(256, seed=0), tmp_path / "classifier.safetensors", list[int]()
    pixels = train.images(np.arange(256))[..., 0]
    for _ in range(2):
        write_idx(tmp_path / "train-images-idx3-ubyte", pixels)
        write_idx(tmp_path / "train-labels-idx1-ubyte", train.labels.astype(np.uint8))
        seen.clear()
        load_or_train_classifier(file, open_dataset(tmp_path, 16), lambda done, of: seen.append(done))
        assert seen
        pixels[-1] = 255 - pixels[-1]


def test_too_few_images_for_a_classifier_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(DataError, match="100 training images are too few"):
        load_or_train_classifier(tmp_path / "c.safetensors", Stripes(100, seed=0), lambda done, of: None)

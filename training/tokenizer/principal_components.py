"""The linear autoencoder of patches with the least squared error, from which an autoencoder with a linear path trains.

It keeps the first principal components of the patches of training images, after PCA.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.model.latents import from_uint8
from training.data.datasets import ImageDataset, readable_batches
from training.models.autoencoder import VAEConfig

_IMAGES = 4096  # more do not change the components that are kept
_BATCH = 64
_LOG_VARIANCE = 2 * float(np.log(0.1))  # of latents whose mean variance is 1
_LEAST_DEVIATION = 1e-3  # of a component, in pixel values of -1..1: data without variation have components of none


@torch.no_grad()
def principal_components(config: VAEConfig, dataset: ImageDataset) -> dict[str, Tensor]:
    """Compute the weights of the linear path of an autoencoder.

    A latent is a component divided by the square root of its standard deviation, times one factor for all that brings
    the mean variance to 1. So its channels differ in variance, but less than the components do: those with little
    variance are neither lost in the noise of a model nor as important to it as the others.

    Args:
        config: The shape of the autoencoder.
        dataset: The training images, in RGB.

    Returns:
        The parameters of `AutoencoderKL.linear` by their names in the autoencoder.
    """
    mean, covariance = _moments(config.stride, dataset)
    variances, vectors = torch.linalg.eigh(covariance)  # in ascending order
    components = vectors.flip(1)[:, : config.latent_channels].T  # [C, 3 s s]
    deviations = variances.flip(0)[: config.latent_channels].clamp_min(_LEAST_DEVIATION**2).sqrt()
    factors = (deviations * deviations.mean()).rsqrt()[:, None]  # [C, 1]
    to_mean = factors * components
    weights = {
        "encode.1.weight": torch.cat([to_mean, torch.zeros_like(to_mean)])[..., None, None],
        "encode.1.bias": torch.cat([-to_mean @ mean, torch.full_like(deviations, _LOG_VARIANCE)]),
        "decode.0.weight": (components / factors).T[..., None, None],
        "decode.0.bias": mean,
    }
    return {f"linear.{name}": weight.float().contiguous() for name, weight in weights.items()}


def _moments(stride: int, dataset: ImageDataset) -> tuple[Tensor, Tensor]:
    """Compute mean [3 s s] and covariance [3 s s, 3 s s] of the patches of some images, in -1..1, as float64."""
    chosen = np.random.default_rng(0).permutation(len(dataset.labels))[:_IMAGES]
    total, products, count = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), 0
    for images, _ in readable_batches(dataset, chosen, _BATCH):
        patches = F.pixel_unshuffle(torch.from_numpy(from_uint8(images)), stride).permute(0, 2, 3, 1).flatten(0, 2)
        total, products = total + patches.double().sum(dim=0), products + (patches.T @ patches).double()
        count += len(patches)
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)

"""The discriminator of a tokenizer's training (PatchGAN, arXiv 1611.07004) and its losses."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 8


class PatchDiscriminator(nn.Module):
    """A convolutional network that scores every patch of an image as real or reconstructed.

    It is the discriminator of VQGAN (arXiv 2012.09841) with group norms in place of batch norms. The score of an image
    therefore does not depend on the other images of the batch, nor on how a batch is split over processes.

    Args:
        width: Channels of the first layer, a multiple of 8; they double with each layer, up to eight times `width`.
        layers: How many times the size of the image is halved.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        widths = [width * min(2**layer, 8) for layer in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for number, (before, after) in enumerate(itertools.pairwise(widths), start=1):
            stride = 1 if number == layers else 2
            parts += [nn.Conv2d(before, after, 4, stride, padding=1, bias=False), nn.GroupNorm(_GROUPS, after)]
            parts.append(nn.LeakyReLU(0.2))
        self.parts = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for part in self.parts:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the scores [B, 1, h, w] of images [B, 3, H, W] in -1..1; a large score means real."""
        return self.parts(images)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Compute the discriminator's hinge loss [] from its scores of real and reconstructed images (arXiv 1705.02894)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """Compute the weight of the adversarial loss (arXiv 2012.09841, equation 7): the ratio of two gradient norms.

    Args:
        reconstruction: The gradient of the reconstruction loss with respect to the decoder's last weights.
        adversarial: The gradient of the adversarial loss with respect to the same weights.

    Returns:
        The weight [], in 0..10000, without a gradient.
    """
    weight: Tensor = reconstruction.norm() / (adversarial.norm() + 1e-4)
    return torch.clamp(weight, 0, 1e4).detach()

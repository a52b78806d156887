"""The discriminator that a tokenizer is trained against: real or not, patch by patch (PatchGAN, arXiv 1611.07004)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 8


class PatchDiscriminator(nn.Module):
    """Images [B, 3, H, W] of -1..1 -> a score for each patch, [B, 1, h, w]: large for real ones.

    As in VQGAN (arXiv 2012.09841) but for group norms in place of batch norms, so that the score of an image does
    not depend on those beside it, nor on how a batch is spread over processes.
    """

    def __init__(self, width: int, layers: int) -> None:
        """`layers` times the image is halved, the channels doubling from `width` up to eight times as many."""
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
        return self.parts(images)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of its scores (arXiv 1705.02894), []."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """By what the adversarial loss is multiplied: |d reconstruction| / |d adversarial|, their gradients with respect to
    the decoder's last weights (arXiv 2012.09841, equation 7). []"""
    weight: Tensor = reconstruction.norm() / (adversarial.norm() + 1e-4)
    return torch.clamp(weight, 0, 1e4).detach()

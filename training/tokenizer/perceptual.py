"""How different two images look: distances between the maps of a network that was trained to see.

As in LPIPS (arXiv 1801.03924) without its learned weights: the maps are brought to unit length at every place, their
squared differences summed over channels and averaged over places and layers.
"""

from __future__ import annotations

import pathlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import CheckpointError
from training.checkpoints.tensor_files import read_pickle, read_safetensors
from training.evaluation.efficientnet import EfficientNetLite0, load_efficientnet
from training.evaluation.feature_networks import EFFICIENTNET

NONE = "none"

# The convolutions of VGG16 (arXiv 1409.1556), by their place among torchvision's layers; each line ends in a map that
# LPIPS compares, and in front of each but the first the map is halved.
_VGG16 = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's models take images


class Perceptual(nn.Module):
    """The distance of images [B, 3, H, W] of -1..1 by a network with frozen weights: [B]."""

    def __init__(self, network: EfficientNetLite0 | VGG16) -> None:
        super().__init__()
        self.network = network
        self.network.eval().requires_grad_(False)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        layers = zip(self.network.stages(one), self.network.stages(other), strict=True)
        return torch.stack([_difference(a, b) for a, b in layers]).mean(dim=0)

    def train(self, mode: bool = True) -> Perceptual:
        """Never: the statistics of its norms are those of its training."""
        return self


class VGG16(nn.Module):
    """The convolutions of torchvision's VGG16, from its weights at `file`. Raises `CheckpointError`."""

    def __init__(self, file: pathlib.Path) -> None:
        super().__init__()
        weights = read_safetensors(file) if file.suffix == ".safetensors" else read_pickle(file)
        try:
            self.groups = nn.ModuleList(
                nn.ModuleList(_filled(weights[f"features.{n}.weight"], weights[f"features.{n}.bias"]) for n in group)
                for group in _VGG16
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{file}: not the weights of torchvision's VGG16 ({error})") from None
        for name, values in (("mean", _MEAN), ("spread", _SPREAD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Five maps [B, C, h, w] of images [B, 3, H, W], sides of at least 16."""
        x = ((images + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("spread")
        maps: list[Tensor] = []
        for group in self.groups:
            x = F.max_pool2d(x, 2) if maps else x
            for convolution in group:  # type: ignore[attr-defined]
                x = F.relu(convolution(x))
            maps.append(x)
        return maps


def open_perceptual(name: str) -> Perceptual | None:
    """The distance called `name`: `none`, `efficientnet-lite0`, or by a VGG16 whose weights are at that path.

    Raises `BackendError`, `CheckpointError`.
    """
    if name == NONE:
        return None
    return Perceptual(load_efficientnet() if name == EFFICIENTNET else VGG16(pathlib.Path(name)))


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Maps [B, C, h, w] -> [B]."""
    return (F.normalize(a, dim=1, eps=1e-6) - F.normalize(b, dim=1, eps=1e-6)).square().sum(dim=1).mean(dim=(1, 2))


def _filled(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
    convolution.load_state_dict({"weight": weight, "bias": bias})
    return convolution

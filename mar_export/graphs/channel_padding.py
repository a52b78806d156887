"""Padding of inner channels with zeros, so that their number suits the cache of a processor.

A matrix product reads a dozen rows of its input together. If the distance of two rows is a multiple of 4096 bytes, all
of them map to one set of the L1 cache, which holds eight or twelve lines, and every read misses. ONNX Runtime's float32
product then reaches two thirds of its speed (docs/benchmarks/history/cpu-notes.md). Inner widths of 1,024, 3,072 or
4,096 channels are such multiples. A few more channels, whose weights are zero on both sides, avoid this and change no
result.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from training.checkpoints.mapped_weights import release

PERIOD = 1024
"""Floats between two addresses of the same cache set."""

_PADDING = 64  # keeps the width divisible by 64, for which TensorRT has fast kernels


def padding_channels(width: int) -> int:
    """Return the number of zero channels to add to an inner width: 0 where the width needs none."""
    return 0 if width % PERIOD else _PADDING


def pad_layers(first: nn.Linear, second: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    """Return copies of two layers with padded channels between them; the originals are not changed.

    Their activation must map zero to zero, so that the added channels stay zero.
    """
    padding = padding_channels(first.out_features)
    return pad_outputs(first, padding), pad_inputs(second, padding)


def pad_outputs(layer: nn.Linear, padding: int) -> nn.Linear:
    """Return a layer with `padding` more outputs, which are always zero; the layer itself for no padding."""
    return linear(_padded(layer.weight, (0, 0, 0, padding)), F.pad(layer.bias, (0, padding))) if padding else layer


def pad_inputs(layer: nn.Linear, padding: int) -> nn.Linear:
    """Return a layer with `padding` more inputs, which it ignores; the layer itself for no padding."""
    return linear(_padded(layer.weight, (0, padding)), layer.bias) if padding else layer


def _padded(weight: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Return a weight with padding; the weight itself need not stay in memory."""
    padded = F.pad(weight, padding)
    release([weight])
    return padded


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Return a linear layer that shares its weights [outputs, inputs], and its bias if there is one, without a copy."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer

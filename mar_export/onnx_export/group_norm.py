"""Group normalization as a graph of means that are exact for images of any size."""

from __future__ import annotations

from typing import Any

from onnxscript import opset20 as op


def group_norm(x: Any, groups: int, weight: Any, bias: Any, eps: float, cudnn_enabled: bool = True) -> Any:
    """Build the nodes of `torch.nn.functional.group_norm` for a batch of images [B, C, H, W] in float32.

    A mean is taken over rows, then columns, then the channels of a group. The exporter's InstanceNormalization loses
    digits with the number of values in ONNX Runtime: its error is 1e-5 for a million and 8e-5 for four million (1.31.1,
    x86-64). In stages it is 2e-7, in OpenVINO too.

    Args:
        x: The images, [B, C, H, W].
        groups: The groups of channels.
        weight: The factor of each channel, [C].
        bias: The offset of each channel, [C].
        eps: What is added to the variance.
        cudnn_enabled: Without meaning here; it is part of PyTorch's signature.

    Returns:
        The normalized images, [B, C, H, W].
    """
    del cudnn_enabled
    channels = weight.shape[0]
    centred = x - _group_mean(x, groups, channels)
    variance = _group_mean(centred * centred, groups, channels)
    raised = variance + op.Constant(value_float=eps)
    scale = _per_channel(weight) * (op.Sqrt(raised) / raised)  # NaN after an overflow, where 1 / sqrt would be 0
    return centred * scale + _per_channel(bias)


def _group_mean(x: Any, groups: int, channels: int) -> Any:
    """Return the mean of each group, [B, C, 1, 1], the same for all channels of a group."""
    columns = op.ReduceMean(x, _integers(3), keepdims=0)  # OpenVINO joins two means that both keep their dimensions
    means = op.ReduceMean(columns, _integers(2), keepdims=1)  # [B, C, 1]
    members = op.Reshape(means, _integers(0, groups, channels // groups))
    mean = op.ReduceMean(members, _integers(2), keepdims=1)  # [B, G, 1]
    spread = op.Expand(mean, _integers(1, 1, channels // groups))
    return op.Reshape(spread, _integers(0, channels, 1, 1))


def _per_channel(values: Any) -> Any:
    return op.Unsqueeze(values, _integers(1, 2))


def _integers(*values: int) -> Any:
    return op.Constant(value_ints=values)

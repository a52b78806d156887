"""The parameters of diffusers' `AutoencoderKL` under the names of the published autoencoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from runtime.errors import CheckpointError
from training.models.autoencoder import NORM_GROUPS

# The activation changes what is computed, but no shape: these are what is computed here.
_ACTIVATIONS = ("silu", "swish")

_RENAMED = (
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.down_blocks\.", ".down."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.downsamplers\.0\.", ".downsample."),
    (r"\.upsamplers\.0\.", ".upsample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(to_q|query)\.", ".q."),
    (r"\.(to_k|key)\.", ".k."),
    (r"\.(to_v|value)\.", ".v."),
    (r"\.(to_out\.0|proj_attn)\.", ".proj_out."),
)
_ATTENTION = re.compile(r"\.attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight$")
_UP = re.compile(r"\.up_blocks\.(\d+)\.")


def with_published_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with the names of the published autoencoder; those that have them already stay as they are."""
    levels = 1 + max((int(match[1]) for name in weights if (match := _UP.search(name))), default=0)
    renamed = {}
    for name, tensor in weights.items():
        new = _UP.sub(lambda match: f".up.{levels - 1 - int(match[1])}.", name)  # diffusers counts from the coarsest
        for pattern, replacement in _RENAMED:
            new = re.sub(pattern, replacement, new)
        is_matrix = _ATTENTION.search(new) is not None and tensor.dim() == 2
        renamed[new] = tensor[..., None, None] if is_matrix else tensor
    return renamed


def with_quantization_convolutions(
    weights: Mapping[str, Tensor], config: Mapping[str, Any] | None
) -> dict[str, Tensor]:
    """Return weights with identities for the convolutions beside the latents that the autoencoder is without.

    Args:
        weights: The weights under published names.
        config: The config of diffusers, which says whether there are such convolutions; None where there is no config.
    """
    completed = dict(weights)
    for name, neighbor, axis in (("quant_conv", "encoder.conv_out", 0), ("post_quant_conv", "decoder.conv_in", 1)):
        may_be_without = config is None or config.get(f"use_{name}") is False
        shape = weights[f"{neighbor}.weight"].shape if f"{neighbor}.weight" in weights else ()
        if may_be_without and len(shape) > axis and not any(each.startswith(f"{name}.") for each in weights):
            completed[f"{name}.weight"] = torch.eye(shape[axis])[..., None, None]
            completed[f"{name}.bias"] = torch.zeros(shape[axis])
    return completed


def read_norm_groups(config: Mapping[str, Any], where: str) -> int:
    """Return the groups of the normalizations in a config of diffusers, after checking its activation.

    Raises:
        CheckpointError: The groups are no positive whole number, or the activation is not the published one.
    """
    groups, activation = config.get("norm_num_groups", NORM_GROUPS), config.get("act_fn", _ACTIVATIONS[0])
    if type(groups) is not int or groups < 1:
        raise CheckpointError(f"{where}: norm_num_groups must be a positive whole number, found {groups!r}")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"{where}: act_fn must be {' or '.join(_ACTIVATIONS)}, found {activation!r}")
    return groups

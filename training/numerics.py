"""In which precision a training step computes, and with which kernels.

Under bf16 autocast matrix products are of bfloat16; sums, normalisations, the loss and, by default, attention
stay float32: logits of attention and the exponentials of the variational bound are where training with the
published code has been seen to overflow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from training.model import MAR, Attention, ScaledDotProduct


class AttentionInFloat32(ScaledDotProduct):
    """Attention that is computed in float32 under autocast too."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            return super().forward(q.float(), k.float(), v.float())


def attend_in_float32(model: MAR) -> None:
    """Change `model` so that all of its attention is float32, whatever else autocast does."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = AttentionInFloat32(module.attend.dropout)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """For the forward pass of a model; `precision` is `bf16` or `fp32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def training_kernels(device: torch.device) -> Iterator[None]:
    # On a CPU, PyTorch's fused attention is several times slower backward than plain matrix products.
    with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext():
        yield

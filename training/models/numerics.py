"""In which precision a training step computes, and by which operators.

Under bf16 autocast matrix products are of bfloat16; sums, normalisations, the loss and, by default, attention
stay float32: logits of attention and the exponentials of the variational bound are where training with the
published code has been seen to overflow.

On a CPU, PyTorch's fused attention is several times slower backward than plain matrix products, its softmax looks
for masks that are not there, and its dropout draws one number at a time, a tenth of a step. So there, attention
and dropout are written out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.models.mar import MAR
from training.models.transformer import Attention, FeedForward, ScaledDotProduct, seen

_LEVELS = 2**16  # of the random numbers of `PackedDropout`


class AttentionInFloat32(nn.Module):
    """Attention of each head as `attend` computes it, in float32 under autocast too."""

    def __init__(self, attend: nn.Module) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            return self.attend(q.float(), k.float(), v.float())


class PlainAttention(nn.Module):
    """`ScaledDotProduct` by two matrix products and a softmax."""

    def __init__(self, dropout: float, causal: bool = False) -> None:
        super().__init__()
        self.drop, self.causal = PackedDropout(dropout), causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, H, K, S]
        if self.causal:
            logits = logits.where(seen(logits.shape[-2], logits.shape[-1], logits.device), -torch.inf)
        return self.drop.kept(logits.softmax(dim=-1)) @ (v * self.drop.scale)


class PackedDropout(nn.Module):
    """Dropout that takes four decisions from one random word of 64 bits; its rate is `rate` to 1 in 65,536."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.dropped = round(rate * _LEVELS)

    @property
    def scale(self) -> float:
        """What is kept is multiplied by this, so that the mean stays."""
        return _LEVELS / (_LEVELS - self.dropped) if self.training else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.kept(x) * self.scale if self.training and self.dropped else x

    def kept(self, x: Tensor) -> Tensor:
        """x with zeros where it is dropped, not scaled yet."""
        if not self.training or not self.dropped:
            return x
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        drawn = words.view(torch.int16)[: x.numel()].view(x.shape)  # -32768..32767
        # Written as numbers: to multiply by a mask of another type, PyTorch converts it first, and again backward.
        kept = torch.ge(drawn, self.dropped - _LEVELS // 2, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))
        return x * kept


def choose_operators(model: MAR, attention: str, device: torch.device) -> None:
    """Change `model` so that it trains fast on `device`, with attention in `attention`: `fp32` or `bf16`."""
    for module in model.modules():
        if device.type == "cpu" and isinstance(module, Attention | FeedForward):
            _write_out(module)
        if attention == "fp32" and isinstance(module, Attention):
            module.attend = AttentionInFloat32(module.attend)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """For the forward pass of a model; `precision` is `bf16` or `fp32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def _write_out(module: Attention | FeedForward) -> None:
    """Put what is above in place of PyTorch's dropout and attention."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Dropout):
            setattr(module, name, PackedDropout(child.p))
        elif isinstance(child, ScaledDotProduct):
            setattr(module, name, PlainAttention(child.dropout, child.causal))

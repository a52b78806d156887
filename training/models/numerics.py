"""The precision and the operators of a training step.

Products are in bf16 by default where the device has instructions for it. Elsewhere bf16 is emulated: on a processor
with AVX2 alone, a convolution takes 40 times as long as in float32.

Under bf16 autocast, matrix products are computed in bfloat16. Sums, normalizations, the loss and, by default, attention
stay in float32: the logits of attention and the exponentials of the variational bound overflow in training with the
published code.

On a CPU, the backward pass of PyTorch's fused attention is several times slower than that of matrix products, and its
dropout draws one number at a time, which takes a tenth of a step. There, attention and dropout are replaced by modules
of this file. The head's normalizations are too: autocast converts their input to float32 and back, and a step of a
small model is limited by the memory that such copies read and write.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.provenance import processor_features
from training.models.diffusion_head import FinalLayer, ResidualBlock
from training.models.mar import MAR
from training.models.nova import Attention as NovaAttention
from training.models.transformer import Attention, FeedForward, ScaledDotProduct, causal_mask

_REPLACED = (Attention, NovaAttention, FeedForward, ResidualBlock, FinalLayer)

_BF16_PRODUCTS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # of x86, x86 and ARM

_LEVELS = 2**16  # the number of values that a random number of `PackedDropout` can have


class AttentionInFloat32(nn.Module):
    """The attention module `attend`, computed in float32 even under autocast."""

    def __init__(self, attend: nn.Module) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return [B, H, K, E/H] for queries [B, H, K, E/H], keys and values [B, H, S, E/H]."""
        with torch.autocast(q.device.type, enabled=False):
            return self.attend(q.float(), k.float(), v.float())


class MatmulAttention(nn.Module):
    """`ScaledDotProduct` as two matrix products and a softmax."""

    def __init__(self, dropout: float, causal: bool = False) -> None:
        super().__init__()
        self.drop, self.causal = PackedDropout(dropout), causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return [B, H, K, E/H] for queries [B, H, K, E/H], keys and values [B, H, S, E/H]."""
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [B, H, K, S]
        if self.causal:
            logits = logits.where(causal_mask(logits.shape[-2], logits.shape[-1], logits.device), -torch.inf)
        return self.drop.kept(logits.softmax(dim=-1)) @ (v * self.drop.scale)


class PackedDropout(nn.Module):
    """Dropout that takes four decisions from one random number of 64 bits; its rate is rounded to 1/65,536."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.dropped = round(rate * _LEVELS)

    @property
    def scale(self) -> float:
        """The factor of the values that are kept, which preserves the mean: 1 / (1 - rate) in training, else 1."""
        return _LEVELS / (_LEVELS - self.dropped) if self.training else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return x with dropout, of the same shape and dtype."""
        return self.kept(x) * self.scale if self.training and self.dropped else x

    def kept(self, x: Tensor) -> Tensor:
        """Return x with zeros where values are dropped; the values that are kept are not scaled."""
        if not self.training or not self.dropped:
            return x
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        numbers = words.view(torch.int16)[: x.numel()].view(x.shape)  # -32768..32767
        # As numbers of x's own dtype: a boolean mask would be converted here and again in the backward pass.
        kept = torch.ge(numbers, self.dropped - _LEVELS // 2, out=torch.empty(x.shape, dtype=x.dtype, device=x.device))
        return x * kept


class LayerNormOfInput(nn.LayerNorm):
    """Layer normalization in the dtype of its input, also under autocast; its sums are in float32 all the same.

    PyTorch has it for float32 parameters and inputs in bfloat16 on CPUs alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for x [..., E], of its shape and dtype."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


def choose_operators(model: MAR, attention: str, device: torch.device) -> None:
    """Replace modules of `model` so that it trains fast on a device.

    Args:
        model: The model to change.
        attention: The precision of attention under autocast, `fp32` or `bf16`.
        device: Where the model is trained.
    """
    for module in model.modules():
        if device.type == "cpu" and isinstance(module, _REPLACED):
            _replace_operators(module)
        if attention == "fp32" and isinstance(module, Attention | NovaAttention):
            module.attend = AttentionInFloat32(module.attend)


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether a device, a CPU or a GPU, has instructions for products of bf16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return not _BF16_PRODUCTS.isdisjoint(processor_features())


def autocast(precision: str | None, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass in a precision, `bf16` or `fp32`. None: as `multiplies_bf16` says."""
    bf16 = multiplies_bf16(device) if precision is None else precision == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def _replace_operators(module: nn.Module) -> None:
    """Replace PyTorch's dropout, attention and layer normalization by the modules of this file."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Dropout):
            setattr(module, name, PackedDropout(child.p))
        elif isinstance(child, ScaledDotProduct):
            setattr(module, name, MatmulAttention(child.dropout, child.causal))
        elif isinstance(child, nn.LayerNorm):
            own = LayerNormOfInput(child.normalized_shape, child.eps, child.elementwise_affine)
            own.weight, own.bias = child.weight, child.bias
            setattr(module, name, own)

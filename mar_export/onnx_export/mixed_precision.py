"""Lower precision, written into the graph: weights and matrix products in fp16 or bf16, all else in float32.

TensorRT 11 takes types from the graph only, and the same graph then serves every backend. What is kept:
normalisation, softmax, biases, residuals, and the layers that `runtime.model.low_precision` names.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.model.low_precision import stays_in_float32
from training.models.transformer import ScaledDotProduct, causal_mask

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # by FLOAT_PRECISIONS


class Product(nn.Module):
    """A product of two tensors in `dtype`, from and to float32: every place where precision is lowered."""

    def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.multiply, self.dtype = multiply, dtype

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.multiply(a.to(self.dtype), b.to(self.dtype)).float()


def lowered(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`module` with its products in `dtype`. Float32 gives the same products, at the same places, unrounded.

    Weights in float32 stay those of `module`; it is not changed.
    """

    def lower(part: nn.Module, path: str) -> nn.Module | None:
        if stays_in_float32(path):
            return part
        if isinstance(part, nn.Linear):
            return _Linear(part, dtype)
        if isinstance(part, nn.Conv2d):
            return _Conv(part, dtype)
        return _attention_in_products(part, dtype)

    return _replaced(module, "", lower)


def attention_in_products(module: nn.Module) -> nn.Module:
    """`module` in float32, its attention in two products as every backend fuses them; it is not changed."""
    return _replaced(module, "", lambda part, path: _attention_in_products(part, torch.float32))


def products(module: nn.Module) -> Iterator[tuple[str, Product]]:
    """Every product of a lowered module, with the name of its layer."""
    for name, part in module.named_modules():
        if isinstance(part, Product):
            yield name.removesuffix(".product"), part


def _attention_in_products(part: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    return _ScaledDotProduct(dtype, part.causal) if isinstance(part, ScaledDotProduct) else None


def _replaced(module: nn.Module, path: str, replace: Callable[[nn.Module, str], nn.Module | None]) -> nn.Module:
    """A copy of `module` with what `replace` has something else for; weights stay those of `module`."""
    instead = replace(module, path)
    if instead is not None:
        return instead
    changed = copy.copy(module)
    changed._modules = {
        name: child and _replaced(child, f"{path}.{name}", replace) for name, child in module._modules.items()
    }
    return changed


class _Linear(nn.Module):
    """A `Linear` whose bias is added in float32."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = _constant(layer.weight, dtype), layer.bias
        self.product = Product(F.linear, dtype)

    def forward(self, x: Tensor) -> Tensor:
        product = self.product(x, self.weight)
        return product if self.bias is None else product + self.bias


class _Conv(nn.Module):
    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        assert layer.bias is not None
        self.weight, self.bias = _constant(layer.weight, dtype), _constant(layer.bias[:, None, None], torch.float32)
        self.product = Product(functools.partial(F.conv2d, stride=layer.stride, padding=layer.padding), dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight) + self.bias


class _ScaledDotProduct(nn.Module):
    """Attention whose softmax stays in float32."""

    def __init__(self, dtype: torch.dtype, causal: bool) -> None:
        super().__init__()
        self.scores, self.mixture, self.causal = Product(torch.matmul, dtype), Product(torch.matmul, dtype), causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.scores(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))  # [..., K, S]
        if self.causal:
            scores = scores.where(causal_mask(scores.shape[-2], scores.shape[-1], scores.device), -torch.inf)
        return self.mixture(scores.softmax(dim=-1), v)


def _constant(tensor: Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(tensor.detach().to(dtype), requires_grad=False)

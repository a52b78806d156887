"""Mixed precision as part of the graph: weights and matrix products in fp16 or bf16, everything else in float32.

TensorRT 11 takes the types from the graph only, and the same graph then serves every backend. Normalization, softmax,
biases, residuals and the layers that `runtime.model.low_precision` names stay in float32.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.model.low_precision import stays_in_float32
from training.checkpoints.mapped_weights import release
from training.models.transformer import ScaledDotProduct, causal_mask

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The type of each of `runtime.artifact.manifest.FLOAT_PRECISIONS`."""


class Product(nn.Module):
    """A product of two float32 tensors that is computed in `dtype` and returned in float32."""

    def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.multiply, self.dtype = multiply, dtype

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply two float32 tensors; the result is float32."""
        return self.multiply(a.to(self.dtype), b.to(self.dtype)).float()


def to_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a module with its matrix products in `dtype`; float32 weights are shared with the original.

    With float32, the products are at the same places, so that their values can be observed, but are not rounded.
    """

    def convert(part: nn.Module, path: str) -> nn.Module | None:
        if stays_in_float32(path):
            return part
        if isinstance(part, nn.Linear):
            return _Linear(part, dtype)
        if isinstance(part, nn.Conv2d):
            return _Conv(part, dtype)
        return _attention_in_products(part, dtype)

    return _replace_modules(module, "", convert)


def attention_in_products(module: nn.Module) -> nn.Module:
    """Return a copy of a module with attention as two explicit float32 products, which every backend fuses."""
    return _replace_modules(module, "", lambda part, path: _attention_in_products(part, torch.float32))


def products(module: nn.Module) -> Iterator[tuple[str, Product]]:
    """Yield every product of a module that `to_precision` returned, with the name of its layer."""
    for name, part in module.named_modules():
        if isinstance(part, Product):
            yield name.removesuffix(".product"), part


def _attention_in_products(part: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    return _ScaledDotProduct(dtype, part.causal) if isinstance(part, ScaledDotProduct) else None


def _replace_modules(module: nn.Module, path: str, replace: Callable[[nn.Module, str], nn.Module | None]) -> nn.Module:
    """Return a copy of a module in which `replace` chooses replacements of submodules; weights are shared."""
    replacement = replace(module, path)
    if replacement is not None:
        return replacement
    changed = copy.copy(module)
    changed._modules = {
        name: child and _replace_modules(child, f"{path}.{name}", replace) for name, child in module._modules.items()
    }
    return changed


class _Linear(nn.Module):
    """A linear layer with its product in `dtype`; its bias is added in float32."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight, self.bias = _constant(layer.weight, dtype), layer.bias
        self.product = Product(F.linear, dtype)

    def forward(self, x: Tensor) -> Tensor:
        product = self.product(x, self.weight)
        return product if self.bias is None else product + self.bias


class _Conv(nn.Module):
    """A convolution with its products in `dtype`; its bias is added in float32."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        assert layer.bias is not None
        self.weight, self.bias = _constant(layer.weight, dtype), _constant(layer.bias[:, None, None], torch.float32)
        self.product = Product(functools.partial(F.conv2d, stride=layer.stride, padding=layer.padding), dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight) + self.bias


class _ScaledDotProduct(nn.Module):
    """Attention with its two products in `dtype` and its softmax in float32."""

    def __init__(self, dtype: torch.dtype, causal: bool) -> None:
        super().__init__()
        self.scores, self.mixture, self.causal = Product(torch.matmul, dtype), Product(torch.matmul, dtype), causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.scores(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))  # [..., K, S]
        if self.causal:
            scores = scores.where(causal_mask(scores.shape[-2], scores.shape[-1], scores.device), -torch.inf)
        return self.mixture(scores.softmax(dim=-1), v)


def _constant(tensor: Tensor, dtype: torch.dtype) -> nn.Parameter:
    constant = nn.Parameter(tensor.detach().to(dtype), requires_grad=False)
    release([tensor])
    return constant

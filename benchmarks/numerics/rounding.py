"""Modules in PyTorch whose products round to fp16 or bf16, in any choice of layers.

A product reads factors that are rounded, sums in float32 and rounds its result, as the emulation of
`mar_export.onnx_export.float32_emulation` does for whole graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from mar_export.onnx_export.mixed_precision import products, to_precision


def rounding_module(module: nn.Module, dtype: torch.dtype, chosen: Collection[str] | None = None) -> nn.Module:
    """Return a copy of a module with some products rounded to `dtype`; everything else is float32.

    Args:
        module: The module of an engine.
        dtype: `torch.float16` or `torch.bfloat16`.
        chosen: The names of its layers, as `product_layers` returns them. None: all of them.
    """
    copy = to_precision(module, torch.float32)
    for name, product in products(copy):
        if chosen is None or name in chosen:
            product.multiply = _rounding(product.multiply, dtype)
    return copy


def product_layers(modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the layers of modules that have low-precision products, as "engine/layer", in the order of the modules."""
    return [
        f"{engine}/{name}"
        for engine, module in modules.items()
        for name, _ in products(to_precision(module, torch.float32))
    ]


def _rounding(multiply: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    def rounded(a: Tensor, b: Tensor) -> Tensor:
        return multiply(a.to(dtype).float(), b.to(dtype).float()).to(dtype).float()

    return rounded

"""How large the values get that fp16 would have to hold, on real trajectories."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor, nn

from mar_export.onnx_export.mixed_precision import products
from runtime.errors import ParityError

FP16_MAX = 65504.0


@contextlib.contextmanager
def largest_values(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, float]]:
    """While the block runs `modules`, lowered to float32: layer -> largest magnitude of its factors and product."""
    largest: dict[str, float] = {}
    with contextlib.ExitStack() as hooks:
        for engine, module in modules.items():
            for layer, product in products(module):
                name = f"{engine}: {layer}"

                def note(_: nn.Module, factors: tuple[Tensor, ...], result: Tensor, name: str = name) -> None:
                    seen = [float(value.abs().amax()) for value in (*factors, result) if value.numel()]
                    largest[name] = float(np.max([largest.get(name, 0.0), *seen]))  # keeps what is no number

                hooks.callback(product.register_forward_hook(note).remove)
        yield largest


def check_fp16(largest: Mapping[str, float]) -> None:
    """Raise `ParityError` naming every layer that would pass the largest number of fp16."""
    over = {layer: value for layer, value in largest.items() if not value <= FP16_MAX}
    if over:
        told = ", ".join(f"{layer} ({value:.3g})" for layer, value in over.items())
        raise ParityError(
            f"fp16 holds numbers up to {FP16_MAX:.0f}, which these layers pass: {told}; export with --precision bf16"
        )

"""Check of the range of fp16: the largest values of each layer while images are generated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor, nn

from mar_export.onnx_export.mixed_precision import products
from runtime.errors import ParityError

FP16_MAX = 65504.0
"""The largest finite number of fp16."""


@contextlib.contextmanager
def largest_values(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, float]]:
    """Record the largest magnitudes of a context in which the modules run.

    Args:
        modules: Modules by the names of their engines, converted by `mixed_precision.to_precision` to float32.

    Yields:
        A mapping, updated by each call, from a layer to the largest magnitude of its factors and of its product.
    """
    largest: dict[str, float] = {}
    with contextlib.ExitStack() as hooks:
        for engine, module in modules.items():
            for layer, product in products(module):
                name = f"{engine}: {layer}"

                def record(_: nn.Module, factors: tuple[Tensor, ...], result: Tensor, name: str = name) -> None:
                    magnitudes = [float(value.abs().amax()) for value in (*factors, result) if value.numel()]
                    largest[name] = float(np.max([largest.get(name, 0.0), *magnitudes]))  # keeps NaN

                hooks.callback(product.register_forward_hook(record).remove)
        yield largest


def check_fp16(largest: Mapping[str, float]) -> None:
    """Check that all magnitudes of `largest_values` fit into fp16.

    Raises:
        ParityError: Some do not; the message names their layers.
    """
    over = {layer: value for layer, value in largest.items() if not value <= FP16_MAX}
    if over:
        layers = ", ".join(f"{layer} ({value:.3g})" for layer, value in over.items())
        raise ParityError(
            f"fp16 holds numbers up to {FP16_MAX:.0f}, which these layers exceed: {layers}; "
            "export with --precision bf16"
        )

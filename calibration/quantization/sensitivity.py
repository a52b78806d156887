"""The sensitivity of layers: the error of whole images when one layer alone is quantized."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Callable, Collection, Sequence
from typing import Any

from calibration.quantization.sqnr import SqnrEvaluator
from calibration.quantization.variants import QuantizedVariant
from runtime.distance import distance_report


@dataclasses.dataclass(frozen=True)
class LayerSensitivity:
    """The effect of quantizing one layer alone.

    Attributes:
        layer: The layer, as "engine/layer".
        relative_l2: Relative L2 distance of the latents from those in float32.
    """

    layer: str
    relative_l2: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and `sqnr_db`, for JSON."""
        return {"layer": self.layer, **distance_report(self.relative_l2)}


def rank_layers(
    variant: QuantizedVariant, evaluator: SqnrEvaluator, work: pathlib.Path, progress: Callable[[int], None]
) -> list[LayerSensitivity]:
    """Measure every layer of `variant` and return the most sensitive first.

    Args:
        variant: How layers are quantized.
        evaluator: Measures the error.
        work: An existing folder for temporary graphs.
        progress: Called with 1 after each layer.
    """
    ranking = []
    for layer in variant.layers:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            distance = evaluator.relative_l2(variant.write(pathlib.Path(folder), [layer]))
        ranking.append(LayerSensitivity(layer, distance))
        progress(1)
    return sorted(ranking, key=lambda sensitivity: -sensitivity.relative_l2)


def most_sensitive(ranking: Sequence[LayerSensitivity], share: float) -> set[str]:
    """Return the names of the first `share` (0 to 1) of the ranked layers, rounded up."""
    return {sensitivity.layer for sensitivity in ranking[: math.ceil(share * len(ranking))]}


def combined_error(ranking: Sequence[LayerSensitivity], excluded: Collection[str] = ()) -> float:
    """Return the expected relative L2 error if all layers but `excluded` are quantized.

    The errors of different layers are nearly independent, so their squares add up.
    """
    return math.sqrt(sum(each.relative_l2**2 for each in ranking if each.layer not in excluded))


def layers_to_exclude(ranking: Sequence[LayerSensitivity], allowed: float) -> set[str]:
    """Return the most sensitive layers without which the combined error is at most `allowed`."""
    excluded: set[str] = set()
    for sensitivity in ranking:
        if combined_error(ranking, excluded) <= allowed:
            break
        excluded.add(sensitivity.layer)
    return excluded

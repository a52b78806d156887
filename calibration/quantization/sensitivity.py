"""Which layers lose most: each quantized alone, by what that does to the latents of whole images."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Callable, Collection, Sequence
from typing import Any

from calibration.quantization.sqnr import Judge
from calibration.quantization.variants import Form
from runtime.distance import sqnr_db


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What quantizing `layer`, as "engine/layer", alone does to the latents."""

    layer: str
    relative_l2: float

    def to_dict(self) -> dict[str, Any]:
        return {"layer": self.layer, "relative_l2": self.relative_l2, "sqnr_db": sqnr_db(self.relative_l2)}


def ranked_layers(form: Form, judge: Judge, work: pathlib.Path, progress: Callable[[int], None]) -> list[Sensitivity]:
    """Every layer of `form`, the one that loses most first."""
    found = []
    for layer in form.layers:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            found.append(Sensitivity(layer, judge.relative_l2(form.write(pathlib.Path(folder), [layer]))))
        progress(1)
    return sorted(found, key=lambda each: -each.relative_l2)


def most_sensitive(ranking: Sequence[Sensitivity], share: float) -> set[str]:
    """The first `share` of layers, rounded up."""
    return {each.layer for each in ranking[: math.ceil(share * len(ranking))]}


def together(ranking: Sequence[Sensitivity], kept: Collection[str] = ()) -> float:
    """What all but `kept` should do, relative L2: errors of many layers are nearly independent, so squares add."""
    return math.sqrt(sum(each.relative_l2**2 for each in ranking if each.layer not in kept))


def too_sensitive(ranking: Sequence[Sensitivity], allowed: float) -> set[str]:
    """The layers to leave out, most sensitive first, so that the others together should stay within `allowed`."""
    out: set[str] = set()
    for each in ranking:
        if together(ranking, out) <= allowed:
            break
        out.add(each.layer)
    return out

"""The sizes that an engine is built for: what the plans it will run make of its dynamic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from runtime.builds import Shapes
from runtime.plan import Plan
from runtime.spec import TOKENIZER_ENGINES, EngineSpec

Range = tuple[int, int, int]  # least, usual, most


def axis_ranges(plans: Sequence[Plan], batch: Range) -> dict[str, Range]:
    """Every dynamic axis of `runtime.spec` with the sizes that `plans` give it, for `batch` pictures together."""
    iterations = [iteration for plan in plans for iteration in plan.iterations]
    halves = [2 if iteration.guided else 1 for iteration in iterations]
    counts = [iteration.count for iteration in iterations]
    least, usual, most = batch
    sizes: dict[str, list[int]] = {
        "V": [iteration.known for iteration in iterations],
        "K": counts,
        "R": [plan.length - i.known - i.count for plan in plans for i in plan.iterations],
        "T": [1, *(iteration.table.steps for iteration in iterations)],
    }
    ranges = {axis: (min(values), int(np.median(values)), max(values)) for axis, values in sizes.items()}
    rows = [half * count for half, count in zip(halves, counts, strict=True)]
    return ranges | {
        "B": batch,
        "GB": (least * min(halves), usual * max(halves), most * max(halves)),
        "N": (least * min(counts), usual * int(np.median(counts)), most * max(counts)),
        "GN": (least * min(rows), usual * int(np.median(rows)), most * max(rows)),
    }


def profile(spec: EngineSpec, ranges: Mapping[str, Range], batch: Range) -> dict[str, Shapes]:
    """The least, usual and most of every input's shape."""
    if spec.name in TOKENIZER_ENGINES:  # nothing is guided there, and pictures come one by one as well
        ranges = {**ranges, "B": (1, *batch[1:])}
    return {
        tensor.name: tuple(tensor.sized({axis: sizes[which] for axis, sizes in ranges.items()}) for which in range(3))
        for tensor in spec.inputs
    }

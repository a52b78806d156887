"""The sizes that an engine is built for: what the plans it will run make of its dynamic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from runtime.artifact.engine_builds import Shapes
from runtime.loops.host_loop import MOST_STEPS_AT_ONCE
from runtime.model.engine_spec import TOKENIZER_ENGINES, EngineSpec
from runtime.sampling.plan import Plan

Range = tuple[int, int, int]  # least, usual, most


def axis_ranges(plans: Sequence[Plan], batch: Range) -> dict[str, Range]:
    """Every dynamic axis of `runtime.model.engine_spec` with the sizes that `plans` give it, for `batch` images together.

    Plans of edits, which begin with known tokens, widen what is built for; usual is what whole images have.
    """
    every, of_whole = _sizes(plans), _sizes([plan for plan in plans if not plan.iterations[0].known])
    ranges = {axis: (min(sizes), int(np.median(of_whole[axis])), max(sizes)) for axis, sizes in every.items()}
    # Each of the three must be a size that can be: the rows of all halves are those of one, so many times.
    (fewest, often, both), (one, some, all_) = ranges.pop("G"), ranges["K"]
    least, usual, most = batch
    return ranges | {
        "B": batch,
        "GB": (least * fewest, usual * often, most * both),
        "N": (least * one, usual * some, most * all_),
        "GN": (least * fewest * one, usual * often * some, most * both * all_),
    }


def _sizes(plans: Sequence[Plan]) -> dict[str, list[int]]:
    """What the iterations of `plans` make of each axis that the batch does not change, and the guidance halves G."""
    iterations = [iteration for plan in plans for iteration in plan.iterations]
    return {
        "V": [iteration.known for iteration in iterations],
        "K": [iteration.count for iteration in iterations],
        "R": [plan.length - i.known - i.count for plan in plans for i in plan.iterations],
        "T": [1, *(min(iteration.table.steps, MOST_STEPS_AT_ONCE) for iteration in iterations)],
        "G": [2 if iteration.guided else 1 for iteration in iterations],
    }


def profile(spec: EngineSpec, ranges: Mapping[str, Range], batch: Range) -> dict[str, Shapes]:
    """The least, usual and most of every input's shape."""
    if spec.name in TOKENIZER_ENGINES:  # nothing is guided there, and images come one by one as well
        ranges = {**ranges, "B": (1, *batch[1:])}
    return {
        tensor.name: tuple(tensor.sized({axis: sizes[which] for axis, sizes in ranges.items()}) for which in range(3))
        for tensor in spec.inputs
    }

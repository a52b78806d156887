"""Optimization profiles: the sizes of the dynamic axes for which an engine is built, derived from plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from runtime.artifact.engine_builds import Shapes
from runtime.loops.host_loop import MOST_STEPS_AT_ONCE
from runtime.model.engine_spec import TOKENIZER_ENGINES, EngineSpec
from runtime.model.families import drawn_grids
from runtime.model.family_config import FamilyConfig
from runtime.model.recap_engines import RECAP_AXES
from runtime.sampling.plan import Plan

Range = tuple[int, int, int]
"""The minimum, the optimum and the maximum of a size, as TensorRT names them."""


def axis_ranges(plans: Sequence[Plan], batch: Range, phase: int = 0) -> dict[str, Range]:
    """Return the range of every dynamic axis of `runtime.model.engine_spec`.

    Plans of edits start with known tokens. They widen the ranges, but the optimum is that of complete images.

    Args:
        plans: The plans that the engines must be able to run.
        batch: The range of the number of images that are generated together.
        phase: The number of the grid that the engines work on.
    """
    all_sizes = _sizes(plans, phase)
    image_sizes = _sizes([plan for plan in plans if not plan.iterations[0].known], phase)
    ranges = {axis: (min(sizes), int(np.median(image_sizes[axis])), max(sizes)) for axis, sizes in all_sizes.items()}
    # Each of the three sizes must be possible: the rows of all halves are a multiple of those of one half.
    (min_halves, opt_halves, max_halves), (min_rows, opt_rows, max_rows) = ranges.pop("G"), ranges["K"]
    min_batch, opt_batch, max_batch = batch
    return ranges | {
        "B": batch,
        "Q": (min_batch, opt_batch, 2 * max_batch),  # a negative prompt for each image, or none
        "GB": (min_batch * min_halves, opt_batch * opt_halves, max_batch * max_halves),
        "N": (min_batch * min_rows, opt_batch * opt_rows, max_batch * max_rows),
        "GN": (
            min_batch * min_halves * min_rows,
            opt_batch * opt_halves * opt_rows,
            max_batch * max_halves * max_rows,
        ),
    }


def prompt_ranges(config: FamilyConfig) -> dict[str, Range]:
    """Return the range of the axis U, the tokens of a prompt, for a model that draws from text."""
    bounds = config.index_bounds()
    if "lengths" not in bounds:
        return {}
    most = bounds["lengths"][1] - 1
    return {"U": (1, max(1, most // 4), most)}


def group_ranges(config: FamilyConfig, plans: Sequence[Plan]) -> dict[str, Range]:
    """Return the ranges of the axes that only the engines of ReCAP have; nothing if no plan has local iterations."""
    _, buffer = config.index_bounds().get("buffer", (0, 0))
    sizes = [
        iteration.group.sizes(iteration.known, iteration.count, plan.length, buffer)
        for plan in plans
        for iteration in plan.iterations
        if iteration.group is not None
    ]
    by_axis = {axis: [each[axis] for each in sizes] for axis in (RECAP_AXES if sizes else "")}
    return {axis: (min(each), int(np.median(each)), max(each)) for axis, each in by_axis.items()}


def latent_ranges(config: FamilyConfig) -> dict[str, Range]:
    """Return the ranges of rows and columns of the latents that a decoder reads: those of all grids of a model."""
    sides = zip(*drawn_grids(config), strict=True)  # rows of all grids, and columns of all
    return {
        axis: (config.patch_size * min(sizes), config.patch_size * sizes[-1], config.patch_size * max(sizes))
        for axis, sizes in zip("YX", sides, strict=True)
    }


def _sizes(plans: Sequence[Plan], phase: int) -> dict[str, list[int]]:
    """Return the sizes in all iterations of each axis that the batch does not change, and of the guidance halves G."""
    iterations = [iteration for plan in plans for iteration in plan.phase(phase)]
    return {
        "V": [iteration.known for iteration in iterations],
        "K": [iteration.count for iteration in iterations],
        "R": [plan.lengths[phase] - i.known - i.count for plan in plans for i in plan.phase(phase)],
        "O": [plan.lengths[phase] - i.known for plan in plans for i in plan.phase(phase)],
        "T": [1, *(min(iteration.table.steps, MOST_STEPS_AT_ONCE) for iteration in iterations)],
        "G": [halves for iteration in iterations for halves in iteration.denoised_halves],
    }


def input_shapes(spec: EngineSpec, ranges: Mapping[str, Range], batch: Range) -> dict[str, Shapes]:
    """Return the minimum, optimum and maximum shape of every input of an engine, by the input's name.

    Args:
        spec: The engine.
        ranges: The range of each axis, from `axis_ranges`.
        batch: The range of the number of images; engines of the tokenizer also accept a single image.
    """
    if spec.name in TOKENIZER_ENGINES:  # they have no guidance, and the runtime may decode images one by one
        ranges = {**ranges, "B": (1, *batch[1:])}
    return {
        tensor.name: tuple(tensor.sized({axis: sizes[which] for axis, sizes in ranges.items()}) for which in range(3))
        for tensor in spec.inputs
    }

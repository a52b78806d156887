"""Random inputs of engines, for tracing and for comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.model.coefficients import BOUNDS
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import BACKBONE, TOKENIZER_ENGINES, EngineSpec
from runtime.model.families import drawn_grids, family_of, imported
from runtime.model.family_config import FamilyConfig
from runtime.model.nova_config import NovaConfig
from runtime.model.recap_engines import RECAP_ENGINES

Sizes = Mapping[str, int]
"""The size of each dynamic axis, by the axis name in `runtime.model.engine_spec`."""

# The exporter traces with these sizes. All differ, so that it cannot mistake one axis for another.
EXPORT_SIZES: Sizes = {
    "B": 2,
    "GB": 4,
    "V": 5,
    "K": 3,
    "R": 6,
    "N": 7,
    "GN": 14,
    "T": 8,
    "S": 9,
    "P": 11,
    "Q": 10,
    "U": 12,
    "Y": 16,
    "X": 13,
    "O": 15,
    "J": 17,
    "H": 18,
    "A": 19,
    "E": 20,
    "F": 21,
}

# More of each axis than in the export.
_MANY_ROBOTS: Sizes = {"B": 5, "K": 4, "N": 12, "GN": 24, "T": 9}
_BOUND = 2.0  # of x0, in examples


def parity_sizes(spec: EngineSpec, config: FamilyConfig) -> list[Sizes]:
    """Return the sizes at which an exported engine is compared with PyTorch, also empty axes and sizes of one.

    Each axis has sizes below and above that of the export, since the exporter keeps only one branch of Python code
    that depends on a size.

    Args:
        spec: The engine.
        config: The model, for the number of its tokens.
    """
    if spec.name in TOKENIZER_ENGINES:  # few cases, because each image takes seconds
        full, first = config.latent_shape[1:], (config.patch_size * side for side in drawn_grids(config)[0])
        return [{"B": batch, "Y": y, "X": x} for batch, (y, x) in zip((1, 3), (full, first), strict=True)]
    sizes: list[Sizes] = imported(family_of(config).example_sizes)(spec, config)
    return sizes


def masked_sizes(spec: EngineSpec, config: FamilyConfig) -> list[Sizes]:
    """Return the sizes for a model with bidirectional attention, for any of its engines."""
    sizes = _sizes_of_grid(config.tokens)
    if spec.name not in RECAP_ENGINES:
        return sizes
    return [{**each, **group} for each, group in zip(sizes, _sizes_of_groups(config), strict=True)]


def _sizes_of_groups(config: FamilyConfig) -> list[Sizes]:
    """Return sizes of the axes that only the engines of ReCAP have: caches of no row, of one, and of many."""
    (_, buffer), length = config.index_bounds()["buffer"], config.tokens
    return [
        {"J": 1, "H": 0, "R": length - 1, "A": buffer, "E": 0, "F": 0},
        {"J": 1, "H": 1, "R": 0, "A": 0, "E": buffer, "F": buffer + length - 2},
        {"J": length - 1, "H": 0, "R": 0, "A": buffer, "E": 1, "F": 1},
        {"J": 3, "H": 2, "R": 1, "A": 0, "E": buffer + length // 2, "F": buffer},
        {"J": 2, "H": 5, "R": 2, "A": buffer, "E": 2, "F": length},
    ]


def _sizes_of_grid(length: int) -> list[Sizes]:
    middle = length // 2
    last = length - 1
    return [
        {"B": 1, "GB": 1, "V": 0, "K": 1, "R": last, "N": 1, "GN": 1, "T": 1},
        {"B": 1, "GB": 2, "V": 0, "K": length, "R": 0, "N": 5, "GN": 5, "T": 3},
        {"B": 2, "GB": 2, "V": last, "K": 1, "R": 0, "N": 1, "GN": 2, "T": 2},
        {"B": 3, "GB": 6, "V": middle, "K": length - middle, "R": 0, "N": 8, "GN": 16, "T": 5},
        {"B": 1, "GB": 2, "V": min(1, last), "K": 1, "R": max(0, last - 1), "N": 9, "GN": 18, "T": 9},
    ]


def grids_sizes(spec: EngineSpec, config: FamilyConfig) -> list[Sizes]:
    """Return the sizes for a model of several grids, for the one that an engine works on."""
    rows, columns = drawn_grids(config)[spec.phase]
    return [{**sizes, "O": rows * columns - sizes["V"]} for sizes in _sizes_of_grid(rows * columns)]


def causal_sizes(spec: EngineSpec, config: ModelConfig) -> list[Sizes]:
    """Return the sizes for a model with causal attention: parts of a sequence for its backbone."""
    if spec.name != BACKBONE:
        return masked_sizes(spec, config)
    buffer, end = config.buffer_size, config.buffer_size + config.tokens - 1
    return [
        {"B": 1, "GB": 1, "S": buffer, "P": 0},
        {"B": 1, "GB": 2, "S": 1, "P": buffer},
        {"B": 3, "GB": 3, "S": 1, "P": end - 1},
        {"B": 2, "GB": 4, "S": end, "P": 0},
        {"B": 3, "GB": 6, "S": 2, "P": 3},
    ]


def prompt_sizes(spec: EngineSpec, config: NovaConfig) -> list[Sizes]:
    """Return the sizes for a model that draws from prompts."""
    prompts, tokens = (1, 2, 3, 5, 12), (1, 7, config.text_token_len, 2, 16)
    return [
        {**sizes, "Q": count, "U": min(length, config.text_token_len)}
        for count, length, sizes in zip(prompts, tokens, masked_sizes(spec, config), strict=True)
    ]


def policy_sizes(spec: EngineSpec, config: FamilyConfig) -> list[Sizes]:
    """Return the sizes for a policy, whose backbone reads no tokens and which has no guidance."""
    return [{**sizes, "GB": sizes["B"]} for sizes in (*masked_sizes(spec, config), _MANY_ROBOTS)]


def example_inputs(spec: EngineSpec, config: FamilyConfig, sizes: Sizes, seed: int) -> dict[str, NDArray[Any]]:
    """Return random inputs of an engine, by name.

    Floats are standard normal, but for the bounds of x0, which cut some values. Integers are positions of tokens or
    classes, including the class of no guidance.

    Args:
        spec: The engine.
        config: The model, for the bounds of the integers.
        sizes: The size of each dynamic axis.
        seed: The seed of the random numbers.
    """
    if "O" in sizes:  # what is not known is another token
        sizes = {**sizes, "O": config.tokens - sizes["V"]}
    random = np.random.default_rng(seed)
    inputs: dict[str, NDArray[Any]] = {}
    for tensor in spec.inputs:
        shape = tensor.sized(sizes)
        if tensor.dtype == "int64":
            inputs[tensor.name] = random.integers(*_bounds(tensor.name, config), size=shape)
        else:
            inputs[tensor.name] = random.standard_normal(shape, np.float32)
        if tensor.name == "coefficients":
            inputs[tensor.name][-len(BOUNDS) :] = -_BOUND, _BOUND
    return inputs


def _bounds(name: str, config: FamilyConfig) -> tuple[int, int]:
    """Return the bounds of an integer input: the least value, and one more than the largest."""
    bounds: tuple[int, int] = config.index_bounds().get(name, (0, config.tokens))
    return bounds

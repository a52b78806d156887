"""Checks of the arguments of a request, which return them as the arrays that the loop takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.checks import check_int, truncate
from runtime.errors import RequestError
from runtime.model.config import ModelConfig

MAX_BATCH = 4096
"""The most images in a batch."""

_NOISE_BYTES = 4 * 2**30
_SEEDS = 2**64
_NAMES_LISTED = 10


def check_labels(labels: ArrayLike, config: ModelConfig) -> NDArray[np.int64]:
    """Return class numbers as int64 [B].

    Raises:
        RequestError: They are not a list of class numbers of this model.
    """
    array = _integer_array("labels", labels)
    if array.ndim != 1 or not len(array):
        raise RequestError(f"labels must be a list of classes, found shape {list(array.shape)}")
    wrong = array[(array < 0) | (array >= config.class_num)]
    if len(wrong):
        raise RequestError(f"class {wrong[0]} is out of range; this model has classes 0..{config.class_num - 1}")
    return array.astype(np.int64)


def parse_class(text: str, names: Sequence[str]) -> int:
    """Return the number of a class from its number or its name, in upper or lower case.

    Args:
        text: The number or the name, as on a command line.
        names: The names of the classes in order, or none.

    Raises:
        RequestError: No class has this name, or several have.
    """
    try:
        return int(text)
    except ValueError:
        matches = [number for number, name in enumerate(names) if name.casefold() == text.casefold()]
    if len(matches) != 1:
        known = ", ".join(names[:_NAMES_LISTED]) + (", ..." if len(names) > _NAMES_LISTED else "")
        has = f"this model has {known}" if names else "this model has no names for its classes, only numbers"
        problem = "the name of several classes" if matches else "unknown"
        raise RequestError(f"class {truncate(text)} is {problem}; {has}")
    return matches[0]


def check_batch(size: int, steps: int, config: ModelConfig) -> int:
    """Return the number of images in a batch, checked against the memory of its noise.

    Args:
        size: The number of images.
        steps: T, the number of diffusion steps.
        config: The config of the model.

    Raises:
        RequestError: The batch has more than 4096 images, or more than 4 GiB of noise.
    """
    noise_bytes = 4 * (steps + 1) * config.tokens * config.token_channels
    largest = min(MAX_BATCH, _NOISE_BYTES // noise_bytes)
    check_int(f"the batch size at {steps} diffusion steps", size, 1, largest)
    return size


def check_order(order: ArrayLike, batch: int, config: ModelConfig) -> NDArray[np.int64]:
    """Return a generation order as int64 [B, L], each row a permutation of the token positions.

    Raises:
        RequestError: It has another shape or dtype, or a row is not a permutation.
    """
    array = _integer_array("order", order)
    if array.shape != (batch, config.tokens):
        raise RequestError(f"order must have shape [{batch}, {config.tokens}], found {list(array.shape)}")
    if not (np.sort(array, axis=1) == np.arange(config.tokens)).all():
        raise RequestError(f"order: every row must be a permutation of 0..{config.tokens - 1}")
    return array.astype(np.int64)


def check_noise(noise: ArrayLike, batch: int, steps: int, config: ModelConfig) -> NDArray[np.float32]:
    """Return noise by token position as float32 [T + 1, B, L, D], for T = `steps` and B = `batch`.

    Raises:
        RequestError: It has another shape or dtype, or values that are not finite.
    """
    array = as_array("noise", noise)
    expected = (steps + 1, batch, config.tokens, config.token_channels)
    if array.shape != expected or array.dtype.kind != "f":
        raise RequestError(
            f"noise must be floating point of shape {list(expected)} (diffusion steps + 1, images, tokens, channels), "
            f"found {array.dtype} {list(array.shape)}"
        )
    with np.errstate(over="ignore"):
        checked = array.astype(np.float32)
    if not np.isfinite(checked).all():
        raise RequestError("noise holds values that are not finite in float32")
    return checked


def check_seed(seed: int) -> int:
    """Return a seed, a whole number in 0..2^64-1. Raises `RequestError` otherwise."""
    return _check_uint64("seed", seed)


def check_indices(index: Sequence[int] | None, batch: int) -> list[int]:
    """Return the number of each image in the sequence of its seed; 0, 1, 2, ... for None.

    Raises:
        RequestError: There are not `batch` numbers, or one is not a whole number in 0..2^64-1.
    """
    if index is None:
        return list(range(batch))
    try:
        numbers = list(index)
    except TypeError:
        raise RequestError(f"index must be a list with one number a label, found {index!r}") from None
    if len(numbers) != batch:
        raise RequestError(f"index must have one number a label, {batch}; found {len(numbers)}")
    return [_check_uint64("index", number) for number in numbers]


def _check_uint64(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < _SEEDS:
        raise RequestError(f"{name} must be a whole number in 0..2^64-1, found {value!r}")
    return int(value)


def _integer_array(name: str, values: ArrayLike) -> NDArray[np.integer]:
    array = as_array(name, values)
    if array.dtype.kind not in "iu":
        raise RequestError(f"{name} must be whole numbers, found {array.dtype} of shape {list(array.shape)}")
    return array


def as_array(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return the argument `name` as an array. Raises `RequestError` if it cannot be one."""
    try:
        return np.asarray(values)
    except (ValueError, OverflowError) as error:  # for example rows of different lengths
        raise RequestError(f"{name}: {error}") from None

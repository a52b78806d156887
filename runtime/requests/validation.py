"""Checks of the arguments of a request, which return them as the arrays that the loop takes."""

from __future__ import annotations

import collections
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence, Sized
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.checks import check_int, printable, truncate
from runtime.errors import RequestError
from runtime.model.families import drawn_grids, drawn_tokens
from runtime.model.family_config import FamilyConfig

MAX_BATCH = 4096
"""The most images in a batch."""

_NOISE_BYTES = 4 * 2**30
_SEEDS = 2**64
_NAMES_LISTED = 10
_NUMBER = re.compile("-?(0|[1-9][0-9]{0,19})")


def check_labels(
    labels: ArrayLike | Sequence[int | str], config: FamilyConfig, names: Sequence[str] = ()
) -> NDArray[np.int64]:
    """Return class numbers as int64 [B].

    Args:
        labels: Class numbers, names that `parse_class` knows, or both.
        config: The config of the model.
        names: The names of the classes in order, or none.

    Raises:
        RequestError: They are not a list of classes of this model.
    """
    if isinstance(labels, (str, bytes)):
        raise RequestError(
            f"labels must be a list of classes, found {truncate(labels)}; write labels=[{truncate(labels)}]"
        )
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "U":
        labels = labels.tolist()
    if isinstance(labels, (list, tuple)) and any(isinstance(label, str) for label in labels):
        labels = [parse_class(label, names) if isinstance(label, str) else label for label in labels]
    array = as_array("labels", labels)
    if array.ndim == 1 and not len(array):
        raise RequestError("labels is empty; give at least one class, such as labels=[0]")
    array = _integer_array("labels", array)
    if array.ndim != 1:
        raise RequestError(f"labels must be a list of classes, found shape {list(array.shape)}")
    wrong = array[(array < 0) | (array >= config.class_num)]
    if len(wrong):
        raise RequestError(f"class {wrong[0]} is out of range; this model has classes 0..{config.class_num - 1}")
    return array.astype(np.int64)


def parse_class(text: str, names: Sequence[str]) -> int:
    """Return the number of a class from `NAME`, `NUMBER`, `name:NAME` or `index:NUMBER`.

    A name in the same case comes before one in another case.

    Args:
        text: The name or the number, as on a command line.
        names: The names of the classes in order, or none.

    Raises:
        RequestError: No class has this name, several have, or it is the name of one class and the number of another.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind == "index" and _NUMBER.fullmatch(rest):
        return int(rest)
    by_name = bool(colon) and kind == "name"
    name = rest if by_name else text
    matches = _classes_named(name, names)
    number = int(text) if _NUMBER.fullmatch(text) else None
    if not matches and number is not None:
        return number
    if len(matches) != 1:
        raise RequestError(f"class {truncate(name)} is {_name_problem(matches, names)}")
    if number is not None and number != matches[0] and 0 <= number < len(names):
        raise RequestError(
            f"class {text} is both the name {printable(names[matches[0]])}, of class {matches[0]}, and the number of "
            f"{printable(names[number])}; write name:{text} or index:{text}"
        )
    return matches[0]


def _classes_named(name: str, names: Sequence[str]) -> list[int]:
    """Return the classes of exactly this name, or else those that differ in escapes, case, or zeros before a number."""
    for key in (str, printable, _any_case, _without_zeros):
        matches = [number for number, other in enumerate(names) if key(other) == key(name)]
        if matches:
            return matches
    return []


def _any_case(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _without_zeros(name: str) -> str:
    return name.lstrip("0") or "0" if name.isdecimal() else name


def _name_problem(matches: Sequence[int], names: Sequence[str]) -> str:
    if not names:
        return "unknown; this model has no names for its classes, only numbers"
    listed = [f"{number} {printable(names[number])}" for number in matches] or [printable(name) for name in names]
    some = ", ".join(listed[:_NAMES_LISTED]) + (", ..." if len(listed) > _NAMES_LISTED else "")
    if matches:
        return f"the name of several classes ({some}); write index: and a number"
    return f"unknown; this model has {some}"


def check_batch(size: int, steps: int, config: FamilyConfig) -> int:
    """Return the number of images in a batch, checked against the memory of its noise.

    Args:
        size: The number of images.
        steps: T, the number of diffusion steps.
        config: The config of the model.

    Raises:
        RequestError: The batch has more than 4096 images, or more than 4 GiB of noise.
    """
    noise_bytes = 4 * (steps + 1) * drawn_tokens(config) * config.token_channels
    largest = min(MAX_BATCH, _NOISE_BYTES // noise_bytes)
    check_int(f"the batch size at {steps} diffusion steps", size, 1, largest)
    return size


def check_order(order: ArrayLike, batch: int, config: FamilyConfig) -> NDArray[np.int64]:
    """Return a generation order as int64 [B, L], each row a permutation of the token positions.

    Of several grids it is [B, P]: the positions of each grid follow those of the grid before it.

    Raises:
        RequestError: It has another shape or dtype, or a row is not a permutation.
    """
    array = _integer_array("order", order)
    tokens, start = drawn_tokens(config), 0
    if array.shape != (batch, tokens):
        raise RequestError(f"order must have shape [{batch}, {tokens}], found {list(array.shape)}")
    for rows, columns in drawn_grids(config):
        stop = start + rows * columns
        if not (np.sort(array[:, start:stop], axis=1) == np.arange(start, stop)).all():
            of_grid = "every row" if stop - start == tokens else f"{start} to {stop - 1} of every row"
            raise RequestError(f"order: {of_grid} must be a permutation of {start}..{stop - 1}")
        start = stop
    return array.astype(np.int64)


def finite_float32(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    """Return numbers as float32. Raises `RequestError`, which names them, if a value is not finite then."""
    with np.errstate(over="ignore"):
        checked = array.astype(np.float32)
    if not np.isfinite(checked).all():
        raise RequestError(f"{name} holds values that are not finite in float32")
    return checked


def check_noise(noise: ArrayLike, batch: int, steps: int, config: FamilyConfig) -> NDArray[np.float32]:
    """Return noise by token position as float32 [T + 1, B, L, D], for T = `steps` and B = `batch`.

    Raises:
        RequestError: It has another shape or dtype, or values that are not finite.
    """
    array = as_array("noise", noise)
    expected = (steps + 1, batch, drawn_tokens(config), config.token_channels)
    if array.shape != expected or array.dtype.kind != "f":
        raise RequestError(
            f"noise must be floating point of shape {list(expected)} (rows, batch, tokens, channels), "
            f"found {array.dtype} {list(array.shape)}"
        )
    return finite_float32("noise", array)


def check_seed(seed: int) -> int:
    """Return a seed, a whole number in 0..2^64-1. Raises `RequestError` otherwise."""
    return _check_uint64("seed", seed)


def check_seeds(seed: Any, batch: int) -> list[int]:
    """Return the seed of each image: `seed` for all of them, or one for each.

    Raises:
        RequestError: There are not `batch` seeds, or one is not a whole number in 0..2^64-1.
    """
    several = seed.ndim > 0 if isinstance(seed, np.ndarray) else isinstance(seed, (list, tuple, range))
    return _check_each("seed", seed, batch) if several else [check_seed(seed)] * batch


def check_indices(index: Sequence[int] | None, seeds: Sequence[int]) -> list[int]:
    """Return the number of each image in the sequence of its seed.

    Args:
        index: The numbers. None: each image has the number of earlier ones with the same seed: 0, 1, 2, ...
        seeds: The seed of each image, B of them.

    Raises:
        RequestError: There are not B numbers, or one is not a whole number in 0..2^64-1.
    """
    if index is None:
        counters: dict[int, Iterator[int]] = collections.defaultdict(itertools.count)
        return [next(counters[seed]) for seed in seeds]
    return _check_each("index", index, len(seeds))


def _check_each(name: str, values: Sequence[int], batch: int) -> list[int]:
    """Return the argument `name`, which has one number for each image."""
    try:
        numbers = list(itertools.islice(values, batch + 1))
    except TypeError:
        raise RequestError(
            f"{name} must be a list with one number for each of the batch, found {truncate(values)}"
        ) from None
    if len(numbers) != batch:
        count = len(values) if isinstance(values, Sized) else f"{len(numbers)} or more"
        raise RequestError(f"{name} must have one number for each of the batch, {batch}; found {count}")
    return [_check_uint64(name, number) for number in numbers]


def _check_uint64(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < _SEEDS:
        raise RequestError(f"{name} must be a whole number in 0..2^64-1, found {truncate(value)}")
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
    except MemoryError:
        raise
    except Exception as error:  # rows of different lengths; what other libraries raise, as PyTorch of a tensor on a GPU
        raise RequestError(f"{name}: {' '.join(str(error).split())}") from None

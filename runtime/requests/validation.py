"""What a caller asks for, checked once: labels, order and noise as the loop wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.checks import check_int, truncate
from runtime.errors import RequestError
from runtime.model.config import ModelConfig

MAX_BATCH = 4096
_NOISE_BYTES = 4 * 2**30
_SEEDS = 2**64
_NAMES_TOLD = 10


def check_labels(labels: ArrayLike, config: ModelConfig) -> NDArray[np.int64]:
    """Class numbers as int64 [B]."""
    given = _integers("labels", labels)
    if given.ndim != 1 or not len(given):
        raise RequestError(f"labels must be a list of classes, found shape {list(given.shape)}")
    wrong = given[(given < 0) | (given >= config.class_num)]
    if len(wrong):
        raise RequestError(f"class {wrong[0]} is out of range; this model has classes 0..{config.class_num - 1}")
    return given.astype(np.int64)


def parse_class(given: str, names: Sequence[str]) -> int:
    """A class as a command line gives it: its number, or its name, in any case. Raises `RequestError`."""
    try:
        return int(given)
    except ValueError:
        found = [number for number, name in enumerate(names) if name.casefold() == given.casefold()]
    if len(found) != 1:
        known = ", ".join(names[:_NAMES_TOLD]) + (", ..." if len(names) > _NAMES_TOLD else "")
        has = f"this model has {known}" if names else "this model has no names for its classes, only numbers"
        raise RequestError(f"class {truncate(given)} is {'several' if found else 'unknown'}; {has}")
    return found[0]


def check_batch(size: int, steps: int, config: ModelConfig) -> int:
    """How many images are drawn together, each with the noise of `steps` diffusion steps."""
    noise_bytes = 4 * (steps + 1) * config.tokens * config.token_channels
    largest = min(MAX_BATCH, _NOISE_BYTES // noise_bytes)
    check_int(f"images drawn together at {steps} diffusion steps", size, 1, largest)
    return size


def check_order(order: ArrayLike, batch: int, config: ModelConfig) -> NDArray[np.int64]:
    """A given generation order as int64 [B, L]: each row a permutation of the positions."""
    given = _integers("order", order)
    if given.shape != (batch, config.tokens):
        raise RequestError(f"order must have shape [{batch}, {config.tokens}], found {list(given.shape)}")
    if not (np.sort(given, axis=1) == np.arange(config.tokens)).all():
        raise RequestError(f"order: every row must be a permutation of 0..{config.tokens - 1}")
    return given.astype(np.int64)


def check_noise(noise: ArrayLike, batch: int, steps: int, config: ModelConfig) -> NDArray[np.float32]:
    """Given noise by token position as float32 [T + 1, B, L, D]."""
    given = as_array("noise", noise)
    wanted = (steps + 1, batch, config.tokens, config.token_channels)
    if given.shape != wanted or given.dtype.kind != "f":
        raise RequestError(
            f"noise must be floating point of shape {list(wanted)} (diffusion steps + 1, images, tokens, channels), "
            f"found {given.dtype} {list(given.shape)}"
        )
    with np.errstate(over="ignore"):
        checked = given.astype(np.float32)
    if not np.isfinite(checked).all():
        raise RequestError("noise holds values that are not finite in float32")
    return checked


def check_seed(seed: int) -> int:
    return _counter("seed", seed)


def check_indices(index: Sequence[int] | None, batch: int) -> list[int]:
    """The number of each image in its seed's sequence; 0, 1, 2, ... if not given."""
    if index is None:
        return list(range(batch))
    try:
        numbers = list(index)
    except TypeError:
        raise RequestError(f"index must be a list with one number a label, found {index!r}") from None
    if len(numbers) != batch:
        raise RequestError(f"index must have one number a label, {batch}; found {len(numbers)}")
    return [_counter("index", number) for number in numbers]


def _counter(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < _SEEDS:
        raise RequestError(f"{name} must be a whole number in 0..2^64-1, found {value!r}")
    return int(value)


def _integers(name: str, values: ArrayLike) -> NDArray[np.integer]:
    given = as_array(name, values)
    if given.dtype.kind not in "iu":
        raise RequestError(f"{name} must be whole numbers, found {given.dtype} of shape {list(given.shape)}")
    return given


def as_array(name: str, values: ArrayLike) -> NDArray[Any]:
    """What a caller gives under `name`, as an array. Raises `RequestError`."""
    try:
        return np.asarray(values)
    except (ValueError, OverflowError) as error:  # such as rows of different lengths
        raise RequestError(f"{name}: {error}") from None

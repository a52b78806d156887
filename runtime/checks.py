"""Checks of values that a caller gives: each raises `RequestError` with the name, the expectation and the value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.errors import RequestError

_LARGEST_SCALE = 1000
_LONGEST_VALUE = 40  # characters of a value in a message


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise `RequestError` unless `value` is one of `choices`; `name` is the name of the argument or option."""
    if not isinstance(value, str) or value not in choices:
        raise RequestError(f"{name} must be one of {', '.join(choices)}, found {truncate(value)}")


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Raise `RequestError` unless `value` is a number from `low` to `high`, both included."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not low <= value <= high:
        raise RequestError(f"{name} must be a number in {low}..{high}, found {truncate(value)}")


def check_int(name: str, value: Any, low: int, high: int) -> None:
    """Raise `RequestError` unless `value` is an integer from `low` to `high`, both included."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise RequestError(f"{name} must be a whole number in {low}..{high}, found {truncate(value)}")


def check_scale(name: str, value: Any) -> None:
    """Raise `RequestError` unless `value` is a factor from 0 to 1000."""
    check_number(name, value, 0, _LARGEST_SCALE)


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun, which is given in the singular: `1 image`, `2 images`, `3 classes`."""
    plural = f"{noun}es" if noun.endswith(("s", "ch")) else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def truncate(value: object) -> str:
    """Return the repr of a value for an error message: on one line, and at most 40 characters of it."""
    text = " ".join(repr(value).split("\n"))
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"

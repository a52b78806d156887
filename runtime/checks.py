"""Numbers that a caller gives, refused by name and value where they make no sense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.errors import RequestError

_LARGEST_SCALE = 1000


def check_choice(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse what is not one of `known`."""
    if not isinstance(value, str) or value not in known:
        raise RequestError(f"{name} must be one of {', '.join(known)}, found {truncate(value)}")


def check_number(name: str, value: Any, low: float, high: float) -> None:
    """Refuse what is no number in low..high."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not low <= value <= high:
        raise RequestError(f"{name} must be a number in {low}..{high}, found {truncate(value)}")


def check_int(name: str, value: Any, low: int, high: int) -> None:
    """Refuse what is no whole number in low..high."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise RequestError(f"{name} must be a whole number in {low}..{high}, found {truncate(value)}")


def check_scale(name: str, value: Any) -> None:
    """Refuse what is no sensible factor: not a number, negative, or beyond a thousand."""
    check_number(name, value, 0, _LARGEST_SCALE)


def pluralize(number: int, what: str) -> str:
    """So many of `what`, a word in the singular, as a message says it."""
    plural = f"{what}es" if what.endswith(("s", "ch")) else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def truncate(value: object) -> str:
    """A value as an error shows it: its beginning, where it is long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"

"""Checks of values that a caller gives: each raises `RequestError` with the name, the expectation and the value.

One check is of what an engine computed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BackendError, RequestError

_LARGEST_SCALE = 1000
_LONGEST_VALUE = 40  # characters of a value in a message
_UNDECODED = re.compile("[\udc80-\udcff]+")  # Python's stand-ins for bytes that the locale has no letters for
_BREAKING = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, separators of lines and of paragraphs


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


def check_bool(name: str, value: object) -> None:
    """Raise `RequestError` unless `value` is true or false."""
    if not isinstance(value, (bool, np.bool_)):
        raise RequestError(f"{name} must be True or False, found {truncate(value)}")


def check_scale(name: str, value: Any) -> None:
    """Raise `RequestError` unless `value` is a factor from 0 to 1000."""
    check_number(name, value, 0, _LARGEST_SCALE)


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun, which is given in the singular: `1 image`, `2 images`, `3 classes`."""
    plural = f"{noun}es" if noun.endswith(("s", "ch")) else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def truncate(value: object) -> str:
    """Return the repr of a value for an error message: on one line, and at most 40 characters of it."""
    try:
        text = " ".join(repr(value).split("\n"))
    except Exception:  # for example of a whole number with more digits than Python converts
        text = f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def printable(text: str) -> str:
    """Return a text of any origin, such as the name of a file, on one line of valid Unicode.

    Line breaks and control characters are escaped, and so are bytes that were no UTF-8. Names are UTF-8 whatever the
    locale: under one of ASCII, Python has stand-ins for the bytes of every other letter.
    """
    text = _UNDECODED.sub(_as_utf8, text)
    return "".join(_escape(letter) if category(letter) in _BREAKING else letter for letter in text)


def _as_utf8(undecoded: re.Match[str]) -> str:
    return undecoded[0].encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def _escape(letter: str) -> str:
    byte = ord(letter) - 0xDC00  # Python's stand-in for a byte that is no UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else repr(letter)[1:-1]


def check_finite(values: NDArray[Any], source: str) -> None:
    """Raise `BackendError` if `values` are not finite; `source` is what computed them, for the message."""
    if not np.isfinite(values).all():
        raise BackendError(
            f"{source} produced values that are not finite; check the export's parity report, and if it is in fp16, "
            "export with --precision bf16"
        )

"""Checks of parsed values against the types of a dataclass: the one way in which JSON and TOML become typed values.

A field of a dataclass gives the type, and whether the key may be missing: a field with a default. Its metadata may
limit the value: `least` and `most` (inclusive) and `above` and `below` (exclusive) limit a number, `choices` a text. A
field `dict[str, X]` with the metadata `REST` gets all keys that are no other field.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from runtime.checks import truncate

REST = "rest"
"""The metadata of a field that gets all other keys."""

_Kind = TypeVar("_Kind")

_INT64 = 2**63
_NAMES = {
    bool: "true or false",
    str: "a text",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
}


class SchemaError(ValueError):
    """A value that is not of the type that a field has."""


def parse_object(kind: type[_Kind], value: object, where: str) -> _Kind:
    """Return the object of the dataclass `kind` that a parsed value describes.

    Args:
        kind: The dataclass. Types of its fields may be bool, int, float, str, Any, another dataclass, `X | None`,
            `list[X]`, `tuple[X, ...]`, `tuple[X, Y]` and `dict[str, X]`.
        value: The parsed value, as `json` or `tomllib` returns it.
        where: The place of the value, for messages.

    Raises:
        SchemaError: A key is missing or unknown, or a value has another type or lies outside its limits. The message
            is one line, which begins with `where`.
    """
    if not isinstance(value, dict):
        raise SchemaError(f"{where}: expected an object, found {truncate(value)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    value = _gather_rest(value, fields)
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    unknown, missing = sorted(value.keys() - fields.keys()), sorted(required - value.keys())
    if unknown or missing:
        problems = [f"unknown keys {truncate(', '.join(unknown))}"] if unknown else []
        problems += [f"missing keys {', '.join(missing)}"] if missing else []
        raise SchemaError(f"{where}: {' and '.join(problems)}")
    hints = _type_hints(kind)  # type: ignore[arg-type]
    return kind(
        **{
            name: parse_value(f"{where}: {name}", entry, hints[name], fields[name].metadata)
            for name, entry in value.items()
        }
    )


def _gather_rest(value: dict[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object whose unknown keys lie under the field for them, where there is one."""
    for name, field in fields.items():
        if field.metadata.get(REST):
            known = {key: entry for key, entry in value.items() if key in fields and key != name}
            return {**known, name: {key: entry for key, entry in value.items() if key not in known}}
    return value


def parse_value(name: str, value: object, kind: Any, limits: Mapping[str, Any]) -> Any:
    """Return a parsed value as a `kind`.

    Args:
        name: The name of the value, for messages.
        value: The value.
        kind: The type, as for a field of `parse_object`.
        limits: The metadata of the field.

    Raises:
        SchemaError: The value has another type or lies outside its limits.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or (value is None and type(None) in arguments):
        return value
    if origin in (typing.Union, types.UnionType):
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return parse_value(name, value, kind, limits)
    if dataclasses.is_dataclass(kind):
        return parse_object(typing.cast(type, kind), value, name)
    if origin in (list, tuple):
        return _parse_sequence(name, value, origin, arguments, limits)
    if origin is dict:
        if not isinstance(value, dict):
            raise SchemaError(f"{name} must be an object, found {truncate(value)}")
        return {
            key: parse_value(f"{name}: {truncate(key)}", entry, arguments[1], limits) for key, entry in value.items()
        }
    return _parse_scalar(name, value, kind, limits)


def _parse_sequence(name: str, value: object, origin: type, arguments: Any, limits: Mapping[str, Any]) -> Any:
    kinds = arguments
    if not isinstance(value, (list, tuple)):
        raise SchemaError(f"{name} must be a list, found {truncate(value)}")
    if origin is list or arguments[1:] == (...,):
        kinds = (arguments[0],) * len(value)
    if len(kinds) != len(value):
        raise SchemaError(f"{name} must be a list of {len(kinds)} values, found {len(value)}")
    return origin(
        parse_value(f"{name}[{number}]", entry, kind, limits)
        for number, (entry, kind) in enumerate(zip(value, kinds, strict=True))
    )


def _parse_scalar(name: str, value: Any, kind: type, limits: Mapping[str, Any]) -> Any:
    if kind is float and type(value) is int and abs(value) < _INT64:
        value = float(value)
    valid = type(value) is kind and value in limits.get("choices", (value,))
    if valid and kind in (int, float):
        least, most, above, below = (limits.get(key) for key in ("least", "most", "above", "below"))
        valid = (least is None or value >= least) and (most is None or value <= most)
        valid = valid and (above is None or value > above) and (below is None or value < below)
        limited = least is not None and most is not None
        valid = valid and (limited or abs(value) < _INT64 if kind is int else math.isfinite(value))
    if not valid:
        raise SchemaError(f"{name} must be {_expected(kind, limits)}, found {truncate(value)}")
    return value


def _expected(kind: type, limits: Mapping[str, Any]) -> str:
    """Describe the values that a field may have."""
    if "choices" in limits:
        return " or ".join(limits["choices"])
    if kind not in (int, float):
        return _NAMES.get(kind, kind.__name__)
    words = {"least": "of at least", "most": "of at most", "above": "above", "below": "below"}
    parts = [f"{word} {limits[key]}" for key, word in words.items() if key in limits]
    return f"a {'whole' if kind is int else 'finite'} number {' and '.join(parts)}".rstrip()


@functools.cache
def _type_hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)

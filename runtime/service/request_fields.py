"""The fields of a request, of JSON or of a form, as a typed object. A fault names its field."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from runtime.checks import truncate
from runtime.service.http_errors import HttpError
from runtime.storage.schema import SchemaError, parse_value
from runtime.storage.structured_files import parse_json

_Fields = TypeVar("_Fields")
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that is the body of a request. Raises `HttpError`."""
    try:
        value = parse_json(body)
    except ValueError as error:
        raise HttpError(400, f"the body is not readable JSON ({error})", code="invalid_json") from None
    if not isinstance(value, dict):
        raise HttpError(400, f"the body must be a JSON object, found {truncate(value)}", code="invalid_json")
    return value


def parse_fields(kind: type[_Fields], values: Mapping[str, Any], *, text: bool = False) -> _Fields:
    """Return the object of the dataclass `kind` whose fields are the fields of a request.

    Args:
        kind: The dataclass; see `runtime.storage.schema.parse_object` for types and limits.
        values: The fields by name.
        text: Whether the values are texts, as in a form.

    Raises:
        HttpError: A field is unknown or missing, or has a wrong value.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            message = f"unknown field {truncate(name)}; known: {', '.join(fields)}"
            raise HttpError(400, message, param=name[:64], code="unknown_parameter")
        try:
            typed = _from_text(value, hints[name]) if text else value
            parsed[name] = parse_value(name, typed, hints[name], fields[name].metadata)
        except SchemaError as error:
            raise HttpError(400, str(error), param=name, code="invalid_value") from None
    for name, field in fields.items():
        if name not in parsed and field.default is dataclasses.MISSING:
            raise HttpError(400, f"the field {name} is missing", param=name, code="missing_parameter")
    return kind(**parsed)


def _from_text(value: str, hint: Any) -> Any:
    """Return the text of a form as the kind of value that the field has; the text itself if it is none."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if bool in kinds:
        return _TRUTHS.get(value.lower(), value)
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(value)
            except ValueError:
                return value
    return value

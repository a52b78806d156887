"""The documents that commands print with `--json`, compared with their schemas in the documentation."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SCHEMAS = pathlib.Path(__file__).parents[2] / "docs" / "reference" / "schemas"


def read_document(output: str) -> dict[str, Any]:
    """Return the document that is all of what a command printed. Every key of it must be in its schema."""
    document: dict[str, Any] = json.loads(output, parse_constant=_refuse)
    validator = _validators()[document["command"]]
    problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    assert not problems, "\n".join(problems)
    return document


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@functools.cache
def _validators() -> dict[str, Draft202012Validator]:
    """A validator for each command, by the command's name."""
    schemas = {file.name: _strict(json.loads(file.read_text())) for file in SCHEMAS.glob("*.schema.json")}
    registry: Registry[Any] = Registry().with_resources(
        (name, Resource.from_contents(schema)) for name, schema in schemas.items()
    )
    return {
        name.removesuffix(".schema.json"): Draft202012Validator(schema, registry=registry)
        for name, schema in schemas.items()
    }


def _strict(schema: Any) -> Any:
    """A schema that allows no keys but those that it describes, so that each new key must be described."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    return {"additionalProperties": False, **strict} if "properties" in schema else strict

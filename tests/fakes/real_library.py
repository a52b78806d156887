"""A stand-in for a library compared with the library itself: the same names, the same parameters."""

from __future__ import annotations

import ast
import enum
import inspect
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def resolved(root: Any, path: str) -> Any:
    """What a dotted path leads to."""
    for name in path.split("."):
        root = getattr(root, name)
    return root


def assert_alike(ours: type, theirs: Any) -> None:
    """A class of the stand-in has no name that the real one has not, and every method its parameters."""
    name = ours.__name__
    if issubclass(ours, enum.Enum):
        assert set(ours.__members__) <= set(theirs.__members__)
    for attribute, value in vars(ours).items():
        if attribute.startswith("_") or isinstance(value, enum.Enum):
            continue
        real_value = inspect.getattr_static(theirs, attribute, None)
        assert real_value is not None, f"{name}.{attribute}"
        if inspect.isfunction(value):
            assert parameters(value) == documented(getattr(theirs, attribute)), f"{name}.{attribute}"
        elif not inspect.isclass(value):
            assert isinstance(real_value, property), f"{name}.{attribute}"


def parameters(function: Any) -> list[tuple[str, bool]]:
    """Names, and whether they may be left out."""
    signature = inspect.signature(function)
    return [(name, value.default is not inspect.Parameter.empty) for name, value in signature.parameters.items()]


def documented(function: Any) -> list[tuple[str, bool]]:
    """The same of a compiled function, whose documentation begins with its signature, or that of its first form."""
    text = function.__doc__.strip()
    found = re.match(r"(?:.*\nOverloaded function\.\n\n1\. )?\w+\((.*)\) -> ", text)
    assert found, text
    return [(part.split(":")[0].strip(), "=" in part) for part in found[1].split(", ")]


def used_names(holders: Mapping[str, str], *modules: ModuleType) -> set[str]:
    """The dotted names that `modules` read of and write to a library, by their source.

    `holders` are the variables that hold an object of the library, and which.
    """
    used = set()
    for node in (node for module in modules for node in ast.walk(ast.parse(inspect.getsource(module)))):
        names, holder = list[str](), node
        while isinstance(holder, ast.Attribute):
            names.insert(0, holder.attr)
            holder = holder.value
        if isinstance(holder, ast.Name) and names:
            path = [holder.id, *names] if holder.id != "self" else names
            if path[0] in holders and len(path) > 1:
                used.add(".".join(filter(None, [holders[path[0]], *path[1:]])))
    return used


def variables(*modules: ModuleType) -> set[str]:
    """The names of variables and attributes in the source of `modules`."""
    nodes = [node for module in modules for node in ast.walk(ast.parse(inspect.getsource(module)))]
    return {node.id for node in nodes if isinstance(node, ast.Name)} | {
        node.attr for node in nodes if isinstance(node, ast.Attribute)
    }

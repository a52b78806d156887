"""Reading of what `torch.save` writes, without running or importing anything that the file names.

A checkpoint holds more than tensors: arguments with paths, enumerations and numpy numbers, callbacks of a training
library. None of these classes is imported. Numpy numbers become Python numbers, a namespace stays one, and any other
object becomes a `StandIn` that keeps its state. A name that belongs to no such object, such as that of a function of
the standard library, is refused: only an attack, or a program, has it.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import pickle
import re
import struct
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

from runtime.errors import CheckpointError
from runtime.storage.download_placeholders import placeholder
from training.checkpoints.sharded_checkpoints import refuse_sharded_file
from training.checkpoints.zip_archives import is_archive, member_names

_MOST_NAMES = 200

# Libraries of which only these modules or classes stand for data; of other libraries, every class does.
_WATCHED = ("torch", "numpy", *sys.stdlib_module_names)
_DATA = (
    *("argparse", "collections", "copyreg", "datetime", "decimal", "enum", "fractions", "ipaddress", "pathlib"),
    *("types.SimpleNamespace", "types.MappingProxyType", "typing.Any", "uuid", "zoneinfo"),
    *(f"builtins.{name}" for name in ("bytes", "dict", "float", "frozenset", "getattr", "int", "list", "object")),
    *(f"builtins.{name}" for name in ("bool", "range", "slice", "str", "tuple", "type")),
    *(f"numpy.{name}" for name in ("_core.multiarray", "core.multiarray", "dtype", "dtypes", "ndarray")),
    *("numpy.random", "numpy._core.numeric", "numpy.core.numeric"),
    *(f"numpy.{name}" for name in ("bool", "bool_", *(f"{k}{b}" for k in ("int", "uint", "float") for b in (8, 16)))),
    *(f"numpy.{kind}{bits}" for kind in ("int", "uint", "float") for bits in (32, 64)),
    *("torch.amp", "torch.cuda.amp", "torch.memory_format", "torch.nn", "torch.optim", "torch._C.Generator"),
    "torch.distributed.fsdp",
)

# The numpy numbers that are read, by dtype; each format begins with the byte order.
_FORMATS = {"b1": "?", "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q"}
_FORMATS |= {"f2": "e", "f4": "f", "f8": "d"}


class StandIn:
    """An object of a class that is not imported. Its state, where it has one, is its attributes.

    Attributes:
        class_name: The full name of the class; on the class itself.
    """

    class_name = ""

    def __new__(cls, *arguments: object, **options: object) -> StandIn:
        """Return an object, whatever its class would be made from."""
        return object.__new__(cls)

    def __repr__(self) -> str:
        module, _, name = self.class_name.rpartition(".")
        return f"<{name} of {module}>"  # the name first, since messages cut long values

    def __setstate__(self, state: object) -> None:
        """Keep a state of named values."""
        if isinstance(state, dict) and all(isinstance(name, str) for name in state):
            self.__dict__.update(state)


class _Mapping(StandIn):
    """A class whose objects are mappings."""

    def __new__(cls, *arguments: object, **options: object) -> Any:
        return collections.OrderedDict()


class _Sequence(StandIn):
    """A class whose objects are sequences."""

    def __new__(cls, *arguments: object, **options: object) -> Any:
        return []


class _NumpyDtype:
    """A numpy dtype of a number: its kind and size as text, and the byte order once its state is set."""

    def __init__(self, text: object = "", *arguments: object) -> None:
        self.text, self.order = str(text), "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


def _numpy_number(dtype: object, content: object = b"") -> Any:
    """Return the Python number that the bytes of a numpy scalar stand for, or a stand-in."""
    if isinstance(content, str):
        content = content.encode("latin-1", "replace")
    if isinstance(dtype, _NumpyDtype) and isinstance(content, bytes) and dtype.text in _FORMATS:
        layout = dtype.order + _FORMATS[dtype.text]
        if len(content) == struct.calcsize(layout):
            return struct.unpack(layout, content)[0]
    return StandIn()


_KNOWN: dict[str, Callable[..., Any]] = {
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": argparse.Namespace,
    "collections.defaultdict": _Mapping,
    "numpy.dtype": _NumpyDtype,
    "numpy.core.multiarray.scalar": _numpy_number,
    "numpy._core.multiarray.scalar": _numpy_number,
}


def read_pickle(path: pathlib.Path) -> Any:
    """Read a file of `torch.save`: tensors, plain values, and stand-ins for all other objects.

    Raises:
        CheckpointError: The file is missing or damaged, or it holds what only a program has.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    if (what := placeholder(path)) is not None:
        raise CheckpointError(f"{path}: {what}")
    refuse_sharded_file(path)
    mapped = is_archive(path)
    allowed: dict[str, Callable[..., Any]] = dict(_KNOWN)
    while True:
        try:
            pairs: list[Any] = [(function, name) for name, function in allowed.items()]
            with torch.serialization.safe_globals(pairs), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about an unknown format; torch.load raises an error for it anyway
                # Files from before PyTorch 1.6 are not zip archives and cannot be mapped.
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            if not _allow_more(allowed, str(error), path) or len(allowed) > _MOST_NAMES:
                raise CheckpointError(f"{path}: not a PyTorch checkpoint, or not one of tensors alone") from error
        except Exception as error:  # damaged bytes can raise any exception in torch.load
            raise CheckpointError(f"{path}: {_unreadable(path)}") from error


def _unreadable(path: pathlib.Path) -> str:
    """Return what a file is that PyTorch does not read, and what to do."""
    names = member_names(path)
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript program, not weights; torch.save the state_dict() of the model where it was made"
    if names and not any(name.endswith("/data.pkl") for name in names):
        return "a zip archive, not weights; unpack it and give what is in it"
    return "not a complete PyTorch checkpoint; copy it again"


def _allow_more(allowed: dict[str, Callable[..., Any]], refusal: str, path: pathlib.Path) -> bool:
    """Add a stand-in for what PyTorch refused to read; return whether there is one.

    Raises:
        CheckpointError: What was refused is no data.
    """
    if match := re.search(r"GLOBAL ([\w.<>]+)", refusal):
        name = match[1] if "." in match[1] else f"builtins.{match[1]}"  # PyTorch leaves it out
        if not _is_data(name):
            raise CheckpointError(
                f"{path}: refused, it holds {match[1]}, which is no tensor and could run code when read"
            )
        kind: type[StandIn] = StandIn
    elif match := re.search(r"Can only (SETITEM|append|extend).*stand-in\.([\w.<>]+)'", refusal):
        name, kind = match[2], _Mapping if match[1] == "SETITEM" else _Sequence
    else:
        return False
    if isinstance(earlier := allowed.get(name), type) and issubclass(earlier, kind):
        return False
    allowed[name] = type(name, (kind,), {"__module__": "stand-in", "class_name": name})
    return True


def _is_data(name: str) -> bool:
    """Return whether a name is that of a class whose objects are data, as far as the name shows."""
    library = name.split(".", maxsplit=1)[0]
    return library not in _WATCHED or any(name == known or name.startswith(f"{known}.") for known in _DATA)

"""What a fuzzed surface is: something that is read from files, with a right result."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class WrongResultError(Exception):
    """A result that is neither the right one nor an error."""


@dataclasses.dataclass(frozen=True)
class Surface:
    """Something that is read.

    Attributes:
        make: Makes its files in an empty folder.
        files: The patterns of the files that are changed.
        read: Reads it, and returns what a user would get.
        exact: Whether every change must give the same result or an error, because hashes protect it. Otherwise other
            values are legitimate, and only `read` tells wrong ones.
    """

    make: Callable[[pathlib.Path], None]
    files: tuple[str, ...]
    read: Callable[[pathlib.Path], bytes]
    exact: bool = False


def digest(*values: Any) -> bytes:
    """A hash of arrays, tensors and plain values."""
    result = hashlib.sha256()
    for each in values:
        value = each.detach().numpy() if isinstance(each, torch.Tensor) else each
        if isinstance(value, np.ndarray):
            result.update(f"{value.dtype} {value.shape}".encode())
            result.update(np.ascontiguousarray(value).tobytes())
        else:
            result.update(pickle.dumps(value))
    return result.digest()

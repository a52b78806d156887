"""What runs an engine. A backend is imported only when it is asked for."""

from __future__ import annotations

import importlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from runtime.errors import RequestError
from runtime.spec import EngineSpec

Array = NDArray[Any]

# An engine takes its spec's inputs by name and returns its outputs in the spec's order.
Engine = Callable[..., tuple[Array, ...]]


class Backend(Protocol):
    """Loads engines for one device.

    `description` names library, version and device for people; `precisions` are those of
    `runtime.artifact.PRECISIONS` that it has products for.
    """

    description: str
    precisions: Sequence[str]

    def load(self, path: pathlib.Path, spec: EngineSpec) -> Engine:
        """The engine in the verified file at `path`. Raises `BackendError`."""

    def close(self) -> None:
        """Free every engine loaded here; they must not be called afterwards."""


_BACKENDS = {"onnxruntime": "runtime.backends.onnxruntime:OnnxRuntime"}


def available_threads() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_backend(name: str, device: str, threads: int | None) -> Backend:
    """The backend called `name` on `device`, with `threads` processor threads (all there are, if None)."""
    if name not in _BACKENDS:
        raise RequestError(f"unknown backend {name!r}; this version has {', '.join(_BACKENDS)}")
    if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
        raise RequestError(f"threads must be a whole number in 1..1024, found {threads!r}")
    module, attribute = _BACKENDS[name].split(":")
    backend: Backend = getattr(importlib.import_module(module), attribute)(device, threads or available_threads())
    return backend

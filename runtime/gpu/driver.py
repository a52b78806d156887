"""The library of NVIDIA's driver, called by name.

Through ctypes and not a package: it is there wherever a GPU is, on every Python and on Jetson too, and
what this project needs of it is a page of calls. Under CUDA graphs there are few of them an image.
"""

from __future__ import annotations

import ctypes
from typing import Any

from runtime.errors import BackendError

_LIBRARY = "libcuda.so.1"


class Driver:
    """Calls functions of the driver; a status other than success is a `BackendError` with its reason."""

    def __init__(self, library: Any = None) -> None:
        """`library` is the driver's own where None; `BackendError` where there is none."""
        if library is None:
            try:
                library = ctypes.CDLL(_LIBRARY)  # which lets other threads run while it is called
            except OSError:
                raise BackendError(f"no NVIDIA GPU here: {_LIBRARY}, a part of its driver, is not installed") from None
        self._library = library
        self("cuInit", 0)

    def __call__(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            told = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(told))
            reason = (told.value or b"unknown error").decode()
            raise BackendError(f"{function.partition('_v')[0]} failed: {reason} ({status})")

    def device(self) -> ctypes.c_int:
        """The first GPU. `BackendError` where there is none."""
        count, device = ctypes.c_int(), ctypes.c_int()
        self("cuDeviceGetCount", ctypes.byref(count))
        if count.value < 1:
            raise BackendError("no NVIDIA GPU here: its driver is installed, but finds none")
        self("cuDeviceGet", ctypes.byref(device), 0)
        return device

    def attribute(self, device: ctypes.c_int, which: int) -> int:
        value = ctypes.c_int()
        self("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

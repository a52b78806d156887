"""NVIDIA's driver API, called by function names through ctypes.

It needs no Python package: the library is installed wherever a GPU is, also on Jetson, and works with every version of
Python. This project needs only a few of its functions. With CUDA graphs an image needs only few calls of them, so the
slowness of ctypes does not matter.
"""

from __future__ import annotations

import ctypes
from typing import Any

from runtime.errors import BackendError

_LIBRARY = "libcuda.so.1"


class Driver:
    """Calls functions of the driver by name: `driver("cuMemAlloc_v2", ...)`.

    A call raises `BackendError` with the driver's reason if its status is not success.
    """

    def __init__(self, library: Any = None) -> None:
        """Load the driver and initialize it.

        Args:
            library: The library to call; by default the installed driver's.

        Raises:
            BackendError: The driver is not installed, or does not initialize.
        """
        if library is None:
            try:
                library = ctypes.CDLL(_LIBRARY)  # CDLL, not PyDLL: other threads run while it is called
            except OSError:
                raise BackendError(f"no NVIDIA GPU here: {_LIBRARY}, a part of its driver, is not installed") from None
        self._library = library
        self("cuInit", 0)

    def __call__(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Args:
            function: Its name in the library, such as `cuMemAlloc_v2`.
            arguments: Its arguments, as ctypes objects or numbers.

        Raises:
            BackendError: Its status is not success.
        """
        status = getattr(self._library, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            reason = (text.value or b"unknown error").decode()
            raise BackendError(f"{function.partition('_v')[0]} failed: {reason} ({status})")

    def device(self) -> ctypes.c_int:
        """Return the handle of the first GPU.

        Raises:
            BackendError: The driver finds no GPU.
        """
        count, device = ctypes.c_int(), ctypes.c_int()
        self("cuDeviceGetCount", ctypes.byref(count))
        if count.value < 1:
            raise BackendError("no NVIDIA GPU here: its driver is installed, but finds none")
        self("cuDeviceGet", ctypes.byref(device), 0)
        return device

    def attribute(self, device: ctypes.c_int, which: int) -> int:
        """Return an attribute of a GPU; `which` is a number of the driver's enumeration CUdevice_attribute."""
        value = ctypes.c_int()
        self("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

"""The NVIDIA GPU of this machine, asked of its driver.

Through ctypes and not a package: the driver's library is there wherever a GPU is, on every Python and on
Jetson too, and a question or two need no more.
"""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

from runtime.errors import BackendError

_DRIVER = "libcuda.so.1"
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR, _INTEGRATED


@dataclasses.dataclass(frozen=True)
class Gpu:
    """`architecture` such as `sm_87`; `cuda` the newest CUDA its driver serves, such as `12.6`.

    `shared_memory` is whether processor and GPU have the same, as on Jetson.
    """

    name: str
    architecture: str
    memory_bytes: int
    cuda: str
    shared_memory: bool


def present_gpu(driver: Any = None) -> Gpu:
    """The first GPU, by `driver`, its library. Raises `BackendError` where there is none."""
    if driver is None:
        try:
            driver = ctypes.CDLL(_DRIVER)
        except OSError:
            raise BackendError(f"no NVIDIA GPU here: {_DRIVER}, a part of its driver, is not installed") from None
    _checked(driver, driver.cuInit(0), "cuInit")
    version, count, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _checked(driver, driver.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    _checked(driver, driver.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    if count.value < 1:
        raise BackendError("no NVIDIA GPU here: its driver is installed, but finds none")
    _checked(driver, driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    _checked(driver, driver.cuDeviceGetName(name, len(name), device), "cuDeviceGetName")
    _checked(driver, driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device), "cuDeviceTotalMem")
    major, minor, integrated = (_attribute(driver, device, which) for which in (_MAJOR, _MINOR, _INTEGRATED))
    return Gpu(
        name=name.value.decode(),
        architecture=f"sm_{major}{minor}",
        memory_bytes=memory.value,
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
        shared_memory=bool(integrated),
    )


def _attribute(driver: Any, device: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int()
    _checked(driver, driver.cuDeviceGetAttribute(ctypes.byref(value), which, device), "cuDeviceGetAttribute")
    return value.value


def _checked(driver: Any, status: int, call: str) -> None:
    if status:
        told = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(told))
        raise BackendError(f"{call} failed: {(told.value or b'unknown error').decode()} ({status})")

"""The NVIDIA GPU of this machine, asked of its driver."""

from __future__ import annotations

import ctypes
import dataclasses

from runtime.gpu.driver import Driver

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
INTEGRATED = 18  # CU_DEVICE_ATTRIBUTE_INTEGRATED: whether its memory is the processor's

# The oldest architecture with products of a precision (NVIDIA's support matrix of TensorRT).
_SINCE = {"fp32": 50, "fp16": 53, "int8": 61, "bf16": 80, "w8": 80, "w4": 80, "fp8": 89}


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

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that it has products for."""
        return precisions_of(self.architecture)


def precisions_of(architecture: str) -> tuple[str, ...]:
    """The precisions that GPUs of an architecture such as `sm_87` have products for."""
    return tuple(name for name, since in _SINCE.items() if int(architecture.removeprefix("sm_")) >= since)


def current_gpu(driver: Driver | None = None) -> Gpu:
    """The first GPU, by its driver. Raises `BackendError` where there is none."""
    driver = driver or Driver()
    version = ctypes.c_int()
    driver("cuDriverGetVersion", ctypes.byref(version))
    device = driver.device()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver("cuDeviceGetName", name, len(name), device)
    driver("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    major, minor, integrated = (driver.attribute(device, which) for which in (_MAJOR, _MINOR, INTEGRATED))
    return Gpu(
        name=name.value.decode(),
        architecture=f"sm_{major}{minor}",
        memory_bytes=memory.value,
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
        shared_memory=bool(integrated),
    )

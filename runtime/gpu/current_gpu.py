"""The NVIDIA GPU of this machine, as its driver describes it."""

from __future__ import annotations

import ctypes
import dataclasses

from runtime.gpu.driver import Driver

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
INTEGRATED = 18  # CU_DEVICE_ATTRIBUTE_INTEGRATED: whether processor and GPU share their memory

# For each precision the oldest architecture that has matrix products in it (NVIDIA's support matrix of TensorRT).
_SINCE = {"fp32": 50, "fp16": 53, "int8": 61, "bf16": 80, "w8": 80, "w4": 80, "fp8": 89}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU and its driver.

    Attributes:
        name: The name of the product, such as `Orin`.
        architecture: The compute capability, such as `sm_87`.
        memory_bytes: Total memory in bytes.
        cuda: The newest version of CUDA that the driver supports, such as `12.6`.
        shared_memory: Whether processor and GPU share their memory, as on Jetson.
    """

    name: str
    architecture: str
    memory_bytes: int
    cuda: str
    shared_memory: bool

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions in which this GPU has matrix products."""
        return precisions_of(self.architecture)


def precisions_of(architecture: str) -> tuple[str, ...]:
    """Return the precisions in which GPUs of an architecture, such as `sm_87`, have matrix products."""
    return tuple(name for name, since in _SINCE.items() if int(architecture.removeprefix("sm_")) >= since)


def current_gpu(driver: Driver | None = None) -> Gpu:
    """Describe the first GPU of this machine.

    Args:
        driver: The driver to call; by default the one that is installed.

    Raises:
        BackendError: There is no GPU or no driver.
    """
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

"""The description of the GPU by its driver, and the errors without driver or GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from runtime.errors import BackendError
from runtime.gpu.current_gpu import Gpu, current_gpu
from runtime.gpu.driver import Driver

CALLS = (
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetAttribute",
)


class Library:
    """libcuda with one GPU: writes through the pointers it is given, as the real one does."""

    def __init__(self, **changes: Any) -> None:
        self.name, self.memory, self.version, self.count = b"Orin", 7 * 2**30 + 5, 12060, 1
        self.attributes = {75: 8, 76: 7, 18: 1}  # major, minor, integrated
        self.failing: dict[str, int] = {}
        self.message: bytes | None = b"no CUDA-capable device is detected"
        vars(self).update(changes)

    def _status(self, call: str) -> int:
        return self.failing.get(call, 0)

    def cuInit(self, flags: int) -> int:  # noqa: N802
        assert flags == 0
        return self._status("cuInit")

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.version
        return self._status("cuDriverGetVersion")

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return self._status("cuDeviceGetCount")

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        assert ordinal == 0
        device._obj.value = 4
        return self._status("cuDeviceGet")

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:  # noqa: N802
        assert device.value == 4
        name.value = self.name[: length - 1]
        return self._status("cuDeviceGetName")

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:  # noqa: N802
        assert device.value == 4
        assert isinstance(memory._obj, ctypes.c_size_t)
        memory._obj.value = self.memory
        return self._status("cuDeviceTotalMem_v2")

    def cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> int:  # noqa: N802
        assert device.value == 4
        value._obj.value = self.attributes[which]
        return self._status("cuDeviceGetAttribute")

    def cuGetErrorString(self, status: int, text: Any) -> int:  # noqa: N802
        text._obj.value = self.message
        return 0 if self.message is not None else 1


def opened(**changes: Any) -> Driver:
    return Driver(Library(**changes))


def test_the_gpu_is_described_by_its_driver() -> None:
    assert current_gpu(opened()) == Gpu("Orin", "sm_87", 7 * 2**30 + 5, "12.6", shared_memory=True)


@pytest.mark.parametrize(
    ("major", "minor", "architecture"), [(5, 3, "sm_53"), (7, 5, "sm_75"), (9, 0, "sm_90"), (12, 1, "sm_121")]
)
def test_the_architecture_is_named_by_major_and_minor(major: int, minor: int, architecture: str) -> None:
    assert current_gpu(opened(attributes={75: major, 76: minor, 18: 0})).architecture == architecture


@pytest.mark.parametrize(("version", "text"), [(11080, "11.8"), (12000, "12.0"), (13020, "13.2"), (12110, "12.11")])
def test_the_version_of_cuda_is_read_from_its_number(version: int, text: str) -> None:
    assert current_gpu(opened(version=version)).cuda == text


@pytest.mark.parametrize("integrated", [0, 1])
def test_memory_is_shared_only_where_the_gpu_is_integrated(integrated: int) -> None:
    gpu = current_gpu(opened(attributes={75: 8, 76: 9, 18: integrated}))
    assert gpu.shared_memory is bool(integrated)


def test_memory_of_more_than_four_gigabytes_is_counted_completely() -> None:
    assert current_gpu(opened(memory=141 * 2**30)).memory_bytes == 141 * 2**30


@pytest.mark.parametrize("call", CALLS)
def test_the_status_of_every_call_is_checked(call: str) -> None:
    with pytest.raises(BackendError) as caught:
        current_gpu(opened(failing={call: 100}))
    assert str(caught.value) == f"{call.removesuffix('_v2')} failed: no CUDA-capable device is detected (100)"


def test_a_status_without_a_text_is_reported_by_its_number() -> None:
    with pytest.raises(BackendError, match=r"^cuInit failed: unknown error \(-7\)$"):
        current_gpu(opened(failing={"cuInit": -7}, message=None))


def test_a_driver_without_a_gpu_is_an_error() -> None:
    with pytest.raises(BackendError, match="no NVIDIA GPU here: its driver is installed, but finds none"):
        current_gpu(opened(count=0))


def cdll(answer: Callable[[], Any]) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        assert name == "libcuda.so.1"
        return answer()

    return load


def test_the_library_of_the_driver_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", cdll(Library))
    assert current_gpu().name == "Orin"


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> NoReturn:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", cdll(missing))
    with pytest.raises(BackendError) as caught:
        current_gpu()
    assert str(caught.value) == "no NVIDIA GPU here: libcuda.so.1, a part of its driver, is not installed"

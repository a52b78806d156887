"""The driver's functions and structures that the runtime uses are those of the real driver's headers."""

from __future__ import annotations

import ctypes
import importlib
import inspect
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from runtime.gpu import cuda as cuda_module
from runtime.gpu import current_gpu as current_gpu_module
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.helpers.driver_calls import CALLS, SHARED_ONLY, Scenario, error_of
from tests.helpers.simulated_gpu import install_cuda

OLDER = {"cuEventElapsedTime": "cuEventElapsedTime_v2"}  # drivers before CUDA 12.8 have only the one, all have it


@pytest.fixture(scope="module")
def real() -> Any:
    """The real driver's headers, as the package cuda-bindings has them."""
    if sys.platform != "linux":
        pytest.importorskip("cuda.bindings")
    return importlib.import_module("cuda.bindings.driver")


@pytest.fixture(scope="module")
def declared(real: Any) -> dict[str, list[str]]:
    """The C types of what every exported function takes."""
    text = (pathlib.Path(real.__file__).parent / "_internal" / "driver.pxd").read_text()
    found = re.findall(r"^cdef CUresult _(cu\w+)\((.*?)\) except", text, re.MULTILINE)
    return {name: [re.sub(r"\s*\w+$", "", part) for part in taken.split(", ") if part] for name, taken in found}


def test_the_functions_that_are_called_are_found_in_the_source() -> None:
    assert {"cuInit", "cuMemAlloc_v2", "cuGetErrorString", "cuGraphLaunch", SHARED_ONLY} <= set(CALLS)


@pytest.mark.parametrize("function", CALLS)
def test_every_called_function_is_exported_by_the_real_driver(declared: dict[str, list[str]], function: str) -> None:
    takes = declared[OLDER.get(function, function)]
    simulated = inspect.signature(getattr(SimulatedCuda, function)).parameters
    assert len(simulated) - 1 == len(takes)


BYTES = {"int": 4, "unsigned int": 4, "unsigned char": 1, "size_t": 8, "unsigned long long": 8, "CUdeviceptr": 8}
BYTES |= {
    "float": 4,
    "CUresult": 4,
    "CUdevice": 4,
    "CUdevice_attribute": 4,
    "CUstreamCaptureMode": 4,
    "CUDA_MEMCPY2D": 128,
}
BYTES |= dict.fromkeys(("CUcontext", "CUstream", "CUgraph", "CUgraphExec", "CUevent", "void*", "char*"), 8)


class Checked:
    """Passes calls on to the simulation once every argument has the size that the real function reads."""

    def __init__(self, cuda: SimulatedCuda, declared: dict[str, list[str]]) -> None:
        self._cuda, self._declared = cuda, declared
        self.seen: set[str] = set()

    def __getattr__(self, function: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.seen.add(function)
            for kind, argument in zip(self._declared[OLDER.get(function, function)], arguments, strict=True):
                self._check(f"{function}: {kind}", kind.removeprefix("const ").strip(), argument)
            status: int = getattr(self._cuda, function)(*arguments)
            return status

        return call

    def _check(self, what: str, kind: str, argument: Any) -> None:
        if kind.endswith("*") and hasattr(argument, "_obj"):  # made by ctypes.byref
            assert ctypes.sizeof(argument._obj) == BYTES[kind[:-1]], what
        elif kind == "char*":
            assert isinstance(argument, ctypes.Array), what
        elif kind.endswith("*"):
            assert isinstance(argument, ctypes.c_void_p), what
        elif isinstance(argument, int):  # which ctypes passes as a C int
            assert BYTES[kind] == 4, what
        else:
            assert ctypes.sizeof(argument) == BYTES[kind], what


def test_arguments_have_the_sizes_that_the_real_functions_read(
    built_artifacts: dict[str, pathlib.Path], declared: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for shared in (False, True):
        cuda = SimulatedCuda(shared)
        checked = Checked(cuda, declared)
        scenario = Scenario(built_artifacts["small"], monkeypatch, cuda)
        install_cuda(monkeypatch, checked)
        for phase in Scenario.phases:
            getattr(scenario, phase)()
        cuda.failing["cuInit"] = (0, 1)
        assert error_of(scenario.load) == "cuInit failed: error 1 (1)"
        seen |= checked.seen
    assert seen == set(CALLS)


def test_the_structure_of_a_2d_copy_has_the_layout_of_the_real_one(real: Any) -> None:
    assert real.sizeof(real.CUDA_MEMCPY2D) == ctypes.sizeof(cuda_module._Copy2D) == 128
    fields = {name: number for number, (name, *_) in enumerate(cuda_module._Copy2D._fields_, start=3)}
    theirs = real.CUDA_MEMCPY2D()
    assert fields.keys() == {name for name in dir(theirs) if name[0] != "_"} - {"getPtr"}
    types = {"MemoryType": real.CUmemorytype, "Device": real.CUdeviceptr, "Array": real.CUarray}
    kinds = dict.fromkeys(("srcMemoryType", "dstMemoryType"))
    for number, name in enumerate(kinds, start=1):
        fields[name] = number
    for name, value in fields.items():
        setattr(theirs, name, types.get(name[3:], int)(value))
    ours = cuda_module._Copy2D.from_address(theirs.getPtr())
    assert {name: getattr(ours, name) for name in fields} == fields


def test_constants_are_those_of_the_headers(real: Any) -> None:
    assert cuda_module._NON_BLOCKING == real.CUstream_flags.CU_STREAM_NON_BLOCKING
    assert cuda_module._MAPPED == real.CU_MEMHOSTALLOC_DEVICEMAP
    assert cuda_module._DEVICE == real.CUmemorytype.CU_MEMORYTYPE_DEVICE
    assert cuda_module._THREAD_LOCAL == real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    attribute = real.CUdevice_attribute
    assert current_gpu_module._MAJOR == attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    assert current_gpu_module._MINOR == attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
    assert current_gpu_module.INTEGRATED == attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED

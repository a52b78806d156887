"""The calls of the driver: what becomes of each that fails, and that all of them are as the real driver has them."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import importlib
import inspect
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.gpu import cuda as cuda_module
from runtime.gpu import current_gpu as present
from runtime.gpu.clock import StageClock
from runtime.gpu.cuda import Cuda
from tests.fakes.simulated_cuda import SimulatedCuda
from tests.helpers.simulated_gpu import install_cuda, install_tensorrt, left_on

LABELS = [2, 0]
REQUEST: dict[str, Any] = {"iterations": 2, "diffusion_steps": 2, "cfg_scale": 2.0}
STATUS = 7
FREED_BY = {  # what stays where a call fails
    "cuMemFree_v2": "device",
    "cuMemFreeHost": "host",
    "cuStreamDestroy_v2": "stream",
    "cuGraphDestroy": "graph",
    "cuGraphExecDestroy": "executable",
    "cuDevicePrimaryCtxRelease_v2": "context",
    "cuEventDestroy_v2": "event",
}
SHARED_ONLY = "cuMemHostGetDevicePointer_v2"
OLDER = {"cuEventElapsedTime": "cuEventElapsedTime_v2"}  # drivers before CUDA 12.8 have only the one, all have it


def driver_calls() -> list[str]:
    """The functions that the runtime calls, read from its source."""
    names = set()
    for path in pathlib.Path(cuda_module.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            value = node.value if isinstance(node, ast.Constant) else getattr(node, "attr", None)
            if isinstance(value, str) and re.fullmatch(r"cu[A-Z]\w+", value):
                names.add(value)
    return sorted(names)


CALLS = driver_calls()


def named(function: str) -> str:
    """As errors call it."""
    return function.partition("_v")[0]


class Scenario:
    """A generator from its beginning to its end, phase by phase."""

    phases = ("load", "generate", "replay", "call", "timed", "close")

    def __init__(self, path: pathlib.Path, patch: pytest.MonkeyPatch, cuda: SimulatedCuda) -> None:
        install_cuda(patch, cuda)
        install_tensorrt(patch, cuda)
        self._path, self._close = path, contextlib.ExitStack()

    def load(self) -> None:
        self._generator = self._close.enter_context(Generator.load(self._path, backend="tensorrt"))

    def generate(self) -> bytes:
        return self._generator.generate(LABELS, **REQUEST).latents.tobytes()

    replay = generate

    def call(self) -> None:
        z = np.zeros((1, self._generator.manifest.model.decoder_embed_dim), np.float32)
        self._generator.engines.conditioning(z=z, timesteps=np.ones(1, np.float32))

    def timed(self) -> None:
        loop: Any = self._generator.loop
        loop.clock = clock = StageClock(loop.cuda)
        try:
            self.generate()
        except BackendError:
            with contextlib.suppress(BackendError):
                clock.seconds()  # which gives the marks back
            raise
        finally:
            loop.clock = None
        seconds = clock.seconds()
        assert seconds.keys() == {"upload", "backbone", "head"}
        loop.cuda.memory_used()

    def close(self) -> None:
        self._close.close()


@pytest.fixture(scope="module")
def expected(golden_artifacts: dict[str, pathlib.Path]) -> bytes:
    """What the host draws."""
    with Generator.load(golden_artifacts["small"], threads=1) as host:
        return host.generate(LABELS, **REQUEST).latents.tobytes()


@pytest.fixture(scope="module")
def told(built_artifacts: dict[str, pathlib.Path]) -> dict[bool, dict[str, list[str]]]:
    """What the driver is told in each phase where nothing fails, with memory of its own and shared."""
    told: dict[bool, dict[str, list[str]]] = {}
    for shared in (False, True):
        cuda = SimulatedCuda(shared)
        with pytest.MonkeyPatch.context() as patch:
            scenario, told[shared] = Scenario(built_artifacts["small"], patch, cuda), {}
            for phase in Scenario.phases:
                before = len(cuda.history)
                getattr(scenario, phase)()
                told[shared][phase] = cuda.history[before:]
    return told


@pytest.mark.parametrize("lasting", [True, False], ids=["from then on", "once"])
@pytest.mark.parametrize("function", [name for name in CALLS if name != "cuGetErrorString"])
def test_a_failing_call_is_one_error_and_leaves_nothing_that_could_be_freed(
    built_artifacts: dict[str, pathlib.Path],
    told: dict[bool, dict[str, list[str]]],
    expected: bytes,
    function: str,
    lasting: bool,
) -> None:
    """The first and the last call of every phase fail, in turn."""
    shared = function == SHARED_ONLY
    counts = {phase: told[shared][phase].count(function) for phase in Scenario.phases}
    cases = [(phase, calls) for phase, count in counts.items() for calls in sorted({0, count - 1}) if count]
    assert cases, "never called"
    message = f"{named(function)} failed: error {STATUS} ({STATUS})"
    for case in cases:
        broken, calls = case
        cuda = SimulatedCuda(shared)
        with pytest.MonkeyPatch.context() as patch:
            scenario = Scenario(built_artifacts["small"], patch, cuda)
            for phase in Scenario.phases[: Scenario.phases.index(broken)]:
                getattr(scenario, phase)()
            cuda.failing, cuda.lasting = {function: (calls, STATUS)}, lasting
            assert error_of(getattr(scenario, broken)) == message, case
            if not lasting and broken not in ("load", "close"):
                scenario.call()
                assert scenario.generate() == expected, case
            end = error_of(scenario.close)
            assert end in ((None, message) if lasting else (None,)), case
            left = left_on(cuda)
        kind = FREED_BY.get(function)
        assert set(left) <= {kind}, case
        assert len(left) == (kind is not None) or lasting, case


def error_of(work: Callable[[], Any]) -> str | None:
    try:
        work()
    except BackendError as error:
        return str(error)
    return None


# Graphs.


@pytest.fixture
def opened(cuda: SimulatedCuda) -> Cuda:
    return Cuda()


def broken_work() -> None:
    raise BackendError("an engine failed")


def test_a_failure_while_capturing_ends_the_capture_and_leaves_no_graph(opened: Cuda, cuda: SimulatedCuda) -> None:
    with contextlib.ExitStack() as owner:
        source, to = (opened.memory(8, owner) for _ in range(2))

        def copies_then_fails() -> None:
            opened.copy(to, source, 8)
            broken_work()

        for work in (broken_work, copies_then_fails):
            before = sorted(cuda.leaks)
            with pytest.raises(BackendError, match=r"^an engine failed$"):
                opened.capture(work, owner)
            assert sorted(cuda.leaks) == before
        opened.synchronize()  # which a stream that is captured refuses
        cuda.on_device(source, 8)[...] = 1
        replay = opened.capture(lambda: opened.copy(to, source, 8), owner)
        assert cuda.on_device(to, 8).tolist() == [0xA5] * 8  # captured is not done
        for value in (1, 2):
            cuda.on_device(source, 8)[...] = value
            replay()
            opened.synchronize()
            assert cuda.on_device(to, 8).tolist() == [value] * 8
    opened.close()
    assert cuda.leaks == []


def test_the_error_of_the_work_is_told_and_not_that_of_ending_its_capture(opened: Cuda, cuda: SimulatedCuda) -> None:
    """As where the driver itself gave the capture up: then it has no graph to give."""
    cuda.failing["cuStreamEndCapture"] = (0, 901)
    with contextlib.ExitStack() as owner, pytest.raises(BackendError, match=r"^an engine failed$"):
        opened.capture(broken_work, owner)
    opened.close()
    assert cuda.leaks == []


# Memory.


def test_an_array_that_both_see_begins_with_zeros_there_too(opened: Cuda, cuda: SimulatedCuda) -> None:
    with contextlib.ExitStack() as owner:
        array = opened.pinned_buffer((3, 5), np.int64, owner)
        assert not array.host.any()
        array.host[...] = 1  # before the stream has come to it
        opened.synchronize()
        assert not cuda.on_device(array.address, array.host.nbytes).any()
        array.host[...] = np.arange(15).reshape(3, 5)
        opened.upload(array)
        opened.synchronize()
        assert cuda.on_device(array.address, 120).view(np.int64).tolist() == list(range(15))
        cuda.on_device(array.address, 120).view(np.int64)[...] = 7
        opened.download(array)
        opened.synchronize()
        assert (array.host == 7).all()
    assert sorted(cuda.leaks) == ["context", "stream"]
    opened.close()


def test_nothing_has_a_place_too(opened: Cuda, cuda: SimulatedCuda) -> None:
    with contextlib.ExitStack() as owner:
        array = opened.pinned_buffer((0, 4), np.float32, owner)
        assert array.host.shape == (0, 4)
        assert array.address
        opened.upload(array)
        opened.copy(array.address, array.address, 0)
        opened.download(array)
        opened.synchronize()
        assert not [name for name in cuda.history if name.startswith("cuMemcpy")]
    opened.close()


def test_rows_are_copied_a_pitch_apart_and_what_lies_between_stays(opened: Cuda, cuda: SimulatedCuda) -> None:
    with contextlib.ExitStack() as owner:
        source, to = (opened.memory(30, owner) for _ in range(2))
        cuda.on_device(source, 30)[...] = np.arange(30)
        opened.clear(to, 30)
        opened.copy_rows(to + 1, 7, source + 2, 10, 3, 3)
        opened.synchronize()
        found = np.zeros(30, np.uint8)
        for row in range(3):
            found[1 + 7 * row : 4 + 7 * row] = np.arange(2 + 10 * row, 5 + 10 * row)
        assert cuda.on_device(to, 30).tolist() == found.tolist()
    opened.close()


def test_a_driver_without_a_gpu_leaves_nothing(cuda: SimulatedCuda) -> None:
    cuda.failing["cuStreamCreate"] = (0, 2)
    with pytest.raises(BackendError, match=r"^cuStreamCreate failed: error 2 \(2\)$"):
        Cuda()
    assert cuda.leaks == []


def test_stages_are_timed_by_what_the_stream_did_between_marks(opened: Cuda, cuda: SimulatedCuda) -> None:
    with contextlib.ExitStack() as owner:
        address = opened.memory(64, owner)
        clock = StageClock(opened)
        clock.mark("before")
        for stage, operations in (("a", 3), ("b", 1), ("a", 2)):
            for _ in range(operations):
                opened.clear(address, 8)
            clock.mark(stage)
        opened.synchronize()
        assert clock.seconds() == pytest.approx({"a": (3 + 1 + 2 + 1) / 1e3, "b": (1 + 1) / 1e3})  # and the mark itself
        assert clock.seconds() == {}
        assert opened.memory_used() == 64
    opened.close()
    assert cuda.leaks == []


# Against the real driver's headers, as the package cuda-bindings has them.


@pytest.fixture(scope="module")
def real() -> Any:
    if sys.platform != "linux":
        pytest.importorskip("cuda.bindings")
    return importlib.import_module("cuda.bindings.driver")


@pytest.fixture(scope="module")
def declared(real: Any) -> dict[str, list[str]]:
    """The C types of what every exported function takes."""
    text = (pathlib.Path(real.__file__).parent / "_internal" / "driver.pxd").read_text()
    found = re.findall(r"^cdef CUresult _(cu\w+)\((.*?)\) except", text, re.MULTILINE)
    return {name: [re.sub(r"\s*\w+$", "", part) for part in taken.split(", ") if part] for name, taken in found}


def test_every_function_called_is_found_in_the_source() -> None:
    assert {"cuInit", "cuMemAlloc_v2", "cuGetErrorString", "cuGraphLaunch", SHARED_ONLY} <= set(CALLS)


@pytest.mark.parametrize("function", CALLS)
def test_a_function_is_one_that_the_real_driver_exports(declared: dict[str, list[str]], function: str) -> None:
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


def test_the_description_of_a_copy_is_laid_out_as_the_real_one(real: Any) -> None:
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


def test_numbers_are_those_of_the_header(real: Any) -> None:
    assert cuda_module._NON_BLOCKING == real.CUstream_flags.CU_STREAM_NON_BLOCKING
    assert cuda_module._MAPPED == real.CU_MEMHOSTALLOC_DEVICEMAP
    assert cuda_module._DEVICE == real.CUmemorytype.CU_MEMORYTYPE_DEVICE
    assert cuda_module._THREAD_LOCAL == real.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    attribute = real.CUdevice_attribute
    assert present._MAJOR == attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    assert present._MINOR == attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
    assert present.INTEGRATED == attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED

"""Memory, one stream and graphs of the first GPU, in the driver's own context, which every library here shares."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from runtime.errors import BackendError
from runtime.gpu.current_gpu import INTEGRATED
from runtime.gpu.driver import Driver

# What TensorRT asks of its scratch memory, and what every library's fastest kernels may assume of the rest.
ALIGNMENT = 256  # bytes

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream, nor that for it
_MAPPED = 2  # CU_MEMHOSTALLOC_DEVICEMAP
_DEVICE = 2  # CU_MEMORYTYPE_DEVICE
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile is their own affair


@dataclasses.dataclass(frozen=True)
class PinnedBuffer:
    """An array that both sides see: `host` here, and `address` there once `Cuda.upload` or `download` was called."""

    host: NDArray[Any]
    address: int


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D."""

    _fields_ = [
        ("srcXInBytes", ctypes.c_size_t),
        ("srcY", ctypes.c_size_t),
        ("srcMemoryType", ctypes.c_int),
        ("srcHost", ctypes.c_void_p),
        ("srcDevice", ctypes.c_uint64),
        ("srcArray", ctypes.c_void_p),
        ("srcPitch", ctypes.c_size_t),
        ("dstXInBytes", ctypes.c_size_t),
        ("dstY", ctypes.c_size_t),
        ("dstMemoryType", ctypes.c_int),
        ("dstHost", ctypes.c_void_p),
        ("dstDevice", ctypes.c_uint64),
        ("dstArray", ctypes.c_void_p),
        ("dstPitch", ctypes.c_size_t),
        ("WidthInBytes", ctypes.c_size_t),
        ("Height", ctypes.c_size_t),
    ]


class Cuda:
    """One stream of the first GPU, and what is done on it; every call but `synchronize` returns at once.

    What is made belongs to an `owner` and is freed when that closes. Raises `BackendError` wherever the
    driver tells of a failure.
    """

    def __init__(self, driver: Driver | None = None) -> None:
        self._driver = driver or Driver()
        self._owner, self.closed = contextlib.ExitStack(), False
        device = self._driver.device()
        self._shared = bool(self._driver.attribute(device, INTEGRATED))
        self._context = ctypes.c_void_p()
        self._driver("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._owner.callback(self._driver, "cuDevicePrimaryCtxRelease_v2", device)
        with contextlib.ExitStack() as unless_whole:
            unless_whole.callback(self._owner.close)
            self.activate()
            stream = ctypes.c_void_p()
            self._driver("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
            self._owner.callback(self._driver, "cuStreamDestroy_v2", stream)
            unless_whole.pop_all()
        self._stream = stream

    @property
    def stream(self) -> int:
        """The handle of the stream, as libraries take it."""
        return int(self._stream.value or 0)

    def activate(self) -> None:
        """Make this thread one that may call the driver."""
        if self.closed:
            raise BackendError("an engine was used after its generator was closed")
        self._driver("cuCtxSetCurrent", self._context)

    def memory(self, size: int, owner: contextlib.ExitStack) -> int:
        """The address of `size` bytes on the GPU."""
        address = ctypes.c_uint64()
        self._driver("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        owner.callback(self._driver, "cuMemFree_v2", address)
        return address.value

    def exchange(self, shape: tuple[int, ...], dtype: DTypeLike, owner: contextlib.ExitStack) -> PinnedBuffer:
        """An array of zeros that both sides see; where they share their memory it is one, else two of one size."""
        size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        pointer = ctypes.c_void_p()
        flags = _MAPPED if self._shared else 0
        self._driver("cuMemHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(size), flags)
        owner.callback(self._driver, "cuMemFreeHost", pointer)
        if self._shared:
            address = ctypes.c_uint64()
            self._driver("cuMemHostGetDevicePointer_v2", ctypes.byref(address), pointer, 0)
            there = address.value
        else:
            there = self.memory(size, owner)
            self.clear(there, size)  # not an upload of the zeros here: `host` may be written to at once
        bytes_ = (ctypes.c_uint8 * size).from_address(pointer.value or 0)
        host = np.frombuffer(memoryview(bytes_), np.uint8)[: int(np.prod(shape)) * np.dtype(dtype).itemsize]
        host = host.view(dtype).reshape(shape)
        host[...] = 0
        return PinnedBuffer(host, there)

    def upload(self, array: PinnedBuffer) -> None:
        """Bring what `array.host` holds to the GPU; it must not change before `synchronize`."""
        if not self._shared and array.host.size:
            host = ctypes.c_void_p(array.host.ctypes.data)
            size = ctypes.c_size_t(array.host.nbytes)
            self._driver("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(array.address), host, size, self._stream)

    def download(self, array: PinnedBuffer) -> None:
        """Bring what the GPU holds to `array.host`, which has it after `synchronize`."""
        if not self._shared and array.host.size:
            host = ctypes.c_void_p(array.host.ctypes.data)
            size = ctypes.c_size_t(array.host.nbytes)
            self._driver("cuMemcpyDtoHAsync_v2", host, ctypes.c_uint64(array.address), size, self._stream)

    def copy(self, to: int, source: int, size: int) -> None:
        """Copy `size` bytes within the GPU."""
        if size:
            destination = ctypes.c_uint64(to)
            self._driver(
                "cuMemcpyDtoDAsync_v2", destination, ctypes.c_uint64(source), ctypes.c_size_t(size), self._stream
            )

    def copy_rows(self, to: int, to_pitch: int, source: int, source_pitch: int, size: int, rows: int) -> None:
        """Copy `rows` rows of `size` bytes within the GPU, a pitch apart each."""
        copy = _Copy2D(
            srcMemoryType=_DEVICE,
            srcDevice=source,
            srcPitch=source_pitch,
            dstMemoryType=_DEVICE,
            dstDevice=to,
            dstPitch=to_pitch,
            WidthInBytes=size,
            Height=rows,
        )
        self._driver("cuMemcpy2DAsync_v2", ctypes.byref(copy), self._stream)

    def clear(self, address: int, size: int) -> None:
        """Set `size` bytes to zero."""
        zero = ctypes.c_ubyte(0)
        self._driver("cuMemsetD8Async", ctypes.c_uint64(address), zero, ctypes.c_size_t(size), self._stream)

    def captured(self, work: Callable[[], None], owner: contextlib.ExitStack) -> Callable[[], None]:
        """What `work` puts on the stream, as a graph: calling it does all of that at once, and again."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._driver("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        try:
            work()
        except BaseException:
            with contextlib.suppress(Exception):  # what broke the work breaks this too; the stream must not stay so
                self._driver("cuStreamEndCapture", self._stream, ctypes.byref(graph))
                self._driver("cuGraphDestroy", graph)
            raise
        self._driver("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        with contextlib.ExitStack() as until_instantiated:
            until_instantiated.callback(self._driver, "cuGraphDestroy", graph)
            flags = ctypes.c_uint64(0)
            self._driver("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, flags)
            owner.callback(self._driver, "cuGraphExecDestroy", executable)
        return functools.partial(self._driver, "cuGraphLaunch", executable, self._stream)

    def event(self, owner: contextlib.ExitStack) -> ctypes.c_void_p:
        """A moment of the stream: when all that it was given so far is done."""
        event = ctypes.c_void_p()
        self._driver("cuEventCreate", ctypes.byref(event), 0)
        owner.callback(self._driver, "cuEventDestroy_v2", event)
        self._driver("cuEventRecord", event, self._stream)
        return event

    def seconds_between(self, before: ctypes.c_void_p, after: ctypes.c_void_p) -> float:
        """The time from one event to another, both past."""
        milliseconds = ctypes.c_float()
        self._driver("cuEventElapsedTime", ctypes.byref(milliseconds), before, after)
        return milliseconds.value / 1e3

    def memory_used(self) -> int:
        """Bytes of the GPU's memory that anybody uses."""
        free, whole = ctypes.c_size_t(), ctypes.c_size_t()
        self._driver("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(whole))
        return whole.value - free.value

    def synchronize(self) -> None:
        """Wait until everything is done."""
        self._driver("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give the stream and the context back; what owners hold must be freed before."""
        if not self.closed:
            with self._owner:
                self.closed = True
                self._driver("cuCtxSetCurrent", self._context)


def aligned(size: int) -> int:
    """`size` in bytes, rounded up so that what comes next begins where an engine can read."""
    return -(-size // ALIGNMENT) * ALIGNMENT

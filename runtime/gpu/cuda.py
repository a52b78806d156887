"""Memory, one stream and CUDA graphs of the first GPU, in the primary context, which every library here shares."""

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

# In bytes. TensorRT requires it of its scratch memory, and the fastest kernels of every library may assume it.
ALIGNMENT = 256

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: this stream and the default stream do not wait for each other
_MAPPED = 2  # CU_MEMHOSTALLOC_DEVICEMAP
_DEVICE = 2  # CU_MEMORYTYPE_DEVICE
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: calls of other threads do not disturb a capture


@dataclasses.dataclass(frozen=True)
class PinnedBuffer:
    """An array in page-locked host memory, and memory on the GPU for the same array.

    `Cuda.upload` copies the array to the GPU, `Cuda.download` copies it back. Where processor and GPU share their
    memory, both are the same memory and nothing is copied.

    Attributes:
        host: The array on the host.
        address: The address of the array on the GPU.
    """

    host: NDArray[Any]
    address: int


class _Copy2D(ctypes.Structure):
    """The driver's structure CUDA_MEMCPY2D."""

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
    """One stream of the first GPU, and the operations on it.

    Every method except `synchronize` returns before the GPU has done its work. Memory, graphs and events belong to the
    `owner` that is passed, and are freed when it closes. Every method raises `BackendError` if the driver reports a
    failure.

    Attributes:
        closed: Whether `close` was called; nothing may be used afterwards.
    """

    def __init__(self, driver: Driver | None = None) -> None:
        """Create a stream in the primary context of the first GPU.

        Args:
            driver: The driver to call; by default the one that is installed.

        Raises:
            BackendError: There is no GPU, no driver, or the driver reports a failure.
        """
        self._driver = driver or Driver()
        self._owner, self.closed = contextlib.ExitStack(), False
        device = self._driver.device()
        self._shared = bool(self._driver.attribute(device, INTEGRATED))
        self._context = ctypes.c_void_p()
        self._driver("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._owner.callback(self._driver, "cuDevicePrimaryCtxRelease_v2", device)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._owner.close)
            self.activate()
            stream = ctypes.c_void_p()
            self._driver("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
            self._owner.callback(self._driver, "cuStreamDestroy_v2", stream)
            on_failure.pop_all()
        self._stream = stream

    @property
    def stream(self) -> int:
        """The stream's handle, a `cudaStream_t` or `CUstream`, as other libraries accept it."""
        return int(self._stream.value or 0)

    def activate(self) -> None:
        """Make the context current in the calling thread, as every thread that calls the driver must.

        Raises:
            BackendError: `close` was called before.
        """
        if self.closed:
            raise BackendError("an engine was used after its generator was closed")
        self._driver("cuCtxSetCurrent", self._context)

    def memory(self, size: int, owner: contextlib.ExitStack) -> int:
        """Allocate `size` bytes on the GPU, at least one, and return their address."""
        address = ctypes.c_uint64()
        self._driver("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        owner.callback(self._driver, "cuMemFree_v2", address)
        return address.value

    def pinned_buffer(self, shape: tuple[int, ...], dtype: DTypeLike, owner: contextlib.ExitStack) -> PinnedBuffer:
        """Allocate an array of zeros in page-locked host memory, and memory of the same size on the GPU."""
        size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        pointer = ctypes.c_void_p()
        flags = _MAPPED if self._shared else 0
        self._driver("cuMemHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(size), flags)
        owner.callback(self._driver, "cuMemFreeHost", pointer)
        if self._shared:
            address = ctypes.c_uint64()
            self._driver("cuMemHostGetDevicePointer_v2", ctypes.byref(address), pointer, 0)
            on_gpu = address.value
        else:
            on_gpu = self.memory(size, owner)
            self.clear(on_gpu, size)  # not an upload of the zeros: the caller may write to `host` at once
        bytes_ = (ctypes.c_uint8 * size).from_address(pointer.value or 0)
        host = np.frombuffer(memoryview(bytes_), np.uint8)[: int(np.prod(shape)) * np.dtype(dtype).itemsize]
        host = host.view(dtype).reshape(shape)
        host[...] = 0
        return PinnedBuffer(host, on_gpu)

    def upload(self, array: PinnedBuffer) -> None:
        """Copy `array.host` to the GPU. The array must not change before `synchronize` returns."""
        if not self._shared and array.host.size:
            host = ctypes.c_void_p(array.host.ctypes.data)
            size = ctypes.c_size_t(array.host.nbytes)
            self._driver("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(array.address), host, size, self._stream)

    def download(self, array: PinnedBuffer) -> None:
        """Copy the array from the GPU to `array.host`, which is complete after `synchronize`."""
        if not self._shared and array.host.size:
            host = ctypes.c_void_p(array.host.ctypes.data)
            size = ctypes.c_size_t(array.host.nbytes)
            self._driver("cuMemcpyDtoHAsync_v2", host, ctypes.c_uint64(array.address), size, self._stream)

    def copy(self, to: int, source: int, size: int) -> None:
        """Copy `size` bytes from the address `source` to the address `to`, both on the GPU."""
        if size:
            destination = ctypes.c_uint64(to)
            self._driver(
                "cuMemcpyDtoDAsync_v2", destination, ctypes.c_uint64(source), ctypes.c_size_t(size), self._stream
            )

    def copy_rows(self, to: int, to_pitch: int, source: int, source_pitch: int, size: int, rows: int) -> None:
        """Copy rows of bytes within the GPU.

        Args:
            to: Address of the first row of the destination.
            to_pitch: Bytes from the beginning of one row of the destination to the next.
            source: Address of the first row of the source.
            source_pitch: Bytes from the beginning of one row of the source to the next.
            size: Bytes in a row.
            rows: Number of rows.
        """
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
        """Set `size` bytes at `address` on the GPU to zero."""
        zero = ctypes.c_ubyte(0)
        self._driver("cuMemsetD8Async", ctypes.c_uint64(address), zero, ctypes.c_size_t(size), self._stream)

    def capture(self, work: Callable[[], None], owner: contextlib.ExitStack) -> Callable[[], None]:
        """Record the calls that `work` enqueues on the stream as a CUDA graph, without running them.

        Args:
            work: Enqueues the calls. It must not allocate, free or synchronize.
            owner: Frees the graph when it closes.

        Returns:
            A function that enqueues the whole graph, as often as it is called.
        """
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._driver("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        try:
            work()
        except BaseException:
            with contextlib.suppress(Exception):  # the capture fails too, but it must end, or the stream stays unusable
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
        """Record an event, which happens when all work enqueued so far is done."""
        event = ctypes.c_void_p()
        self._driver("cuEventCreate", ctypes.byref(event), 0)
        owner.callback(self._driver, "cuEventDestroy_v2", event)
        self._driver("cuEventRecord", event, self._stream)
        return event

    def seconds_between(self, before: ctypes.c_void_p, after: ctypes.c_void_p) -> float:
        """Return the seconds between two events that have both happened."""
        milliseconds = ctypes.c_float()
        self._driver("cuEventElapsedTime", ctypes.byref(milliseconds), before, after)
        return milliseconds.value / 1e3

    def memory_used(self) -> int:
        """Return the bytes of the GPU's memory that are in use, by all processes together."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._driver("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return total.value - free.value

    def synchronize(self) -> None:
        """Wait until all work on the stream is done."""
        self._driver("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free the stream and the context. Everything that belongs to an owner must be freed before."""
        if not self.closed:
            with self._owner:
                self.closed = True
                self._driver("cuCtxSetCurrent", self._context)


def aligned(size: int) -> int:
    """Round a size in bytes up to a multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT

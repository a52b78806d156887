"""A GPU that is simulated: libcuda's functions over memory of this process, as strict as the real ones are loose.

What is put on a stream happens only when somebody waits for it, so that a missing wait shows. Every address is
looked up: one outside of what is allocated, or freed already, is a failure. `leaks` is what nobody gave back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

INVALID, OUT_OF_MEMORY, CAPTURE_UNSUPPORTED = 1, 2, 900
_ALIGNMENT = 256

Operation = Callable[[], None]


class SimulatedCuda:
    """Stands for `libcuda.so.1`. `failing` maps a function to (calls that still succeed, status after them)."""

    def __init__(self, integrated: bool = False) -> None:
        self.attributes = {75: 8, 76: 9, 18: int(integrated)}
        self.memory: dict[int, tuple[NDArray[np.uint8], str]] = {}  # address -> bytes, "device", "host" or "mapped"
        self.handles: dict[int, str] = {}  # streams, graphs, executables
        self.queues: dict[int, list[Operation]] = {}
        self.graphs: dict[int, list[Operation]] = {}
        self.capturing: tuple[int, list[Operation]] | None = None
        self.contexts = 0
        self.current: int | None = None
        self.failing: dict[str, tuple[int, int]] = {}
        self.told: list[str] = []
        self._next = 0x1000

    # Of the simulation.

    @property
    def leaks(self) -> list[str]:
        kinds = [kind for _, kind in self.memory.values()]
        return [*kinds, *self.handles.values(), *["context"] * self.contexts]

    def put(self, stream: int, operation: Operation) -> None:
        """Put an operation on a stream, or into the graph that is captured from it."""
        assert self.handles.get(stream) == "stream", "an operation on no stream"
        if self.capturing is not None and self.capturing[0] == stream:
            self.capturing[1].append(operation)
        else:
            self.queues[stream].append(operation)

    def view(self, address: int, size: int, *kinds: str) -> NDArray[np.uint8]:
        """The bytes at an address, which must be allocated as one of `kinds`."""
        for start, (content, kind) in self.memory.items():
            if start <= address and address + size <= start + len(content):
                assert kind in kinds, f"{kind} memory where {kinds} is asked for"
                return content[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    def on_device(self, address: int, size: int) -> NDArray[np.uint8]:
        return self.view(address, size, "device", "mapped")

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cu") or not callable(found) or name == "cuGetErrorString":
            return found
        self.told.append(name)
        left, status = self.failing.get(name, (1, 0))
        if not left:
            return lambda *arguments: status
        if status:
            self.failing[name] = left - 1, status
        return found

    def _handle(self, kind: str) -> int:
        self._next += 0x10
        self.handles[self._next] = kind
        return self._next

    def _free(self, address: int, *kinds: str) -> int:
        if address not in self.memory:
            return INVALID
        assert self.memory[address][1] in kinds
        del self.memory[address]
        return 0

    def _allocate(self, size: int, kind: str) -> int:
        assert self.current is not None, "no context is current"
        whole = np.full(size + _ALIGNMENT, 0xA5, np.uint8)  # so that what nobody wrote is no zero
        start = -whole.ctypes.data % _ALIGNMENT
        content = whole[start : start + size]
        self.memory[content.ctypes.data] = content, kind
        return int(content.ctypes.data)

    # Of the driver. Statuses are returned, results written through pointers.

    def cuGetErrorString(self, status: int, told: Any) -> int:
        told._obj.value = f"error {status}".encode()
        return 0

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13000
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = 0
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = b"Simulated"
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = 2**33
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: int, device: Any) -> int:
        value._obj.value = self.attributes[which]
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        context._obj.value = 0xC0
        self.contexts += 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:
        assert self.contexts
        self.contexts -= 1
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        assert self.contexts, "the context was given back"
        self.current = context.value
        return 0

    def cuStreamCreate(self, stream: Any, flags: int) -> int:
        assert flags == 1, "a stream that waits for the default one"
        stream._obj.value = self._handle("stream")
        self.queues[stream._obj.value] = []
        return 0

    def cuStreamDestroy_v2(self, stream: Any) -> int:
        assert not self.queues.pop(stream.value), "work was left on the stream"
        assert self.handles.pop(stream.value) == "stream"
        return 0

    def cuStreamSynchronize(self, stream: Any) -> int:
        if self.capturing is not None:
            return CAPTURE_UNSUPPORTED
        queue, self.queues[stream.value] = self.queues[stream.value], []
        for operation in queue:
            operation()
        return 0

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        if self.capturing is not None:
            return CAPTURE_UNSUPPORTED
        if not size.value:
            return INVALID
        address._obj.value = self._allocate(size.value, "device")
        return 0

    def cuMemFree_v2(self, address: Any) -> int:
        for stream in self.queues:  # as the real one does, before it frees
            self.cuStreamSynchronize(ctypes.c_void_p(stream))
        return self._free(address.value, "device")

    def cuMemHostAlloc(self, pointer: Any, size: Any, flags: int) -> int:
        pointer._obj.value = self._allocate(size.value, "mapped" if flags == 2 else "host")
        return 0

    def cuMemHostGetDevicePointer_v2(self, address: Any, pointer: Any, flags: int) -> int:
        if self.memory[pointer.value][1] != "mapped":
            return INVALID
        address._obj.value = pointer.value
        return 0

    def cuMemFreeHost(self, pointer: Any) -> int:
        return self._free(pointer.value, "host", "mapped")

    def _copied(self, to: NDArray[np.uint8], source: NDArray[np.uint8], stream: int) -> int:
        def copy() -> None:
            to[...] = source

        self.put(stream, copy)
        return 0

    def cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:
        there, here = self.view(to.value, size.value, "device"), self.view(source.value, size.value, "host")
        return self._copied(there, here, stream.value)

    def cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:
        here, there = self.view(to.value, size.value, "host"), self.view(source.value, size.value, "device")
        return self._copied(here, there, stream.value)

    def cuMemcpyDtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:
        return self._copied(
            self.on_device(to.value, size.value), self.on_device(source.value, size.value), stream.value
        )

    def cuMemcpy2DAsync_v2(self, copy: Any, stream: Any) -> int:
        wanted = copy._obj
        width, height = wanted.WidthInBytes, wanted.Height
        assert wanted.srcMemoryType == wanted.dstMemoryType == 2
        if width > min(wanted.srcPitch, wanted.dstPitch):
            return INVALID
        for row in range(height):
            to = self.on_device(wanted.dstDevice + row * wanted.dstPitch, width)
            self._copied(to, self.on_device(wanted.srcDevice + row * wanted.srcPitch, width), stream.value)
        return 0

    def cuMemsetD8Async(self, address: Any, value: Any, size: Any, stream: Any) -> int:
        content = self.on_device(address.value, size.value)

        def clear() -> None:
            content[...] = value.value

        self.put(stream.value, clear)
        return 0

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:
        assert mode == 1, "a capture that other threads would break"
        if self.capturing is not None:
            return INVALID
        self.capturing = stream.value, []
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        if self.capturing is None or self.capturing[0] != stream.value:
            return INVALID
        graph._obj.value = self._handle("graph")
        self.graphs[graph._obj.value] = self.capturing[1]
        self.capturing = None
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:
        executable._obj.value = self._handle("executable")
        self.graphs[executable._obj.value] = self.graphs[graph.value]
        return 0

    def cuGraphDestroy(self, graph: Any) -> int:
        assert self.handles.pop(graph.value) == "graph"
        return 0

    def cuGraphExecDestroy(self, executable: Any) -> int:
        assert self.handles.pop(executable.value) == "executable"
        return 0

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:
        assert self.handles[executable.value] == "executable"
        for operation in self.graphs[executable.value]:
            self.put(stream.value, operation)
        return 0

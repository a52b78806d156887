"""A simulated GPU: the functions of libcuda on memory of this process, with strict checks.

Work on a stream runs only when the host waits for it, so that a missing wait is noticed. Every address is checked when
it is passed and when it is used: an address outside of allocated memory, or in freed memory, is a failure. So is a call
in a thread without a current context. `leaks` lists what was not freed.
"""

from __future__ import annotations

import bisect
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

INVALID, INVALID_CONTEXT, INVALID_HANDLE, NOT_READY, CAPTURE_UNSUPPORTED = 1, 201, 400, 600, 900
MEMORY = 2**33
_ALIGNMENT = 256
_ON_DEVICE = ("device", "mapped")
_WITHOUT_CONTEXT = ("cuInit", "cuDriver", "cuDevice", "cuCtx")  # how functions begin that need none

Operation = Callable[[], None]
Place = tuple[int, tuple[str, ...]]  # an address, and the kinds of memory it may be in


class SimulatedCuda:
    """A fake of `libcuda.so.1`.

    `failing` maps a function to (calls that still succeed, status after them), of one call unless it is `lasting`.
    """

    def __init__(self, integrated: bool = False) -> None:
        self.attributes = {75: 8, 76: 9, 18: int(integrated)}
        self.memory: dict[int, tuple[NDArray[np.uint8], str]] = {}  # address -> bytes, "device", "host" or "mapped"
        self.handles: dict[int, str] = {}  # streams, graphs, executables
        self.queues: dict[int, list[Operation]] = {}
        self.graphs: dict[int, list[Operation]] = {}
        self.capturing: tuple[int, list[Operation]] | None = None
        self.events: dict[int, int | None] = {}  # what was done when the stream came to it
        self.done = 0  # operations, each of which takes a millisecond
        self.contexts = 0
        self.current = threading.local()  # its `context`, where a thread has one
        self.failing: dict[str, tuple[int, int]] = {}
        self.lasting = True
        self.history: list[str] = []
        self._starts: list[int] = []  # of the memory, in order
        self._next = 0x1000

    # Of the simulation.

    @property
    def leaks(self) -> list[str]:
        kinds = [kind for _, kind in self.memory.values()]
        return [*kinds, *self.handles.values(), *["context"] * self.contexts]

    def put(self, stream: int, operation: Operation) -> None:
        """Put an operation on a stream, or into the graph that is captured from it."""
        assert self.handles.get(stream) == "stream", "an operation on something that is not a stream"
        if self.capturing is not None and self.capturing[0] == stream:
            self.capturing[1].append(operation)
        else:
            self.queues[stream].append(operation)

    def view(self, address: int, size: int, *kinds: str) -> NDArray[np.uint8]:
        """The bytes at an address, which must be memory of one of `kinds`."""
        found = bisect.bisect_right(self._starts, address)
        if found:
            start = self._starts[found - 1]
            content, kind = self.memory[start]
            if address + size <= start + len(content):
                assert kind in kinds, f"{kind} memory where {kinds} is expected"
                return content[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address:#x} are not allocated")

    def on_device(self, address: int, size: int) -> NDArray[np.uint8]:
        return self.view(address, size, *_ON_DEVICE)

    def holds(self, owner: object, kind: str) -> None:
        """Record that `owner`, an object of a library, holds memory of the GPU as long as it lives."""
        weakref.finalize(owner, self.handles.pop, self._handle(kind))

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cu") or not callable(found) or name == "cuGetErrorString":
            return found
        self.history.append(name)
        if not name.startswith(_WITHOUT_CONTEXT) and not (self.contexts and hasattr(self.current, "context")):
            return lambda *arguments: INVALID_CONTEXT
        left, status = self.failing.get(name, (1, 0))
        if not left:
            if name == "cuStreamEndCapture":  # whatever it returns, this is over
                self.capturing = None
            if name == "cuStreamSynchronize":  # it fails because the work did, and what follows that is given up
                for queue in self.queues.values():
                    queue.clear()
            if not self.lasting:
                del self.failing[name]
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
        self._starts.remove(address)
        return 0

    def _allocate(self, size: int, kind: str) -> int:
        padded = np.full(size + _ALIGNMENT, 0xA5, np.uint8)  # so that unwritten memory is not zero
        start = -padded.ctypes.data % _ALIGNMENT
        content = padded[start : start + size]
        self.memory[content.ctypes.data] = content, kind
        bisect.insort(self._starts, content.ctypes.data)
        return int(content.ctypes.data)

    # Of the driver. Statuses are returned, results written through pointers.

    def cuGetErrorString(self, status: int, text: Any) -> int:
        text._obj.value = f"error {status}".encode()
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
        memory._obj.value = MEMORY
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
        self.current.context = context.value
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
        self._finish(stream.value)
        return 0

    def _finish(self, stream: int) -> None:
        queue, self.queues[stream] = self.queues[stream], []
        for operation in queue:
            self.done += 1
            operation()

    def cuMemAlloc_v2(self, address: Any, size: Any) -> int:
        if self.capturing is not None:
            return CAPTURE_UNSUPPORTED
        if not size.value:
            return INVALID
        address._obj.value = self._allocate(size.value, "device")
        return 0

    def cuMemFree_v2(self, address: Any) -> int:
        for stream in self.queues:  # as the real one does, before it frees
            self._finish(stream)
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

    def _copied(self, to: Place, source: Place, size: int, stream: int) -> int:
        def copy() -> None:
            self.view(to[0], size, *to[1])[...] = self.view(source[0], size, *source[1])

        for address, kinds in (to, source):
            self.view(address, size, *kinds)
        self.put(stream, copy)
        return 0

    def cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:
        return self._copied((to.value, ("device",)), (source.value, ("host",)), size.value, stream.value)

    def cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:
        return self._copied((to.value, ("host",)), (source.value, ("device",)), size.value, stream.value)

    def cuMemcpyDtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:
        return self._copied((to.value, _ON_DEVICE), (source.value, _ON_DEVICE), size.value, stream.value)

    def cuMemcpy2DAsync_v2(self, copy: Any, stream: Any) -> int:
        wanted = copy._obj
        width, height = wanted.WidthInBytes, wanted.Height
        assert wanted.srcMemoryType == wanted.dstMemoryType == 2
        if width > min(wanted.srcPitch, wanted.dstPitch):
            return INVALID
        for row in range(height):
            to, source = (wanted.dstDevice + row * wanted.dstPitch, wanted.srcDevice + row * wanted.srcPitch)
            self._copied((to, _ON_DEVICE), (source, _ON_DEVICE), width, stream.value)
        return 0

    def cuMemsetD8Async(self, address: Any, value: Any, size: Any, stream: Any) -> int:
        def clear() -> None:
            self.on_device(address.value, size.value)[...] = value.value

        self.on_device(address.value, size.value)
        self.put(stream.value, clear)
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value = MEMORY - sum(len(content) for content, kind in self.memory.values() if kind == "device")
        total._obj.value = MEMORY
        return 0

    def cuEventCreate(self, event: Any, flags: int) -> int:
        assert flags == 0, "an event that keeps no time"
        event._obj.value = self._handle("event")
        return 0

    def cuEventRecord(self, event: Any, stream: Any) -> int:
        if self.handles.get(event.value) != "event":
            return INVALID_HANDLE

        def record() -> None:
            if event.value in self.events:
                self.events[event.value] = self.done

        self.events[event.value] = None
        self.put(stream.value, record)
        return 0

    def cuEventElapsedTime(self, milliseconds: Any, start: Any, end: Any) -> int:
        if not {start.value, end.value} <= self.events.keys():
            return INVALID_HANDLE
        before, after = self.events[start.value], self.events[end.value]
        if before is None or after is None:
            return NOT_READY
        milliseconds._obj.value = after - before
        return 0

    def cuEventDestroy_v2(self, event: Any) -> int:
        assert self.handles.pop(event.value) == "event"
        self.events.pop(event.value, None)
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
        del self.graphs[graph.value]
        return 0

    def cuGraphExecDestroy(self, executable: Any) -> int:
        assert self.handles.pop(executable.value) == "executable"
        del self.graphs[executable.value]
        return 0

    def cuGraphLaunch(self, executable: Any, stream: Any) -> int:
        assert self.handles[executable.value] == "executable"
        for operation in self.graphs[executable.value]:
            self.put(stream.value, operation)
        return 0

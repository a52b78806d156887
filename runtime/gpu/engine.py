"""Engines on the GPU: each is prepared once for every set of sizes, and its calls are then only enqueued."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from runtime.gpu.cuda import Cuda, PinnedBuffer
from runtime.model.engine_spec import Array, EngineSpec, Shapes, TensorSpec

_SIZES_KEPT = 8


class Execution(Protocol):
    """An engine that is ready for one set of sizes of its dynamic axes."""

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        """Enqueue a call on the stream.

        Args:
            addresses: The address on the GPU of every input and output, by name.

        Raises:
            BackendError: The library reports a failure.
        """


class GpuEngine(Protocol):
    """An engine that a backend loaded onto the GPU.

    Attributes:
        spec: Its inputs and outputs.
    """

    spec: EngineSpec

    def prepare(self, axes: Mapping[str, int], owner: contextlib.ExitStack) -> Execution:
        """Prepare the engine for one set of sizes.

        Args:
            axes: The size of every dynamic axis of the inputs, by name.
            owner: Frees what was prepared when it closes.

        Raises:
            BackendError: The engine does not support these sizes, or the library reports a failure.
        """

    def close(self) -> None:
        """Free the engine. Everything that was prepared must be freed before."""


@dataclasses.dataclass(frozen=True)
class _Call:
    """An engine that is ready for one set of sizes, with buffers for its inputs and outputs."""

    execution: Execution
    inputs: Mapping[str, PinnedBuffer]
    outputs: Mapping[str, PinnedBuffer]
    owner: contextlib.ExitStack


class HostEngine:
    """A `runtime.model.engine_spec.Engine` that calls a `GpuEngine`, with arrays on the host.

    It serves the engines outside the loop, such as the decoder, and copies inputs and outputs in every call. It keeps
    the eight sets of sizes that were used last.

    Attributes:
        on_gpu: The engine that it calls.
    """

    def __init__(self, cuda: Cuda, engine: GpuEngine) -> None:
        """Serve `engine` on the stream of `cuda`."""
        self.on_gpu = engine
        self._cuda = cuda
        self._calls: OrderedDict[Shapes, _Call] = OrderedDict()

    def __call__(self, **inputs: Array) -> tuple[Array, ...]:
        """Call the engine with every input of its spec by name, and return its outputs in the spec's order.

        Raises:
            BackendError: The engine does not support these sizes, or the driver or the library reports a failure.
        """
        self._cuda.activate()
        call = self._call(inputs)
        for name, buffer in call.inputs.items():
            buffer.host[...] = inputs[name]
            self._cuda.upload(buffer)
        buffers = {**call.inputs, **call.outputs}
        call.execution.enqueue({name: buffer.address for name, buffer in buffers.items()})
        for buffer in call.outputs.values():
            self._cuda.download(buffer)
        self._cuda.synchronize()
        return tuple(buffer.host.copy() for buffer in call.outputs.values())

    def close(self) -> None:
        """Free all buffers, and then the engine."""
        with contextlib.ExitStack() as closing:
            closing.callback(self.on_gpu.close)
            while self._calls:
                closing.callback(self._calls.popitem()[1].owner.close)

    def _call(self, inputs: Mapping[str, Array]) -> _Call:
        spec = self.on_gpu.spec
        key = tuple(inputs[tensor.name].shape for tensor in spec.inputs)
        if key in self._calls:
            self._calls.move_to_end(key)
            return self._calls[key]
        if len(self._calls) == _SIZES_KEPT:
            self._calls.popitem(last=False)[1].owner.close()
        axes = spec.axes(key)
        with contextlib.ExitStack() as owner:

            def buffers(tensors: Sequence[TensorSpec]) -> dict[str, PinnedBuffer]:
                return {
                    tensor.name: self._cuda.pinned_buffer(tensor.sized(axes), np.dtype(tensor.dtype), owner)
                    for tensor in tensors
                }

            input_buffers, output_buffers = buffers(spec.inputs), buffers(spec.outputs)
            call = _Call(self.on_gpu.prepare(axes, owner), input_buffers, output_buffers, owner.pop_all())
        self._calls[key] = call
        return call

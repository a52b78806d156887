"""An engine on the GPU: prepared once for every size that is needed, then only put on the stream."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from runtime.gpu.cuda import Cuda, PinnedBuffer
from runtime.model.engine_spec import Array, EngineSpec, TensorSpec

_SIZES_KEPT = 8


class Execution(Protocol):
    """An engine at one size of its axes."""

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        """Put a call on the stream. `addresses` are those of every input and output, by name."""


class GpuEngine(Protocol):
    """An engine that a backend loaded onto the GPU."""

    spec: EngineSpec

    def prepare(self, axes: Mapping[str, int], owner: contextlib.ExitStack) -> Execution:
        """The engine at sizes `axes` of its inputs, until `owner` closes. Raises `BackendError`."""

    def close(self) -> None:
        """Free it, once what was prepared is closed."""


@dataclasses.dataclass(frozen=True)
class _Call:
    """An engine at one size, with arrays of its own."""

    execution: Execution
    inputs: Mapping[str, PinnedBuffer]
    outputs: Mapping[str, PinnedBuffer]
    owner: contextlib.ExitStack


class HostEngine:
    """A `GpuEngine` called with arrays here, like any `runtime.model.engine_spec.Engine`: for what is not in the loop."""

    def __init__(self, cuda: Cuda, engine: GpuEngine) -> None:
        self.on_gpu = engine
        self._cuda = cuda
        self._calls: OrderedDict[tuple[tuple[int, ...], ...], _Call] = OrderedDict()

    def __call__(self, **inputs: Array) -> tuple[Array, ...]:
        self._cuda.activate()
        call = self._call(inputs)
        for name, exchange in call.inputs.items():
            exchange.host[...] = inputs[name]
            self._cuda.upload(exchange)
        both = {**call.inputs, **call.outputs}
        call.execution.enqueue({name: exchange.address for name, exchange in both.items()})
        for exchange in call.outputs.values():
            self._cuda.download(exchange)
        self._cuda.synchronize()
        return tuple(exchange.host.copy() for exchange in call.outputs.values())

    def close(self) -> None:
        with contextlib.ExitStack() as all_of_it:
            all_of_it.callback(self.on_gpu.close)
            while self._calls:
                all_of_it.callback(self._calls.popitem()[1].owner.close)

    def _call(self, inputs: Mapping[str, Array]) -> _Call:
        spec = self.on_gpu.spec
        key = tuple(inputs[tensor.name].shape for tensor in spec.inputs)
        if key in self._calls:
            self._calls.move_to_end(key)
            return self._calls[key]
        if len(self._calls) == _SIZES_KEPT:
            self._calls.popitem(last=False)[1].owner.close()
        axes = axes_of(spec, inputs)
        with contextlib.ExitStack() as owner:

            def made(tensor: TensorSpec) -> PinnedBuffer:
                return self._cuda.exchange(tensor.sized(axes), np.dtype(tensor.dtype), owner)

            arrays = [{tensor.name: made(tensor) for tensor in side} for side in (spec.inputs, spec.outputs)]
            call = _Call(self.on_gpu.prepare(axes, owner), arrays[0], arrays[1], owner.pop_all())
        self._calls[key] = call
        return call


def axes_of(spec: EngineSpec, inputs: Mapping[str, Array]) -> dict[str, int]:
    """The sizes of the dynamic axes, as arrays have them."""
    return {
        axis: size
        for tensor in spec.inputs
        for axis, size in zip(tensor.shape, inputs[tensor.name].shape, strict=True)
        if isinstance(axis, str)
    }

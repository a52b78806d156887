"""The modules that are exported, in PyTorch, as engines of the loop on a GPU: what CUDA graphs alone gain.

It takes nothing but PyTorch, so it also shows on any machine with a GPU whether the loop there is right.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mar_export.graphs.engine_modules import loop_modules
from mar_export.onnx_export.mixed_precision import DTYPES, lowered
from runtime.artifact.manifest import Manifest
from runtime.generator import Generator
from runtime.gpu.backend import GpuBackend
from runtime.gpu.engine import Execution
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import EngineSpec, TensorSpec, engine_specs
from training.models.mar import MAR


def torch_gpu_generator(manifest: Manifest, model: MAR, precision: str, *, cuda_graphs: bool) -> Generator:
    """A generator that draws with `model`, which stays where it is, by copies on the GPU in `precision`."""
    backend = TorchGpu(cuda_graphs)
    with contextlib.ExitStack() as unless_whole:
        unless_whole.callback(backend.close)
        specs = engine_specs(manifest.model)
        modules = {name: lowered(module, DTYPES[precision]) for name, module in loop_modules(model).items()}
        engines = {name: backend.engine(module, specs[name]) for name, module in modules.items()}
        torch.cuda.synchronize()  # weights are copied on the default stream, for which the engines' does not wait
        loop = backend.loop(manifest.model)
        unless_whole.pop_all()
    return Generator(manifest, Engines(**engines), backend.description, backend.close, loop)


class TorchGpu(GpuBackend):
    def __init__(self, cuda_graphs: bool) -> None:
        super().__init__(f"torch {torch.__version__}", captures=cuda_graphs)
        self._stream = torch.cuda.ExternalStream(self._cuda.stream)
        # Graphs hold the addresses of what is computed on the way: nobody else may be given that memory.
        self._pool = torch.cuda.MemPool()

    def engine(self, module: nn.Module, spec: EngineSpec) -> Any:
        return self._host_engine(_Module(copy.deepcopy(module).cuda(), spec, self._stream, self._pool))


class _Module:
    def __init__(self, module: nn.Module, spec: EngineSpec, stream: Any, pool: Any) -> None:
        self.spec = spec
        self._module: nn.Module | None = module
        self._stream, self._pool = stream, pool

    def prepare(self, axes: Mapping[str, int], owner: contextlib.ExitStack) -> Execution:
        return _Sized(self, axes)

    def close(self) -> None:
        self._module = None

    def run(self, inputs: Mapping[str, Tensor], outputs: list[Tensor]) -> None:
        with torch.inference_mode(), torch.cuda.stream(self._stream), torch.cuda.use_mem_pool(self._pool):
            assert self._module is not None
            made = self._module(**inputs)
            for place, output in zip(outputs, made if isinstance(made, tuple) else (made,), strict=True):
                place.copy_(output)


class _Sized:
    """A module at one size."""

    def __init__(self, module: _Module, axes: Mapping[str, int]) -> None:
        self._module, self._axes = module, axes

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        spec = self._module.spec
        inputs = {tensor.name: self._tensor(tensor, addresses) for tensor in spec.inputs}
        self._module.run(inputs, [self._tensor(tensor, addresses) for tensor in spec.outputs])

    def _tensor(self, tensor: TensorSpec, addresses: Mapping[str, int]) -> Tensor:
        return torch.as_tensor(_Memory(tensor, tensor.sized(self._axes), addresses[tensor.name]), device="cuda")


class _Memory:
    """Memory of the GPU as numba, PyTorch and others exchange it."""

    def __init__(self, tensor: TensorSpec, shape: tuple[int, ...], address: int) -> None:
        code = {"float32": "<f4", "int64": "<i8"}[tensor.dtype]
        self.__cuda_array_interface__ = {"shape": shape, "typestr": code, "data": (address, False), "version": 3}

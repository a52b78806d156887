"""The exported modules in PyTorch as engines of the sampling loop on a GPU, with CUDA graphs or without.

Only PyTorch is needed, so this also tests that loop on any machine with a GPU.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mar_export.graphs.engine_modules import loop_modules
from mar_export.onnx_export.mixed_precision import DTYPES, to_precision
from runtime.artifact.manifest import Manifest
from runtime.generator import Generator
from runtime.gpu.backend import GpuBackend
from runtime.gpu.engine import Execution
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import EngineSpec, TensorSpec
from runtime.model.families import loop_specs
from training.models.mar import MAR


def torch_gpu_generator(manifest: Manifest, model: MAR, precision: str, *, cuda_graphs: bool) -> Generator:
    """Return a generator that runs copies of a model's modules on the GPU.

    Args:
        manifest: The manifest with the model's sampling settings and the names of its engines, which are not used.
        model: The model, on any device; it is not changed.
        precision: The precision of weights and matrix products, a key of `mixed_precision.DTYPES`.
        cuda_graphs: Whether whole iterations are captured as CUDA graphs and replayed.
    """
    backend = TorchGpu(cuda_graphs)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(backend.close)
        specs = loop_specs(manifest.model, manifest.engines)
        modules = {name: to_precision(module, DTYPES[precision]) for name, module in loop_modules(model, specs).items()}
        engines = {name: backend.engine(module, specs[name]) for name, module in modules.items()}
        torch.cuda.synchronize()  # weights are copied on the default stream; the engines' stream does not wait for it
        loop = backend.loop(manifest.model)
        on_failure.pop_all()
    return Generator(manifest, Engines(**engines), backend.description, backend.close, loop)


class TorchGpu(GpuBackend):
    """The backend of the GPU loop whose engines are PyTorch modules."""

    def __init__(self, cuda_graphs: bool) -> None:
        super().__init__(f"torch {torch.__version__}", captures=cuda_graphs)
        self._stream = torch.cuda.ExternalStream(self._cuda.stream)
        # CUDA graphs contain the addresses of intermediate results, so that memory must not be used for anything else.
        self._pool = torch.cuda.MemPool()

    def engine(self, module: nn.Module, spec: EngineSpec) -> Any:
        """Return an engine that calls a copy of a module on the GPU."""
        return self._host_engine(_Module(copy.deepcopy(module).cuda(), spec, self._stream, self._pool))


class _Module:
    """A module on the GPU as an engine that the GPU loop can capture."""

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
            result = self._module(**inputs)
            for output, value in zip(outputs, result if isinstance(result, tuple) else (result,), strict=True):
                output.copy_(value)


class _Sized:
    """A module at fixed sizes of its dynamic axes."""

    def __init__(self, module: _Module, axes: Mapping[str, int]) -> None:
        self._module, self._axes = module, axes

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        spec = self._module.spec
        inputs = {tensor.name: self._tensor(tensor, addresses) for tensor in spec.inputs}
        self._module.run(inputs, [self._tensor(tensor, addresses) for tensor in spec.outputs])

    def _tensor(self, tensor: TensorSpec, addresses: Mapping[str, int]) -> Tensor:
        return torch.as_tensor(_Memory(tensor, tensor.sized(self._axes), addresses[tensor.name]), device="cuda")


class _Memory:
    """Memory of the GPU in the CUDA array interface, which PyTorch and others read."""

    def __init__(self, tensor: TensorSpec, shape: tuple[int, ...], address: int) -> None:
        code = {"float32": "<f4", "int64": "<i8"}[tensor.dtype]
        self.__cuda_array_interface__ = {"shape": shape, "typestr": code, "data": (address, False), "version": 3}

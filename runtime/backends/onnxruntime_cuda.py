"""ONNX Runtime on an NVIDIA GPU: its CUDA provider, with its own CUDA graphs, one a size."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from runtime.artifact.artifact_folder import Artifact
from runtime.backends.onnxruntime import first_line, import_onnxruntime, open_session, session_options
from runtime.errors import BackendError
from runtime.gpu.backend import GpuBackend
from runtime.gpu.cuda import Cuda
from runtime.model.engine_spec import ENGINES, Engine, EngineSpec

_NO_GRAPH = "-1"  # the annotation of a call that is not to be captured
# A session keeps every graph it captured. Drawn in turn by eight batch sizes, the published schedule makes so many.
_MOST_GRAPHS = 512


class OnnxRuntimeCuda(GpuBackend):
    def __init__(self, name: str, threads: int, cuda_graphs: bool) -> None:
        self._library, self._cuda_graphs = import_onnxruntime(name, "gpu"), cuda_graphs
        super().__init__(f"onnxruntime {self._library.__version__}, cuda", captures=False)  # sessions do

    def load(self, artifact: Artifact, name: str) -> Engine:
        # Graphs are replayed only where sizes come back: the tokenizer's engines run once an image.
        return self._called_here(self._session(artifact, name, self._cuda_graphs and name in ENGINES))

    def _session(self, artifact: Artifact, name: str, graphs: bool) -> _Session:
        settings = {
            "device_id": "0",
            "user_compute_stream": str(self._cuda.stream),
            "enable_cuda_graph": str(int(graphs)),
            "use_tf32": "0",  # float32 promises the same images
        }
        file, spec = artifact.engine_file(name), artifact.manifest.specs[name]
        options = session_options(self._library)
        # It makes CUDA graphs only where all of a graph runs on the GPU, without copies from here.
        remedy = "use --no-cuda-graphs, or export again" if graphs else "export again"
        session = open_session(self._library, file, spec, options, "CUDAExecutionProvider", settings, remedy=remedy)
        return _Session(self._library, session, spec, self._cuda, graphs)


class _Session:
    def __init__(self, library: Any, session: Any, spec: EngineSpec, cuda: Cuda, graphs: bool) -> None:
        self.spec = spec
        self._library, self._session, self._cuda, self._graphs = library, session, cuda, graphs
        self._captured: dict[frozenset[tuple[str, int]], _Bound] = {}  # by size
        self._owner = contextlib.ExitStack()  # of what they are bound to

    def prepare(self, axes: Mapping[str, int], owner: contextlib.ExitStack) -> _Bound:
        """At sizes `axes`, with a graph that stays for whoever wants that size again; or without, past so many."""
        size = frozenset(axes.items())
        if size in self._captured:
            return self._captured[size]
        if self._graphs and len(self._captured) < _MOST_GRAPHS:
            self._captured[size] = bound = self._bound(axes, str(len(self._captured) + 1), self._owner)
            return bound
        return self._bound(axes, _NO_GRAPH, owner)

    def _bound(self, axes: Mapping[str, int], graph: str, owner: contextlib.ExitStack) -> _Bound:
        run = self._library.RunOptions()
        run.add_run_config_entry("gpu_graph_id", graph)
        # What follows is on the same stream, so nobody has to wait for it here.
        run.add_run_config_entry("disable_synchronize_execution_providers", "1")
        bound = _Bound(self._session, self.spec, run, self._cuda, axes, owner)
        owner.callback(bound.close)
        return bound

    def close(self) -> None:
        try:
            self._owner.close()
        finally:
            self._session = None


class _Bound:
    """A session at one size, bound to memory of its own: a CUDA graph knows addresses, and cannot take others."""

    def __init__(
        self,
        session: Any,
        spec: EngineSpec,
        run: Any,
        cuda: Cuda,
        axes: Mapping[str, int],
        owner: contextlib.ExitStack,
    ) -> None:
        self._session, self._spec, self._run, self._cuda = session, spec, run, cuda
        self._binding = session.io_binding()
        self._places: dict[str, tuple[int, int]] = {}  # name -> address, bytes
        for tensors, bind in ((spec.inputs, self._binding.bind_input), (spec.outputs, self._binding.bind_output)):
            for tensor in tensors:
                shape, dtype = tensor.sized(axes), np.dtype(tensor.dtype)
                size = int(np.prod(shape)) * dtype.itemsize
                address = cuda.memory(size, owner)
                bind(tensor.name, "cuda", 0, dtype.type, shape, address)
                self._places[tensor.name] = address, size

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        for tensor in self._spec.inputs:
            here, size = self._places[tensor.name]
            self._cuda.copy(here, addresses[tensor.name], size)
        try:
            self._session.run_with_iobinding(self._binding, self._run)
        except Exception as error:
            raise BackendError(f"engine {self._spec.name} failed in onnxruntime: {first_line(error)}") from error
        for tensor in self._spec.outputs:
            here, size = self._places[tensor.name]
            self._cuda.copy(addresses[tensor.name], here, size)

    def close(self) -> None:
        try:
            self._cuda.synchronize()  # where a failure left work on the stream, it still uses this
        finally:
            self._session = self._binding = None

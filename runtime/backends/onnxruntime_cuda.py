"""ONNX Runtime on an NVIDIA GPU: its CUDA provider, which captures one CUDA graph for each set of sizes."""

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

_NO_GRAPH = "-1"  # the graph annotation id of a call that is not captured
# A session keeps every graph that it captured. The published schedule needs 64 graphs for each batch size.
_MOST_GRAPHS = 512


class OnnxRuntimeCuda(GpuBackend):
    """The backend `onnxruntime` on `cuda`."""

    def __init__(self, name: str, threads: int, cuda_graphs: bool) -> None:
        """Open ONNX Runtime and the first GPU.

        Args:
            name: The backend's name, for error messages.
            threads: Not used; every backend takes it.
            cuda_graphs: Whether the engines of the loop are captured as CUDA graphs.

        Raises:
            BackendError: ONNX Runtime is not installed, there is no GPU, or the driver reports a failure.
        """
        self._library, self._cuda_graphs = import_onnxruntime(name, "gpu"), cuda_graphs
        super().__init__(
            f"onnxruntime {self._library.__version__}, cuda", captures=False
        )  # its sessions capture graphs themselves

    def load(self, artifact: Artifact, name: str) -> Engine:
        """Load an engine of a verified artifact; see `runtime.backends.Backend.load`."""
        # A graph is worth its capture only if it is replayed: the engines of a tokenizer run once an image.
        return self._host_engine(self._session(artifact, name, self._cuda_graphs and name in ENGINES))

    def _session(self, artifact: Artifact, name: str, graphs: bool) -> _Session:
        settings = {
            "device_id": "0",
            "user_compute_stream": str(self._cuda.stream),
            "enable_cuda_graph": str(int(graphs)),
            "use_tf32": "0",  # float32 must give the same images as on a processor
        }
        spec = artifact.manifest.specs[name]
        options = session_options(self._library)
        # ONNX Runtime makes a CUDA graph only if every operator runs on the GPU, without copies from the host.
        remedy = "use --no-cuda-graphs, or export again" if graphs else "export again"
        with artifact.verified_graph(name) as graph:
            session = open_session(
                self._library, graph, spec, options, "CUDAExecutionProvider", settings, remedy=remedy
            )
        return _Session(self._library, session, spec, self._cuda, graphs)


class _Session:
    """A `runtime.gpu.engine.GpuEngine` that runs one session."""

    def __init__(self, library: Any, session: Any, spec: EngineSpec, cuda: Cuda, graphs: bool) -> None:
        self.spec = spec
        self._library, self._session, self._cuda, self._graphs = library, session, cuda, graphs
        self._captured: dict[frozenset[tuple[str, int]], _BoundSession] = {}  # by sizes
        self._owner = contextlib.ExitStack()  # of the memory that captured graphs use

    def prepare(self, axes: Mapping[str, int], owner: contextlib.ExitStack) -> _BoundSession:
        """Prepare the session for one set of sizes.

        A captured graph is kept for later requests of the same sizes. Beyond `_MOST_GRAPHS` graphs none is captured.
        """
        size = frozenset(axes.items())
        if size in self._captured:
            return self._captured[size]
        if self._graphs and len(self._captured) < _MOST_GRAPHS:
            self._captured[size] = bound = self._bound(axes, str(len(self._captured) + 1), self._owner)
            return bound
        return self._bound(axes, _NO_GRAPH, owner)

    def _bound(self, axes: Mapping[str, int], graph: str, owner: contextlib.ExitStack) -> _BoundSession:
        run = self._library.RunOptions()
        run.add_run_config_entry("gpu_graph_id", graph)
        # All later work is on the same stream, so the host need not wait.
        run.add_run_config_entry("disable_synchronize_execution_providers", "1")
        bound = _BoundSession(self._session, self.spec, run, self._cuda, axes, owner)
        owner.callback(bound.close)
        return bound

    def close(self) -> None:
        try:
            self._owner.close()
        finally:
            self._session = None


class _BoundSession:
    """A session for one set of sizes, bound to its own memory, because the addresses in a CUDA graph are fixed."""

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
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> address, bytes
        for tensors, bind in ((spec.inputs, self._binding.bind_input), (spec.outputs, self._binding.bind_output)):
            for tensor in tensors:
                shape, dtype = tensor.sized(axes), np.dtype(tensor.dtype)
                size = int(np.prod(shape)) * dtype.itemsize
                address = cuda.memory(size, owner)
                bind(tensor.name, "cuda", 0, dtype.type, shape, address)
                self._buffers[tensor.name] = address, size

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        for tensor in self._spec.inputs:
            address, size = self._buffers[tensor.name]
            self._cuda.copy(address, addresses[tensor.name], size)
        try:
            self._session.run_with_iobinding(self._binding, self._run)
        except Exception as error:
            raise BackendError(f"engine {self._spec.name} failed in onnxruntime: {first_line(error)}") from error
        for tensor in self._spec.outputs:
            address, size = self._buffers[tensor.name]
            self._cuda.copy(addresses[tensor.name], address, size)

    def close(self) -> None:
        try:
            self._cuda.synchronize()  # after a failure, work on the stream may still use the binding
        finally:
            self._session = self._binding = None

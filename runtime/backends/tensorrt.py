"""TensorRT 10, TensorRT 11 and TensorRT-RTX: they run the engines that `mar build` built."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.engine_builds import Build, usable_build
from runtime.backends.tensorrt_library import TensorRTLibrary
from runtime.errors import BackendError
from runtime.gpu.backend import GpuBackend
from runtime.gpu.cuda import Cuda
from runtime.model.engine_spec import Engine, EngineSpec


class TensorRT(GpuBackend):
    """The backends `tensorrt` and `tensorrt-rtx`."""

    def __init__(self, name: str, threads: int, cuda_graphs: bool) -> None:
        """Open the library and the first GPU.

        Args:
            name: The backend's name, which is the target of `mar build` too.
            threads: Not used; every backend takes it.
            cuda_graphs: Whether the loop captures whole iterations as CUDA graphs.

        Raises:
            BackendError: The library is not installed or known to be wrong, there is no GPU, or the driver reports a
                failure.
        """
        self._library = TensorRTLibrary(name)
        self._runtime = self._library.new(self._library.module.Runtime)
        super().__init__(f"{name} {self._library.version}", captures=cuda_graphs)
        self._scratch = _ScratchMemory(self._cuda, self._owner.enter_context(contextlib.ExitStack()))

    def load(self, artifact: Artifact, name: str) -> Engine:
        """Load a built engine of a verified artifact; see `runtime.backends.Backend.load`."""
        self._cuda.activate()
        library, manifest = self._library, artifact.manifest
        build = usable_build(
            manifest.builds, name, library.target, manifest.graph_sha256(name), library.version, self._gpu.architecture
        )
        engine = self._deserialize(artifact, build)
        spec = manifest.specs[name]
        _check_tensors(library, engine, spec)
        self._scratch.require(engine.device_memory_size_v2)
        return self._host_engine(_TensorRTEngine(library, self._cuda, self._scratch, engine, build, spec))

    def _deserialize(self, artifact: Artifact, build: Build) -> Any:
        """Return the engine of a build, after a check of its file's hash. The bytes of the file are not kept."""
        library, file = self._library, artifact.path / build.file
        library.log.lines.clear()
        # A version-compatible engine contains its own runtime, which is code for the host. Other engines must not.
        self._runtime.engine_host_code_allowed = bool(build.flags.get("version_compatible"))
        engine = library.created(
            self._runtime.deserialize_cuda_engine(artifact.verified_build(build)), f"cannot load {file}"
        )
        if build.flags.get("strip_weights"):
            refitter = library.new(library.module.Refitter, engine)
            parser = library.new(library.module.OnnxParserRefitter, refitter)
            with artifact.verified_graph(build.engine) as graph:
                read = parser.refit_from_file(str(graph.path))
                library.check(read, f"cannot read the weights of {file} from {graph.path}")
                library.check(refitter.refit_cuda_engine(), f"cannot give {file} its weights")
        return engine


class _ScratchMemory:
    """The memory for intermediate results. All engines share it, because only one of them runs at a time.

    Attributes:
        size: Its size in bytes.
    """

    def __init__(self, cuda: Cuda, owner: contextlib.ExitStack) -> None:
        self._cuda, self._owner = cuda, owner
        self.size = 0
        self._address: int | None = None

    def require(self, size: int) -> None:
        """Make the memory at least `size` bytes large. It must not be allocated yet."""
        assert self._address is None
        self.size = max(self.size, size)

    @property
    def address(self) -> int:
        """The address of the memory, which the first call allocates."""
        if self._address is None:
            self._address = self._cuda.memory(self.size, self._owner)
        return self._address


class _TensorRTEngine:
    """A `runtime.gpu.engine.GpuEngine` that runs a deserialized engine."""

    def __init__(
        self, library: TensorRTLibrary, cuda: Cuda, scratch: _ScratchMemory, engine: Any, build: Build, spec: EngineSpec
    ) -> None:
        self.spec = spec
        self._library, self._cuda, self._scratch, self._engine, self._build = library, cuda, scratch, engine, build

    def prepare(self, axes: Mapping[str, int], owner: contextlib.ExitStack) -> _Context:
        """Create an execution context for one set of sizes.

        A context cannot serve other sizes later: one that is captured must not change while its graph lives.
        """
        library, name = self._library, self.spec.name
        library.log.lines.clear()
        self._check_profile(axes)
        strategy = library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = library.created(
            self._engine.create_execution_context(strategy), f"{name}: cannot create an execution context"
        )
        context.set_device_memory(self._scratch.address, self._scratch.size)
        for tensor in self.spec.inputs:
            shape = tensor.sized(axes)
            library.check(context.set_input_shape(tensor.name, shape), f"{name}: refused {tensor.name} of {shape}")
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:  # any failure except an input without a shape
            raise library.failure(f"{name}: cannot infer its shapes ({error})") from error
        library.check(not missing, f"{name}: the shapes of {', '.join(missing)} are missing")
        execution = _Context(library, self._cuda, context, name)
        owner.callback(execution.close)
        return execution

    def close(self) -> None:
        self._engine = None

    def _check_profile(self, axes: Mapping[str, int]) -> None:
        for tensor in self.spec.inputs:
            shape, (smallest, _, largest) = tensor.sized(axes), self._build.profile[tensor.name]
            if not all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
                raise BackendError(
                    f"engine {self.spec.name} was built for {tensor.name} of {list(smallest)} to {list(largest)}, and "
                    f"this request needs {list(shape)}; call mar build ARTIFACT --target {self._build.target} with the "
                    "sampling options of this request and a --batch that includes it"
                )


class _Context:
    """An execution context for one set of sizes; a `runtime.gpu.engine.Execution`."""

    def __init__(self, library: TensorRTLibrary, cuda: Cuda, context: Any, name: str) -> None:
        self._library, self._cuda, self._context, self._name = library, cuda, context, name
        self._addresses: dict[str, int] = {}

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        for tensor, address in addresses.items():
            if self._addresses.get(tensor) != address:
                accepted = self._context.set_tensor_address(tensor, address)
                self._library.check(accepted, f"{self._name}: refused the address of {tensor}")
                self._addresses[tensor] = address
        self._library.check(self._context.execute_async_v3(self._cuda.stream), f"engine {self._name} failed")

    def close(self) -> None:
        try:
            self._cuda.synchronize()  # after a failure, work on the stream may still use the context
        finally:
            self._context = None


def _check_tensors(library: TensorRTLibrary, engine: Any, spec: EngineSpec) -> None:
    """Check that inputs and outputs of an engine match its spec: names, dtypes and fixed sizes."""
    module = library.module
    dtypes = {"float32": module.DataType.FLOAT, "int64": module.DataType.INT64}
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    found = {
        name: (engine.get_tensor_mode(name), engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name)))
        for name in names
    }
    specified = {
        tensor.name: (mode, dtypes[tensor.dtype], tuple(-1 if isinstance(d, str) else d for d in tensor.shape))
        for mode, tensors in ((module.TensorIOMode.INPUT, spec.inputs), (module.TensorIOMode.OUTPUT, spec.outputs))
        for tensor in tensors
    }
    if found != specified:
        raise BackendError(f"engine {spec.name} has {found} where its spec has {specified}; build it again")

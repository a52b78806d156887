"""TensorRT 10, 11 and TensorRT-RTX: engines that `mar build` made, whole iterations as CUDA graphs."""

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
    def __init__(self, name: str, threads: int, cuda_graphs: bool) -> None:
        self._library = TensorRTLibrary(name)
        self._runtime = self._library.new(self._library.module.Runtime)
        super().__init__(f"{name} {self._library.version}", captures=cuda_graphs)
        self._scratch = _Scratch(self._cuda, self._owner.enter_context(contextlib.ExitStack()))

    def load(self, artifact: Artifact, name: str) -> Engine:
        self._cuda.activate()
        library, manifest = self._library, artifact.manifest
        build = usable_build(
            manifest.builds, name, library.target, manifest.graph_sha256(name), library.version, self._gpu.architecture
        )
        plan = self._deserialized(artifact, build)
        spec = manifest.specs[name]
        _check_tensors(library, plan, spec)
        self._scratch.needs(plan.device_memory_size_v2)
        return self._called_here(_Plan(library, self._cuda, self._scratch, plan, build, spec))

    def _deserialized(self, artifact: Artifact, build: Build) -> Any:
        """The engine in a file whose hash is checked; its bytes are let go with the call."""
        library, file, graph = self._library, artifact.path / build.file, artifact.engine_file(build.engine)
        library.log.lines.clear()
        # Plans for later versions carry a runtime of their own, which is code; others must not.
        self._runtime.engine_host_code_allowed = bool(build.flags.get("version_compatible"))
        plan = library.made(
            self._runtime.deserialize_cuda_engine(artifact.verified_build(build)), f"cannot load {file}"
        )
        if build.flags.get("strip_weights"):
            refitter = library.new(library.module.Refitter, plan)
            parser = library.new(library.module.OnnxParserRefitter, refitter)
            library.true(parser.refit_from_file(str(graph)), f"cannot read the weights of {file} from {graph}")
            library.true(refitter.refit_cuda_engine(), f"cannot give {file} its weights")
        return plan


class _Scratch:
    """The memory in which engines keep what they compute on the way: one for all, since they run in turn."""

    def __init__(self, cuda: Cuda, owner: contextlib.ExitStack) -> None:
        self._cuda, self._owner = cuda, owner
        self.size = 0
        self._address: int | None = None

    def needs(self, size: int) -> None:
        """Be at least `size` bytes large; said of every engine before the first is prepared."""
        assert self._address is None
        self.size = max(self.size, size)

    @property
    def address(self) -> int:
        if self._address is None:
            self._address = self._cuda.memory(self.size, self._owner)
        return self._address


class _Plan:
    """A deserialized engine."""

    def __init__(
        self, library: TensorRTLibrary, cuda: Cuda, scratch: _Scratch, plan: Any, build: Build, spec: EngineSpec
    ) -> None:
        self.spec = spec
        self._library, self._cuda, self._scratch, self._plan, self._build = library, cuda, scratch, plan, build

    def prepare(self, axes: Mapping[str, int], owner: contextlib.ExitStack) -> _Context:
        """A context of its own for every size: one that was captured must not be changed while the graph lives."""
        library, name = self._library, self.spec.name
        library.log.lines.clear()
        self._check_profile(axes)
        strategy = library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = library.made(self._plan.create_execution_context(strategy), f"{name}: no context")
        context.set_device_memory(self._scratch.address, self._scratch.size)
        for tensor in self.spec.inputs:
            shape = tensor.sized(axes)
            library.true(context.set_input_shape(tensor.name, shape), f"{name}: refused {tensor.name} of {shape}")
        try:
            missing = context.infer_shapes()
        except RuntimeError as error:  # where it fails for any other reason than a shape that was not set
            raise library.failure(f"{name}: no shapes ({error})") from error
        library.true(not missing, f"{name}: shapes missing of {', '.join(missing)}")
        execution = _Context(library, self._cuda, context, name)
        owner.callback(execution.close)
        return execution

    def close(self) -> None:
        self._plan = None

    def _check_profile(self, axes: Mapping[str, int]) -> None:
        for tensor in self.spec.inputs:
            shape, (least, _, most) = tensor.sized(axes), self._build.profile[tensor.name]
            if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
                raise BackendError(
                    f"engine {self.spec.name} was built for {tensor.name} of {list(least)} to {list(most)}, and this "
                    f"request needs {list(shape)}; mar build ARTIFACT --target {self._build.target}, with the "
                    "request's own settings and --batch"
                )


class _Context:
    """An engine at one size."""

    def __init__(self, library: TensorRTLibrary, cuda: Cuda, context: Any, name: str) -> None:
        self._library, self._cuda, self._context, self._name = library, cuda, context, name
        self._addresses: dict[str, int] = {}

    def enqueue(self, addresses: Mapping[str, int]) -> None:
        for tensor, address in addresses.items():
            if self._addresses.get(tensor) != address:
                placed = self._context.set_tensor_address(tensor, address)
                self._library.true(placed, f"{self._name}: refused the address of {tensor}")
                self._addresses[tensor] = address
        self._library.true(self._context.execute_async_v3(self._cuda.stream), f"engine {self._name} failed")

    def close(self) -> None:
        try:
            self._cuda.synchronize()  # where a failure left work on the stream, it still uses this
        finally:
            self._context = None


def _check_tensors(library: TensorRTLibrary, plan: Any, spec: EngineSpec) -> None:
    """Names, types and fixed sizes of an engine against its spec."""
    module = library.module
    dtypes = {"float32": module.DataType.FLOAT, "int64": module.DataType.INT64}
    names = [plan.get_tensor_name(number) for number in range(plan.num_io_tensors)]
    found = {
        name: (plan.get_tensor_mode(name), plan.get_tensor_dtype(name), tuple(plan.get_tensor_shape(name)))
        for name in names
    }
    wanted = {
        tensor.name: (mode, dtypes[tensor.dtype], tuple(-1 if isinstance(d, str) else d for d in tensor.shape))
        for mode, tensors in ((module.TensorIOMode.INPUT, spec.inputs), (module.TensorIOMode.OUTPUT, spec.outputs))
        for tensor in tensors
    }
    if found != wanted:
        raise BackendError(f"engine {spec.name} has {found} where its spec has {wanted}; build it again")

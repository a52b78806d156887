"""The runtime side of the fake TensorRT: engines on the simulated GPU that compute with ONNX Runtime.

A serialized engine is JSON here, which names the file of its graph.
"""

from __future__ import annotations

import enum
import functools
import json
import weakref
from typing import Any, ClassVar

import numpy as np
import onnxruntime

from tests.fakes.tensorrt.script import TensorRTScript

_DTYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}
SCRATCH = 1000  # bytes
ALIGNMENT = 256  # bytes, which every address must be a multiple of


@functools.cache
def on_processor(graph: str) -> Any:
    """A session that computes a graph on the processor. Sessions are shared, because no test changes one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT64 = 8


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class IExecutionContext:
    def __init__(self, script: TensorRTScript, engine: ICudaEngine) -> None:
        self._script, self._engine = script, engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None
        self._ran_once = False
        script.gpu.holds(self, "execution context")

    def set_device_memory(self, memory: int, size: int) -> None:
        self._script.history.append(("set_device_memory", memory, size))
        assert memory % 256 == 0
        assert size >= self._engine.device_memory_size_v2
        self._scratch = memory, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self._engine.profile[name]
        inside = all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True))
        if self._script.fails("set_input_shape", name, shape) or not inside:
            return False
        self._shapes[name], self._ran_once = shape, False
        return True

    def infer_shapes(self) -> list[str]:
        if self._script.fails("infer_shapes"):
            return ["x"]
        if self._script.fails("infer_shapes raises"):
            raise RuntimeError("Shape inference failed")
        return [name for name in self._engine.profile if name not in self._shapes]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return not self._script.fails("set_tensor_address", name)

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda, engine = self._script.gpu, self._engine
        if self._script.fails("execute_async_v3", engine.name, stream_handle):
            return False
        captured = cuda.capturing is not None
        assert self._ran_once or not captured, "captured before a first call with these sizes"
        self._ran_once = True
        assert self._scratch is not None
        addresses, shapes, (scratch, size) = dict(self._addresses), dict(self._shapes), self._scratch
        context, name = weakref.ref(self), engine.name
        for tensor, address in addresses.items():
            assert address % ALIGNMENT == 0, f"{tensor} of {engine.name} is not aligned"

        def execute() -> None:
            alive = context()
            assert alive is not None, f"{name} was still to run when its context was destroyed"
            inputs, session = {}, alive._engine.session
            for tensor in session.get_inputs():
                dtype, shape = _DTYPES[tensor.type], shapes[tensor.name]
                read = cuda.on_device(addresses[tensor.name], int(np.prod(shape)) * dtype.itemsize)
                inputs[tensor.name] = read.copy().view(dtype).reshape(shape)
            cuda.on_device(scratch, size)[...] = 0x5A  # shared by all engines, so none may rely on its content
            for tensor, computed in zip(session.get_outputs(), session.run(None, inputs), strict=True):
                output = np.full_like(computed, np.inf) if alive._script.infinite else computed
                place = cuda.on_device(addresses[tensor.name], output.nbytes)
                place[...] = np.ascontiguousarray(output).reshape(-1).view(np.uint8)

        cuda.put(stream_handle, execute)
        return True


class ICudaEngine:
    def __init__(self, script: TensorRTScript, plan: dict[str, Any]) -> None:
        self.session = on_processor(plan["graph"])
        self.name, self.profile = plan["engine"], plan["profile"]
        self._script, self._tensors = script, [*self.session.get_inputs(), *self.session.get_outputs()]
        script.gpu.holds(self, "engine")

    @property
    def device_memory_size_v2(self) -> int:
        return SCRATCH + len(self.name)

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def _tensor(self, name: str) -> Any:
        return next(tensor for tensor in self._tensors if tensor.name == name)

    def get_tensor_name(self, index: int) -> str:
        return str(self._tensors[index].name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.profile else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return {np.dtype(np.float32): DataType.FLOAT, np.dtype(np.int64): DataType.INT64}[
            _DTYPES[self._tensor(name).type]
        ]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._tensor(name).shape)

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> IExecutionContext | None:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        failed = self._script.fails("create_execution_context", self.name)
        return None if failed else IExecutionContext(self._script, self)


class Runtime:
    _script: ClassVar[TensorRTScript]
    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        self._script.logger = logger
        self._script.constructed("Runtime")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        failed = self._script.fails("deserialize_cuda_engine", self.engine_host_code_allowed)
        return None if failed else ICudaEngine(self._script, json.loads(serialized_engine))


class Refitter:
    _script: ClassVar[TensorRTScript]

    def __init__(self, engine: ICudaEngine, logger: Any) -> None:
        assert isinstance(engine, ICudaEngine)
        self._script.constructed("Refitter")

    def refit_cuda_engine(self) -> bool:
        return not self._script.fails("refit_cuda_engine")


class OnnxParserRefitter:
    _script: ClassVar[TensorRTScript]

    def __init__(self, refitter: Refitter, logger: Any) -> None:
        assert isinstance(refitter, Refitter)
        self._script.constructed("OnnxParserRefitter")

    def refit_from_file(self, model: str) -> bool:
        return not self._script.fails("refit_from_file", model)


CLASSES = (DataType, TensorIOMode, ExecutionContextAllocationStrategy, ICudaEngine, IExecutionContext)
SCRIPTED_CLASSES = (Runtime, Refitter, OnnxParserRefitter)

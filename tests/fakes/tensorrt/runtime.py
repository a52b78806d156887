"""TensorRT's runtime over the simulated GPU: engines that really compute, with ONNX Runtime, where they are told to.

A plan here is JSON that names its graph. Nothing has a name that the real library has not, as
test_tensorrt_backend.py checks, and calls fail as the real ones do: with None, False and a line in the log.
"""

from __future__ import annotations

import enum
import functools
import json
import types
import weakref
from typing import Any

import numpy as np
import onnxruntime

from tests.fakes.simulated_cuda import SimulatedCuda

_DTYPES = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}
SCRATCH = 1000  # bytes
ALIGNMENT = 256  # bytes, which set_tensor_address asks of an address


@functools.cache
def on_processor(graph: str) -> Any:
    """What computes a graph here, made once: no test changes one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


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


class ILogger:
    Severity = Severity


class Simulation:
    """What the library stands on, which calls of it fail, and what it was told."""

    def __init__(self, cuda: SimulatedCuda) -> None:
        self.cuda, self.logger = cuda, None
        self.failing: set[str] = set()
        self.told: list[tuple[Any, ...]] = []
        self.infinite = False  # whether engines compute infinities

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of `name`."""
        return [tuple(arguments) for call, *arguments in self.told if call == name]

    def fails(self, call: str, *arguments: Any) -> bool:
        self.told.append((call, *arguments))
        if call in self.failing:
            assert self.logger is not None
            self.logger.log(Severity.WARNING, "which nobody needs to know")
            self.logger.log(Severity.ERROR, f"{call} broke")
        return call in self.failing

    def constructed(self, name: str) -> None:
        if self.fails(name):
            raise TypeError("pybind11::init(): factory function returned nullptr")


class IExecutionContext:
    def __init__(self, simulation: Simulation, engine: ICudaEngine) -> None:
        self._simulation, self._engine = simulation, engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None
        self._settled = False
        simulation.cuda.holds(self, "execution context")

    def set_device_memory(self, memory: int, size: int) -> None:
        self._simulation.told.append(("set_device_memory", memory, size))
        assert memory % 256 == 0
        assert size >= self._engine.device_memory_size_v2
        self._scratch = memory, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.profile[name]
        inside = all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))
        if self._simulation.fails("set_input_shape", name, shape) or not inside:
            return False
        self._shapes[name], self._settled = shape, False
        return True

    def infer_shapes(self) -> list[str]:
        if self._simulation.fails("infer_shapes"):
            return ["x"]
        if self._simulation.fails("infer_shapes raises"):
            raise RuntimeError("Shape inference failed")
        return [name for name in self._engine.profile if name not in self._shapes]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return not self._simulation.fails("set_tensor_address", name)

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda, engine = self._simulation.cuda, self._engine
        if self._simulation.fails("execute_async_v3", engine.name, stream_handle):
            return False
        captured = cuda.capturing is not None
        assert self._settled or not captured, "captured before a first call settled the sizes"
        self._settled = True
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
            cuda.on_device(scratch, size)[...] = 0x5A  # it is everybody's, and nobody may count on it
            for tensor, computed in zip(session.get_outputs(), session.run(None, inputs), strict=True):
                output = np.full_like(computed, np.inf) if alive._simulation.infinite else computed
                place = cuda.on_device(addresses[tensor.name], output.nbytes)
                place[...] = np.ascontiguousarray(output).reshape(-1).view(np.uint8)

        cuda.put(stream_handle, execute)
        return True


class ICudaEngine:
    def __init__(self, simulation: Simulation, plan: dict[str, Any]) -> None:
        self.session = on_processor(plan["graph"])
        self.name, self.profile = plan["engine"], plan["profile"]
        self._simulation, self._tensors = simulation, [*self.session.get_inputs(), *self.session.get_outputs()]
        simulation.cuda.holds(self, "engine")

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
        failed = self._simulation.fails("create_execution_context", self.name)
        return None if failed else IExecutionContext(self._simulation, self)


class Runtime:
    simulation: Simulation
    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        self.simulation.logger = logger
        self.simulation.constructed("Runtime")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        failed = self.simulation.fails("deserialize_cuda_engine", self.engine_host_code_allowed)
        return None if failed else ICudaEngine(self.simulation, json.loads(serialized_engine))


class Refitter:
    simulation: Simulation

    def __init__(self, engine: ICudaEngine, logger: Any) -> None:
        assert isinstance(engine, ICudaEngine)
        self.simulation.constructed("Refitter")

    def refit_cuda_engine(self) -> bool:
        return not self.simulation.fails("refit_cuda_engine")


class OnnxParserRefitter:
    simulation: Simulation

    def __init__(self, refitter: Refitter, logger: Any) -> None:
        assert isinstance(refitter, Refitter)
        self.simulation.constructed("OnnxParserRefitter")

    def refit_from_file(self, model: str) -> bool:
        return not self.simulation.fails("refit_from_file", model)


SCRIPTED = (Runtime, Refitter, OnnxParserRefitter)
PLAIN = (ILogger, DataType, TensorIOMode, ExecutionContextAllocationStrategy)


def simulated_tensorrt(simulation: Simulation, version: str, name: str = "tensorrt") -> types.ModuleType:
    """A module in place of `name`."""
    module = types.ModuleType(name)
    for part in PLAIN:
        setattr(module, part.__name__, part)
    for part in SCRIPTED:
        setattr(module, part.__name__, type(part.__name__, (part,), {"simulation": simulation}))
    module.__dict__["__version__"] = version
    return module

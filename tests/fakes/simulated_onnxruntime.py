"""A fake of ONNX Runtime's CUDA provider: its sessions compute on the processor, with the memory of the simulated GPU.

With CUDA graphs, the first run with a `gpu_graph_id` runs, and then captures and launches the capture, as the real
provider does. Later runs launch the capture, with the addresses that were bound first. A run with -1 is not captured.
No class has a name that the real library does not have, as test_onnxruntime_cuda.py checks.
"""

from __future__ import annotations

import ctypes
import os
import types
import weakref
from typing import Any

import numpy as np
import onnxruntime

from tests.fakes.simulated_cuda import SimulatedCuda
from tests.fakes.tensorrt.runtime import on_processor

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

Bound = tuple[Any, tuple[int, ...], int]  # type, shape, address


class Simulation:
    """The GPU, the providers that the library has and uses, and the calls that it got."""

    def __init__(self, cuda: SimulatedCuda) -> None:
        self.cuda = cuda
        self.providers = self.loads = [CUDA, CPU]
        self.failing: set[str] = set()  # calls
        self.settings: list[dict[str, str]] = []  # of every session
        self.runs: list[tuple[str, str]] = []  # the engine and graph id of each


class IOBinding:
    def __init__(self, session: InferenceSession) -> None:
        self._session = session
        self._inputs: dict[str, Bound] = {}
        self._outputs: dict[str, Bound] = {}

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Any, buffer_ptr: int
    ) -> None:
        assert (device_type, device_id) == ("cuda", 0)
        self._inputs[name] = element_type, tuple(shape), buffer_ptr

    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Any = None,
        buffer_ptr: int | None = None,
    ) -> None:
        assert (device_type, device_id) == ("cuda", 0)
        assert buffer_ptr is not None
        self._outputs[name] = element_type, tuple(shape), buffer_ptr


class InferenceSession:
    simulation: Simulation

    def __init__(
        self,
        path_or_bytes: str,
        sess_options: Any = None,
        providers: Any = None,
        provider_options: Any = None,
        **kwargs: Any,
    ) -> None:
        assert kwargs.keys() <= {"disabled_optimizers"}
        ((provider, settings),) = providers
        assert provider == CUDA
        if "InferenceSession" in self.simulation.failing:
            raise RuntimeError("InferenceSession broke\nat some length")
        self.simulation.settings.append(settings)
        self._graph = os.path.realpath(path_or_bytes)  # the path may be that of a descriptor
        self._session = on_processor(self._graph)
        self._stream, self._captures = int(settings["user_compute_stream"]), settings["enable_cuda_graph"] == "1"
        self._captured: dict[str, tuple[ctypes.c_void_p, Any]] = {}
        self.simulation.cuda.holds(self, "session")
        weakref.finalize(self, _destroy, self.simulation.cuda, self._captured)

    def get_providers(self) -> list[str]:
        return self.simulation.loads

    def get_inputs(self) -> Any:
        return self._session.get_inputs()

    def get_outputs(self) -> Any:
        return self._session.get_outputs()

    def io_binding(self) -> IOBinding:
        return IOBinding(self)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: Any = None) -> None:
        assert iobinding._session is self
        simulation, cuda, stream = self.simulation, self.simulation.cuda, ctypes.c_void_p(self._stream)
        if "run_with_iobinding" in simulation.failing:
            raise RuntimeError("run_with_iobinding broke\nat some length")
        number = run_options.get_run_config_entry("gpu_graph_id")
        assert run_options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        simulation.runs.append((self._graph, number))
        bound = dict(iobinding._inputs), dict(iobinding._outputs)
        if not self._captures or number == "-1":
            self._put(*bound)
            return
        if number not in self._captured:
            self._put(*bound)
            graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
            assert cuda.cuStreamBeginCapture_v2(stream, 1) == 0
            self._put(*bound)
            assert cuda.cuStreamEndCapture(stream, ctypes.byref(graph)) == 0
            assert cuda.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, 0) == 0
            assert cuda.cuGraphDestroy(graph) == 0
            self._captured[number] = executable, bound
        executable, captured = self._captured[number]
        assert captured == bound, "a graph knows addresses and shapes, and cannot take others"
        assert cuda.cuGraphLaunch(executable, stream) == 0

    def _put(self, inputs: dict[str, Bound], outputs: dict[str, Bound]) -> None:
        cuda, this = self.simulation.cuda, weakref.ref(self)

        def execute() -> None:
            alive = this()
            assert alive is not None, "a session was still to run when it was freed"
            given = {}
            for name, (kind, shape, address) in inputs.items():
                size = int(np.prod(shape)) * np.dtype(kind).itemsize
                given[name] = cuda.on_device(address, size).copy().view(kind).reshape(shape)
            for tensor, found in zip(alive.get_outputs(), alive._session.run(None, given), strict=True):
                kind, shape, address = outputs[tensor.name]
                assert (found.dtype, found.shape) == (np.dtype(kind), shape)
                cuda.on_device(address, found.nbytes)[...] = np.ascontiguousarray(found).reshape(-1).view(np.uint8)

        cuda.put(self._stream, execute)


def _destroy(cuda: SimulatedCuda, captured: dict[str, tuple[ctypes.c_void_p, Any]]) -> None:
    for executable, _ in captured.values():
        cuda.handles.pop(executable.value or 0)
        cuda.graphs.pop(executable.value or 0)


def simulated_onnxruntime(simulation: Simulation) -> types.ModuleType:
    """A module in place of `onnxruntime`, with its own options."""
    module: Any = types.ModuleType("onnxruntime")
    module.__version__ = onnxruntime.__version__
    module.SessionOptions, module.RunOptions = onnxruntime.SessionOptions, onnxruntime.RunOptions
    module.get_available_providers = lambda: simulation.providers
    module.InferenceSession = type("InferenceSession", (InferenceSession,), {"simulation": simulation})
    made: types.ModuleType = module
    return made

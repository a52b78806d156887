"""OpenVINO on a processor: it uses the bf16 and int8 instructions of newer processors."""

from __future__ import annotations

import functools
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.verified_files import GraphFile
from runtime.backends.cpu import CpuBackend, Tensors, check_tensors
from runtime.backends.openvino_bf16 import round_before_conversion
from runtime.backends.telemetry import import_library
from runtime.errors import BackendError
from runtime.model.engine_spec import Array, Engine, EngineSpec, TensorSpec

_DTYPES = {"f32": "float32", "i64": "int64"}
_CODE_LOCATIONS = re.compile(r"^(Exception from |Check '.*' failed at |\S+ failed with |Errors during |Summary:$)")


class OpenVino(CpuBackend):
    """The backend `openvino`.

    Attributes:
        precisions: The precisions that it can run. It computes fp16 and fp8 in float32.
        has_bf16: Whether the processor has bf16 instructions. If not, bf16 graphs are computed in float32.
    """

    precisions = ("fp32", "fp16", "bf16", "int8", "fp8", "w8", "w4")

    def __init__(self, name: str, threads: int, cuda_graphs: bool = False) -> None:
        """Open OpenVINO.

        Args:
            name: The backend's name, for error messages.
            threads: The number of processor threads.
            cuda_graphs: Not used; every backend takes it.

        Raises:
            BackendError: OpenVINO is not installed or does not load.
        """
        self._library, self._core = open_openvino(name)
        self.has_bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        threads = min(threads, os.cpu_count() or 1)  # OpenVINO uses no more than this
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_HYPER_THREADING": True,  # `threads` counts hyper-threads too
            "ENABLE_CPU_PINNING": False,  # two processes would pin their threads to the same cores
            # By default OpenVINO computes float32 in lower precision if the processor can. This keeps float32;
            # operators that are bf16 or int8 in the graph stay so.
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        super().__init__(f"openvino {openvino_version(self._library)}", threads)

    def load(self, artifact: Artifact, name: str) -> Engine:
        """Load an engine of a verified artifact; see `runtime.backends.Backend.load`."""
        with artifact.verified_graph(name) as graph:
            return self._load(graph, artifact.manifest.specs[name])

    def load_graph(self, path: pathlib.Path, spec: EngineSpec) -> Engine:
        """Load a graph from a file, which need not belong to an artifact.

        Args:
            path: The ONNX file.
            spec: Its inputs and outputs.

        Raises:
            BackendError: OpenVINO cannot load the graph, or the graph differs from its spec.
        """
        return self._load(GraphFile(path, str(path)), spec)

    def _load(self, graph: GraphFile, spec: EngineSpec) -> Engine:
        path = graph.path
        # It reads external weights only from beside the path of the graph.
        source = str(path) if graph.weights else graph.source
        try:
            model = self._core.read_model(source)
            if self.has_bf16:
                round_before_conversion(self._library, model)
            compiled = self._core.compile_model(model, "CPU", self._settings)
        except Exception as error:  # RuntimeError, or whatever the binding raises
            why = reason(error).replace(graph.source, str(path))
            raise BackendError(f"{path}: openvino cannot load it ({why}); export again") from error
        check_tensors(path, _tensors(compiled.inputs, spec.inputs), spec.inputs)
        check_tensors(path, _tensors(compiled.outputs, spec.outputs), spec.outputs)
        request, tensor_class = compiled.create_infer_request(), self._library.Tensor

        def run(inputs: Sequence[Array]) -> Sequence[Array]:
            # A tensor that shares the memory of an array does not own it: the arrays must live until the call is done.
            arrays = [np.require(array, requirements=["C", "W"]) for array in inputs]
            for number, array in enumerate(arrays):
                request.set_input_tensor(number, tensor_class(array, shared_memory=True))
            request.infer()
            # Copies, because the next call writes into the same memory.
            return [request.get_output_tensor(number).data.copy() for number in range(len(spec.outputs))]

        return self._engine(spec, run, lambda error: f"openvino: {reason(error)}")


def open_openvino(name: str) -> tuple[Any, Any]:
    """Import OpenVINO.

    Args:
        name: The backend's name, for the error message.

    Returns:
        The module openvino, and the core of this process.

    Raises:
        BackendError: OpenVINO is not installed, or does not load.
    """
    try:
        library = import_library("openvino")
        return library, _core(library)
    except ImportError as error:
        raise BackendError(f"backend {name} is not installed ({error}); pip install 'mar-runtime[openvino]'") from None
    except (OSError, RuntimeError) as error:
        raise BackendError(f"openvino does not load: {reason(error)}; install it again") from error


@functools.cache
def _core(library: Any) -> Any:
    """Return the core of this process, which lives until the process ends.

    There must not be two cores. Each core installs an alternate signal stack for its thread and restores the previous
    one when it is freed. If two cores are freed in the order of their creation, the second restores the stack of the
    first, which is freed already, and the next signal that Python handles ends the process (OpenVINO 2026.4).
    """
    return library.Core()


def openvino_version(library: Any) -> str:
    """Return the version of OpenVINO without the number of its build, such as `2026.2.0`."""
    return str(library.__version__).split("-")[0]


def _tensors(ports: Sequence[Any], expected: Sequence[TensorSpec]) -> Tensors:
    """Return the inputs or outputs of a graph. Of the names of a tensor it chooses the expected one."""
    expected_names = [spec.name for spec in expected] + [""] * len(ports)
    tensors = []
    for port, name in zip(ports, expected_names, strict=False):
        names = port.get_names()
        dtype = port.element_type.get_type_name()
        sizes = [axis.get_length() if axis.is_static else None for axis in port.partial_shape]
        tensors.append((name if name in names else min(names, default=""), _DTYPES.get(dtype, dtype), sizes))
    return tensors


def reason(error: Exception) -> str:
    """Return the message of an OpenVINO exception in one line, without the locations in OpenVINO's source code."""
    lines = [line.strip() for line in str(error).split("\n")]
    return " ".join(line for line in lines if line and not _CODE_LOCATIONS.match(line)) or type(error).__name__

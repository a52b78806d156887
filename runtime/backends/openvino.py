"""OpenVINO on a CPU: bf16 and int8 by the instructions that newer processors have for them."""

from __future__ import annotations

import functools
import importlib
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.artifact.artifact_folder import Artifact
from runtime.backends.cpu import CpuBackend, Tensors, check_tensors
from runtime.errors import BackendError
from runtime.model.engine_spec import Array, Engine, EngineSpec, TensorSpec

_DTYPES = {"f32": "float32", "i64": "int64"}
_PLACES = re.compile(r"^(Exception from |Check '.*' failed at |\S+ failed with |Errors during |Summary:$)")


class OpenVino(CpuBackend):
    # fp16 and fp8 by way of float32, and so bf16 where the processor has no products for it
    precisions = ("fp32", "fp16", "bf16", "int8", "fp8", "w8", "w4")

    def __init__(self, name: str, threads: int, cuda_graphs: bool = False) -> None:
        self._library, self._core = open_openvino(name)
        threads = min(threads, os.cpu_count() or 1)  # as many as OpenVINO ever takes
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_HYPER_THREADING": True,  # `threads` are what the process may use, whatever they are
            "ENABLE_CPU_PINNING": False,  # two processes would pin theirs to the same processors
            # Its own choice is lower precision wherever the processor can; what a graph says in bf16 or int8 stays so.
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        super().__init__(f"openvino {openvino_version(self._library)}", threads)

    def load(self, artifact: Artifact, name: str) -> Engine:
        return self.load_graph(artifact.engine_file(name), artifact.manifest.specs[name])

    def load_graph(self, path: pathlib.Path, spec: EngineSpec) -> Engine:
        """The graph at `path`, of an artifact or not. Raises `BackendError`."""
        try:
            compiled = self._core.compile_model(self._core.read_model(path), "CPU", self._settings)
        except Exception as error:  # RuntimeError, or whatever the binding raises
            raise BackendError(f"{path}: openvino cannot load it ({reason(error)}); export again") from error
        check_tensors(path, _tensors(compiled.inputs, spec.inputs), spec.inputs)
        check_tensors(path, _tensors(compiled.outputs, spec.outputs), spec.outputs)
        request, shared = compiled.create_infer_request(), self._library.Tensor

        def run(inputs: Sequence[Array]) -> Sequence[Array]:
            # A tensor that shares an array's memory does not keep the array: these must live until the call is over.
            arrays = [np.require(array, requirements=["C", "W"]) for array in inputs]
            for number, array in enumerate(arrays):
                request.set_input_tensor(number, shared(array, shared_memory=True))
            request.infer()
            # The next call writes into the same memory.
            return [request.get_output_tensor(number).data.copy() for number in range(len(spec.outputs))]

        return self._engine(spec, run, lambda error: f"openvino: {reason(error)}")


def open_openvino(name: str) -> tuple[Any, Any]:
    """The library and its core, or a `BackendError` that says how to install it for the backend called `name`."""
    try:
        library = importlib.import_module("openvino")
        return library, _core(library)
    except ImportError as error:
        raise BackendError(f"backend {name} is not installed ({error}); pip install 'mar-runtime[openvino]'") from None
    except (OSError, RuntimeError) as error:
        raise BackendError(f"openvino does not load: {reason(error)}; install it again") from error


@functools.cache
def _core(library: Any) -> Any:
    """One for the process, until it ends.

    Each core gives its thread a stack for signals, and takes back the one before when it goes: of two that
    go in the order they came, the second brings back the first one's, which is freed, and the next signal
    that Python handles is the end of the process (OpenVINO 2026.4).
    """
    return library.Core()


def openvino_version(library: Any) -> str:
    """Without the build."""
    return str(library.__version__).split("-")[0]


def _tensors(ports: Sequence[Any], expected: Sequence[TensorSpec]) -> Tensors:
    """What the graph has, by the name that is looked for where a tensor has several."""
    wanted = [spec.name for spec in expected] + [""] * len(ports)
    found = []
    for port, looked_for in zip(ports, wanted, strict=False):
        names = port.get_names()
        dtype = port.element_type.get_type_name()
        sizes = [axis.get_length() if axis.is_static else None for axis in port.partial_shape]
        found.append((looked_for if looked_for in names else min(names, default=""), _DTYPES.get(dtype, dtype), sizes))
    return found


def reason(error: Exception) -> str:
    """What an exception of OpenVINO says in one line, without the places in its own code that it passed through."""
    lines = [line.strip() for line in str(error).split("\n")]
    return " ".join(line for line in lines if line and not _PLACES.match(line)) or type(error).__name__

"""ONNX Runtime: the backend that works everywhere, on a CPU."""

from __future__ import annotations

import pathlib
from typing import Any

from runtime.backends import Array, Engine
from runtime.errors import BackendError, RequestError
from runtime.spec import EngineSpec, TensorSpec

_PROVIDERS = {"cpu": "CPUExecutionProvider"}
_PRECISIONS = {"cpu": ("fp32", "fp16")}  # fp16 by way of float32, which saves files but no time
_DTYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}
_ERRORS_ONLY = 3


class OnnxRuntime:
    def __init__(self, device: str, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(
                f"backend onnxruntime is not installed ({error}); pip install 'mar-runtime[cpu]'"
            ) from None
        if device not in _PROVIDERS:
            raise RequestError(
                f"backend onnxruntime runs on {', '.join(_PROVIDERS)} in this version, not on {device!r}"
            )
        self.description = f"onnxruntime {onnxruntime.__version__}, {device}, {threads} threads"
        self.precisions = _PRECISIONS[device]
        self._library, self._provider, self._threads = onnxruntime, _PROVIDERS[device], threads
        self._engines: list[_Session] = []

    def load(self, path: pathlib.Path, spec: EngineSpec) -> Engine:
        options = self._library.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.log_severity_level = _ERRORS_ONLY
        # One plan of memory a shape would be kept, and most passes of the backbone have a shape of their own.
        options.enable_mem_pattern = False
        # Engines run in turn, each with threads of its own: those that wait must not spin on the same cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = self._library.InferenceSession(str(path), options, providers=[self._provider])
        except Exception as error:  # its exception classes share no narrower base
            raise BackendError(f"{path}: onnxruntime cannot load it ({_first_line(error)}); export again") from error
        # A provider that did not load is only a warning to ONNX Runtime, which then runs on the CPU.
        if session.get_providers()[0] != self._provider:
            raise BackendError(f"onnxruntime loaded {session.get_providers()[0]} instead of {self._provider}")
        for found, expected in ((session.get_inputs(), spec.inputs), (session.get_outputs(), spec.outputs)):
            _check_tensors(path, found, expected)
        engine = _Session(session, spec)
        self._engines.append(engine)
        return engine

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
        self._engines.clear()


class _Session:
    """One loaded graph, called with arrays by name."""

    def __init__(self, session: Any, spec: EngineSpec) -> None:
        self._session, self._spec = session, spec
        self._outputs = [tensor.name for tensor in spec.outputs]

    def __call__(self, **inputs: Array) -> tuple[Array, ...]:
        if self._session is None:
            raise BackendError(f"engine {self._spec.name} was used after its generator was closed")
        try:
            return tuple(self._session.run(self._outputs, inputs))
        except Exception as error:
            raise BackendError(f"engine {self._spec.name} failed in onnxruntime: {_first_line(error)}") from error

    def close(self) -> None:
        self._session = None


def _check_tensors(path: pathlib.Path, found: list[Any], expected: tuple[TensorSpec, ...]) -> None:
    """Names, types and fixed sizes of a graph against its spec."""
    described = [
        (tensor.name, tensor.type, [d if isinstance(d, int) else None for d in tensor.shape]) for tensor in found
    ]
    wanted = [
        (spec.name, _DTYPES[spec.dtype], [d if isinstance(d, int) else None for d in spec.shape]) for spec in expected
    ]
    if described != wanted:
        raise BackendError(f"{path}: the graph has {described} where its spec has {wanted}; export again")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__

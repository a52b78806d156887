"""ONNX Runtime on a CPU: the backend that works everywhere."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from runtime.artifact.artifact_folder import Artifact
from runtime.backends.cpu import CpuBackend, Tensors, check_tensors, fixed_sizes
from runtime.errors import BackendError
from runtime.model.engine_spec import Array, Engine, EngineSpec

_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}
_ERRORS_ONLY = 3
_SPINS_FOR_A_TIME = (1, 26)  # ONNX Runtime, from this version on
_SPIN_MICROSECONDS = 200  # longer than Python takes from one step of denoise to the next


class OnnxRuntime(CpuBackend):
    # fp16 and fp8 by way of float32, which saves files but no time
    precisions = ("fp32", "fp16", "int8", "fp8", "w8", "w4")

    def __init__(self, name: str, threads: int, cuda_graphs: bool = False, *, map_weights: bool = False) -> None:
        """With `map_weights` they are read from their file at every call: slower, in half the memory."""
        self._library = import_onnxruntime(name, "cpu")
        self._threads, self._map_weights = threads, map_weights
        super().__init__(f"onnxruntime {self._library.__version__}", threads)

    def load(self, artifact: Artifact, name: str) -> Engine:
        manifest = artifact.manifest
        return self.load_graph(artifact.engine_file(name), manifest.specs[name], manifest.precision)

    def load_graph(self, path: pathlib.Path, spec: EngineSpec, precision: str = "fp32") -> Engine:
        """The graph at `path`, of an artifact or not. Raises `BackendError`."""
        options = session_options(self._library)
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        # One plan of memory a shape would be kept, and most passes of the backbone have a shape of their own.
        options.enable_mem_pattern = False
        options.add_session_config_entry(*brief_spinning(self._library.__version__))
        if self._map_weights:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if precision == "fp8":
            options.add_session_config_entry("session.disable_quant_qdq", "1")  # it takes fp8 for int8, and fails
        # A product of int8 with its bias added is one operator only as long as the two are not joined before.
        left_out = ["MatMulAddFusion"] if precision == "int8" else []
        session = open_session(self._library, path, spec, options, "CPUExecutionProvider", {}, left_out)
        names, outputs = [tensor.name for tensor in spec.inputs], [tensor.name for tensor in spec.outputs]

        def run(inputs: Sequence[Array]) -> Sequence[Array]:
            found: Sequence[Array] = session.run(outputs, dict(zip(names, inputs, strict=True)))
            return found

        return self._engine(spec, run, lambda error: f"onnxruntime: {first_line(error)}")


def import_onnxruntime(name: str, extra: str) -> Any:
    """The library, or a `BackendError` that says how to install it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"backend {name} is not installed ({error}); pip install 'mar-runtime[{extra}]'") from None
    return onnxruntime


def brief_spinning(version: str) -> tuple[str, str]:
    """The session's setting, in this version of ONNX Runtime, that lets waiting threads spin, but not for long.

    A thread that sleeps wakes later than most operators take. Engines run in turn, each with threads of its own,
    so one that spins for longer takes a core from the next engine.
    """
    if tuple(map(int, version.split(".")[:2])) < _SPINS_FOR_A_TIME:
        return "session.force_spinning_stop", "1"  # when a call returns
    return "session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS)


def session_options(library: Any) -> Any:
    options = library.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    return options


def open_session(
    library: Any,
    path: pathlib.Path,
    spec: EngineSpec,
    options: Any,
    provider: str,
    settings: dict[str, str],
    left_out: Sequence[str] = (),
    remedy: str = "export again",
) -> Any:
    """A session that really runs on `provider`, whose graph has the inputs and outputs of `spec`.

    `left_out` are optimizations of ONNX Runtime, by its names for them; `remedy` is what to do where it cannot load.
    """
    # ONNX Runtime only warns of a provider that is missing or does not load, and runs on the CPU instead.
    if provider not in library.get_available_providers():
        found = ", ".join(library.get_available_providers())
        raise BackendError(f"this onnxruntime {library.__version__} has no {provider}, only {found}")
    try:
        session = library.InferenceSession(
            str(path), options, providers=[(provider, settings)], disabled_optimizers=left_out
        )
    except Exception as error:  # its exception classes share no narrower base
        raise BackendError(f"{path}: onnxruntime cannot load it ({first_line(error)}); {remedy}") from error
    if session.get_providers()[0] != provider:
        raise BackendError(f"onnxruntime loaded {session.get_providers()[0]} instead of {provider}")
    check_tensors(path, _tensors(session.get_inputs()), spec.inputs)
    check_tensors(path, _tensors(session.get_outputs()), spec.outputs)
    return session


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _tensors(found: list[Any]) -> Tensors:
    return [(tensor.name, _DTYPES.get(tensor.type, tensor.type), fixed_sizes(tensor.shape)) for tensor in found]

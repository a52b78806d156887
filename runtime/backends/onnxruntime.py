"""ONNX Runtime on a processor: the default backend, which works everywhere."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.verified_files import GraphFile
from runtime.backends.cpu import CpuBackend, Tensors, check_tensors, fixed_sizes
from runtime.backends.telemetry import import_library
from runtime.errors import BackendError
from runtime.model.engine_spec import Array, Engine, EngineSpec

_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64"}
_ERRORS_ONLY = 3  # the log severity ORT_LOGGING_LEVEL_ERROR
# Constant weights of these precisions become float32 when the graph is loaded. ONNX Runtime mistakes fp8 for int8, and
# fails. Its product of float32 activations with 8-bit weights converts all weights at every call.
_WEIGHTS_TO_FLOAT32 = ("fp8", "w8")
_SPIN_DURATION_SINCE = (1, 26)  # the first version that has the setting spin_duration_us
_SPIN_MICROSECONDS = 200  # longer than Python needs between two calls of denoise


class OnnxRuntime(CpuBackend):
    """The backend `onnxruntime` on `cpu`.

    Attributes:
        precisions: The precisions that it can run. It computes fp16 and fp8 in float32, and turns 8-bit weights into
            float32, so these make files smaller but not images faster.
    """

    precisions = ("fp32", "fp16", "int8", "fp8", "w8", "w4")

    def __init__(
        self,
        name: str,
        threads: int,
        cuda_graphs: bool = False,
        *,
        map_weights: bool = False,
        fold_constants: bool = True,
    ) -> None:
        """Open ONNX Runtime.

        Args:
            name: The backend's name, for error messages.
            threads: The number of processor threads.
            cuda_graphs: Not used; every backend takes it.
            map_weights: Whether weights stay in their memory-mapped files, without copies in the layout of the
                kernels: this is slower and needs half the memory.
            fold_constants: Whether what depends on constants alone is computed while a graph is loaded, and kept.

        Raises:
            BackendError: ONNX Runtime is not installed.
        """
        self._library = import_onnxruntime(name, "cpu")
        self._threads, self._map_weights, self._fold_constants = threads, map_weights, fold_constants
        super().__init__(f"onnxruntime {self._library.__version__}", threads)

    def load(self, artifact: Artifact, name: str) -> Engine:
        """Load an engine of a verified artifact; see `runtime.backends.Backend.load`."""
        manifest = artifact.manifest
        with artifact.verified_graph(name) as graph:
            return self._load(graph, manifest.specs[name], manifest.precision)

    def load_graph(self, path: pathlib.Path, spec: EngineSpec, precision: str = "fp32") -> Engine:
        """Load a graph from a file, which need not belong to an artifact.

        Args:
            path: The ONNX file.
            spec: Its inputs and outputs.
            precision: The precision of its weights and products, one of `precisions`.

        Raises:
            BackendError: ONNX Runtime cannot load the graph, or the graph differs from its spec.
        """
        return self._load(GraphFile(path, str(path)), spec, precision)

    def _load(self, graph: GraphFile, spec: EngineSpec, precision: str) -> Engine:
        options = session_options(self._library)
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        # ONNX Runtime would keep a memory plan for every shape, and nearly every pass of the backbone has another one.
        options.enable_mem_pattern = False
        options.add_session_config_entry(*brief_spinning(self._library.__version__))
        if self._map_weights:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if precision in _WEIGHTS_TO_FLOAT32:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        # This fusion would join a product and its bias before they can become one int8 operator.
        disabled = ["MatMulAddFusion"] if precision == "int8" else []
        if not self._fold_constants:  # the last level folds them whatever is disabled
            options.graph_optimization_level = self._library.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            disabled.append("ConstantFolding")
        session = open_session(self._library, graph, spec, options, "CPUExecutionProvider", {}, disabled)
        names, outputs = [tensor.name for tensor in spec.inputs], [tensor.name for tensor in spec.outputs]

        def run(inputs: Sequence[Array]) -> Sequence[Array]:
            arrays: Sequence[Array] = session.run(outputs, dict(zip(names, inputs, strict=True)))
            return arrays

        return self._engine(spec, run, lambda error: f"onnxruntime: {first_line(error)}")


def import_onnxruntime(name: str, extra: str) -> Any:
    """Import ONNX Runtime.

    Args:
        name: The backend's name, for the error message.
        extra: The extra of this project that installs it, for the error message.

    Raises:
        BackendError: It is not installed.
    """
    try:
        return import_library("onnxruntime")
    except ImportError as error:
        raise BackendError(f"backend {name} is not installed ({error}); pip install 'mar-runtime[{extra}]'") from None


def brief_spinning(version: str) -> tuple[str, str]:
    """Return the session setting, name and value, that makes waiting threads spin only for a short time.

    Waking a sleeping thread takes longer than most operators. But the engines run in turn, each with its own threads,
    so threads that spin for long take the processor cores from the next engine.

    Args:
        version: The version of ONNX Runtime. Versions before 1.26 have only a setting that ends spinning when a call
            returns.
    """
    if tuple(map(int, version.split(".")[:2])) < _SPIN_DURATION_SINCE:
        return "session.force_spinning_stop", "1"
    return "session.intra_op.spin_duration_us", str(_SPIN_MICROSECONDS)


def session_options(library: Any) -> Any:
    """Return options of a session that logs only errors, and that rounds no activations which the graph does not."""
    options = library.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    # By default a product with weights in blocks of 4 or 8 bits would round its activations to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    return options


def open_session(
    library: Any,
    graph: GraphFile,
    spec: EngineSpec,
    options: Any,
    provider: str,
    settings: dict[str, str],
    disabled: Sequence[str] = (),
    remedy: str = "export again",
) -> Any:
    """Load a graph in a session that runs on one execution provider.

    Args:
        library: The module onnxruntime.
        graph: The ONNX file.
        spec: Its inputs and outputs.
        options: The options of the session.
        provider: The execution provider, such as `CPUExecutionProvider`.
        settings: The settings of the provider.
        disabled: The names of the optimizers of ONNX Runtime to disable.
        remedy: What the user can do if ONNX Runtime cannot load the graph, for the error message.

    Raises:
        BackendError: The provider is not available, ONNX Runtime cannot load the graph, or the graph differs from its
            spec.
    """
    # If a provider is missing or does not load, ONNX Runtime only warns, and runs on the processor instead.
    if provider not in library.get_available_providers():
        available = ", ".join(library.get_available_providers())
        raise BackendError(f"this onnxruntime {library.__version__} has no {provider}, only {available}")
    path, wanted = graph.path, {"providers": [(provider, settings)], "disabled_optimizers": disabled}
    with graph.linked() as linked:
        try:
            session = _session(library, graph, linked, options, **wanted)
        except Exception as error:  # its exception classes share no narrower base
            reason = first_line(error)
            for source in filter(None, (linked, graph.source)):
                reason = reason.replace(source, str(path))
            raise BackendError(f"{path}: onnxruntime cannot load it ({reason}); {remedy}") from error
    if session.get_providers()[0] != provider:
        raise BackendError(f"onnxruntime loaded {session.get_providers()[0]} instead of {provider}")
    check_tensors(path, _tensors(session.get_inputs()), spec.inputs)
    check_tensors(path, _tensors(session.get_outputs()), spec.outputs)
    return session


def _session(library: Any, graph: GraphFile, linked: str | None, options: Any, **arguments: Any) -> Any:
    """Return a session of a graph, whose weights it maps one by one where they are linked: else it copies all first."""
    if linked is None and graph.weights:
        weights = {name: file.map() for name, file in graph.weights.items()}
        sizes = [len(content) for content in weights.values()]
        options.add_external_initializers_from_files_in_memory([*weights], [*weights.values()], sizes)
    return library.InferenceSession(linked or graph.source, options, **arguments)


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or the name of its class if it has no message."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def _tensors(nodes: list[Any]) -> Tensors:
    return [(node.name, _DTYPES.get(node.type, node.type), fixed_sizes(node.shape)) for node in nodes]

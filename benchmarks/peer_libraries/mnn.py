"""MNN: a graph of the artifact, converted once for all sizes.

Its exact GELU is the tanh form, so a backbone has other numbers.
"""

from __future__ import annotations

import pathlib

import _tools  # MNN's converter
import MNN

from benchmarks.peer_libraries.work import Load, Work
from runtime.artifact.artifact_folder import Artifact
from runtime.model.engine_spec import INT, Array, Engine, EngineSpec, TensorSpec
from runtime.storage.files import replacing


def mnn_engines(work: Work) -> Load:
    """Run the artifact's graphs."""
    artifact, folder = Artifact(pathlib.Path(work.artifact)), pathlib.Path(work.folder) / "mnn"
    folder.mkdir(exist_ok=True)

    def load(spec: EngineSpec) -> Engine:
        converted = folder / f"{spec.name}.mnn"
        if not converted.is_file():
            with replacing(converted) as target:
                source = ["-f", "ONNX", "--modelFile", str(artifact.engine_file(spec.name))]
                _tools.mnnconvert(["mnnconvert", *source, "--MNNModel", str(target), "--bizCode", "mar"])
        return _engine(converted, spec, work.threads)

    return load


def _engine(path: pathlib.Path, spec: EngineSpec, threads: int) -> Engine:
    """Load a graph that was converted."""
    names = [tensor.name for tensor in spec.inputs], [tensor.name for tensor in spec.outputs]
    precision = MNN.expr.PrecisionMode.High  # float32 also where the processor has less
    module = MNN.nn.load_module_from_file(str(path), *names, precision_mode=precision, thread_num=threads)

    def call(**inputs: Array) -> tuple[Array, ...]:
        outputs = module.forward([_variable(inputs[tensor.name], tensor) for tensor in spec.inputs])
        return tuple(output.read() for output in outputs)

    return call


def _variable(array: Array, tensor: TensorSpec) -> MNN.expr.Var:
    """Return an input of MNN, which has no int64."""
    integers = tensor.dtype == INT
    numbers = array.astype("int32") if integers else array
    return MNN.expr.const(numbers, list(array.shape), MNN.expr.NCHW, MNN.expr.int if integers else MNN.expr.float)

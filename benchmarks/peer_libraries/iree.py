"""IREE: a graph of the artifact at fixed sizes, compiled for this processor."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import iree.compiler.tools
import iree.runtime
import numpy as np
import onnx_ir
from iree.compiler.tools.import_onnx import __main__ as import_onnx
from onnxscript import optimizer

from benchmarks.peer_libraries.work import Load, Work, compiled_by_sizes, sizes_name
from runtime.artifact.artifact_folder import Artifact
from runtime.model.engine_spec import Array, Engine, EngineSpec
from runtime.storage.files import replacing_folder

_CODE, _WEIGHTS = "code.vmfb", "weights.irpa"
_STACK = "--iree-llvmcpu-stack-allocation-limit"  # in bytes; a normalization of MAR-B needs 123,200
_SCOPE = "model"  # the importer's name for the weights
_FUNCTION = "main_graph"  # the exporter's name for a graph


def iree_engines(work: Work) -> Load:
    """Run the artifact's graphs, each compiled for the sizes that it is called with."""
    artifact, folder = Artifact(pathlib.Path(work.artifact)), pathlib.Path(work.folder) / "iree"
    folder.mkdir(exist_ok=True)
    iree.runtime.flags.parse_flags(f"--task_topology_group_count={work.threads}")
    config = iree.runtime.Config("local-task")

    def load(spec: EngineSpec, sizes: Mapping[str, int]) -> Engine:
        compiled = folder / sizes_name(spec, sizes)
        if not compiled.is_dir():
            with replacing_folder(compiled) as target:
                _compile(artifact, spec, sizes, target)
        return _engine(compiled, spec, config)

    return lambda spec: compiled_by_sizes(spec, lambda sizes: load(spec, sizes))


def _compile(artifact: Artifact, spec: EngineSpec, sizes: Mapping[str, int], folder: pathlib.Path) -> None:
    """Write machine code and weights of an engine at fixed sizes to a folder."""
    model = onnx_ir.load(artifact.engine_file(spec.name))
    shapes = {tensor.name: tensor.sized(sizes) for tensor in (*spec.inputs, *spec.outputs)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = onnx_ir.Shape(shapes[str(value.name)])
    optimizer.fold_constants(model, onnx_shape_inference=True)  # IREE finds no size that is computed in the graph
    graph, imported = folder / "graph.onnx", folder / "graph.mlir"
    onnx_ir.save(model, graph)
    options = ["--data-dir", artifact.path, "--externalize-params", "--save-params-to", folder / _WEIGHTS]
    import_onnx.main(import_onnx.parse_arguments([str(graph), "-o", str(imported), *map(str, options)]))
    iree.compiler.tools.compile_file(
        str(imported),
        output_file=str(folder / _CODE),
        input_type="onnx",
        target_backends=["llvm-cpu"],
        extra_args=["--iree-llvmcpu-target-cpu=host", "--iree-opt-level=O3", f"{_STACK}={2**17}"],
    )


def _engine(folder: pathlib.Path, spec: EngineSpec, config: iree.runtime.Config) -> Engine:
    """Load what `_compile` wrote."""
    weights = iree.runtime.ParameterIndex()
    weights.load(str(folder / _WEIGHTS))
    modules = iree.runtime.load_vm_modules(
        iree.runtime.create_io_parameters_module(config.vm_instance, weights.create_provider(scope=_SCOPE)),
        iree.runtime.VmModule.mmap(config.vm_instance, str(folder / _CODE)),
        config=config,
    )
    function = modules[-1][_FUNCTION]

    def call(**inputs: Array) -> tuple[Array, ...]:
        outputs = function(*(inputs[tensor.name] for tensor in spec.inputs))
        return tuple(np.asarray(output) for output in (outputs if isinstance(outputs, tuple) else (outputs,)))

    return call

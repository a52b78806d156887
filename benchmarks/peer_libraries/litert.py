"""LiteRT: an exported PyTorch module at fixed sizes, converted by litert-torch and run on XNNPACK."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import litert_torch
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from benchmarks.peer_libraries.work import Load, Work, compiled_by_sizes, sizes_name
from mar_export.graphs.engine_modules import loop_modules
from mar_export.onnx_export.example_inputs import example_inputs
from runtime.artifact.artifact_folder import Artifact
from runtime.model.engine_spec import Array, Engine, EngineSpec
from runtime.storage.files import replacing
from training.checkpoints.random_weights import random_checkpoint


def litert_engines(work: Work) -> Load:
    """Run the exported modules, each converted for the sizes that it is called with."""
    config, folder = Artifact(pathlib.Path(work.artifact)).manifest.model, pathlib.Path(work.folder) / "litert"
    folder.mkdir(exist_ok=True)
    modules = loop_modules(random_checkpoint(work.model).model)

    def load(spec: EngineSpec, sizes: Mapping[str, int]) -> Engine:
        converted = folder / f"{sizes_name(spec, sizes)}.tflite"
        if not converted.is_file():
            with replacing(converted) as target:
                _convert(modules[spec.name], example_inputs(spec, config, sizes, seed=0), target)
        return _engine(converted, work.threads)

    return lambda spec: compiled_by_sizes(spec, lambda sizes: load(spec, sizes))


def _convert(module: nn.Module, inputs: Mapping[str, Array], path: pathlib.Path) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    litert_torch.convert(module, sample_kwargs=tensors).export(str(path))


def _engine(path: pathlib.Path, threads: int) -> Engine:
    """Load what `_convert` wrote."""
    interpreter = Interpreter(str(path), num_threads=threads)  # it uses XNNPACK where it can
    interpreter.allocate_tensors()
    signature = interpreter.get_signature_runner()  # the interpreter runs only once this is gone
    inputs, outputs = signature.get_input_details(), signature.get_output_details()

    def call(**arrays: Array) -> tuple[Array, ...]:
        for name, tensor in inputs.items():
            interpreter.set_tensor(tensor["index"], arrays[name].astype(tensor["dtype"], copy=False))
        interpreter.invoke()
        return tuple(interpreter.get_tensor(outputs[name]["index"]) for name in sorted(outputs))

    return call

"""The exported modules in PyTorch on a CPU, called by the runtime's own sampling loop.

They are a baseline of the benchmark that has all optimizations except the export, in eager mode, under `torch.compile`
or compiled ahead of time by AOTInductor.
"""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch._inductor.config
from torch.export import Dim

from mar_export.graphs.engine_modules import loop_modules
from mar_export.onnx_export.example_inputs import EXPORT_SIZES, example_inputs
from runtime.artifact.manifest import Manifest
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import Array, Engine, EngineSpec
from runtime.model.families import loop_specs
from training.models.mar import MAR


def eager_generator(manifest: Manifest, model: MAR, *, compiled: bool = False) -> Generator:
    """Return a generator that runs a model in PyTorch in place of exported engines.

    Args:
        manifest: The manifest with the model's sampling settings and the names of its engines, which are not used.
        model: The model, on the CPU in evaluation mode.
        compiled: Whether each engine runs under `torch.compile`.
    """
    specs = loop_specs(model.config, manifest.engines)
    engines = {
        name: torch_engine(torch.compile(module, dynamic=True) if compiled else module, specs[name])
        for name, module in loop_modules(model, specs).items()
    }
    description = f"torch {torch.__version__}, float32{', compiled' if compiled else ''}"
    return Generator(manifest, Engines(**engines), description)


def missing_compiler() -> str | None:
    """Return why AOTInductor cannot compile here, for people; None if it can."""
    compilers = [name for name in torch._inductor.config.cpp.cxx if name]
    return None if any(map(shutil.which, compilers)) else f"no C++ compiler; looked for {', '.join(compilers)}"


def save_packages(manifest: Manifest, model: MAR, folder: pathlib.Path) -> None:
    """Compile every engine of the sampling loop with AOTInductor, for the number of PyTorch's threads, to a package.

    Args:
        manifest: The manifest with the names of the engines.
        model: The model, on the CPU in evaluation mode.
        folder: An empty folder, for a file `<engine>.pt2` of each.
    """
    specs = loop_specs(model.config, manifest.engines)
    for name, module in loop_modules(model, specs).items():
        inputs = example_inputs(specs[name], model.config, EXPORT_SIZES, seed=0)
        with torch.no_grad():
            exported = torch.export.export(
                module,
                (),
                {tensor: torch.from_numpy(array) for tensor, array in inputs.items()},
                dynamic_shapes={
                    tensor.name: {
                        number: Dim.DYNAMIC for number, axis in enumerate(tensor.shape) if isinstance(axis, str)
                    }
                    for tensor in specs[name].inputs
                },
            )
            torch._inductor.aoti_compile_and_package(exported, package_path=str(folder / f"{name}.pt2"))


def package_generator(manifest: Manifest, folder: pathlib.Path) -> Generator:
    """Return a generator that runs the packages of `save_packages`."""
    specs = loop_specs(manifest.model, manifest.engines)
    engines = {
        name: torch_engine(torch._inductor.aoti_load_package(str(folder / f"{name}.pt2")), spec)
        for name, spec in specs.items()
    }
    return Generator(manifest, Engines(**engines), f"torch {torch.__version__}, float32, AOTInductor")


def torch_engine(module: Callable[..., Any], spec: EngineSpec) -> Engine:
    """Return an engine that calls a module with the inputs of its spec: named arrays to a tuple of arrays."""

    def call(**inputs: Array) -> tuple[Array, ...]:
        with torch.inference_mode():
            outputs = module(**{tensor.name: torch.from_numpy(inputs[tensor.name]) for tensor in spec.inputs})
        return tuple(output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,)))

    return call

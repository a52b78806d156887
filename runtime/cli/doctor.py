"""The command `mar doctor`."""

from __future__ import annotations

import os
import pathlib
import platform

import click
import numpy as np

from runtime import __version__
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.engine_builds import TARGETS, Build, incompatibility
from runtime.backends import available_threads
from runtime.backends.telemetry import import_library
from runtime.cli.options import PATH
from runtime.errors import BackendError, MarError
from runtime.gpu.current_gpu import Gpu, current_gpu


@click.command()
@click.argument("artifact", type=PATH, required=False)
def doctor(artifact: pathlib.Path | None) -> None:
    """Show which libraries and GPU this machine has, and which built engines of ARTIFACT it can load."""
    _line("mar", __version__)
    _line("python", f"{platform.python_version()}, {platform.machine()}, {platform.system()}")
    _line("processor", f"{available_threads()} of {os.cpu_count()} threads available")
    _line("numpy", np.__version__)
    _line("onnxruntime", _onnxruntime())
    _line("openvino", _openvino())
    versions: dict[str, str | None] = {}
    for target, module in TARGETS.items():
        versions[target], missing = _version(
            module, f"not installed; it is needed to build and run engines of {target}"
        )
        _line(target, versions[target] or missing)
    gpu = _gpu()
    if artifact is not None:
        _artifact(artifact, gpu, versions)


def _onnxruntime() -> str:
    version, missing = _version("onnxruntime", "not installed; pip install 'mar-runtime[cpu]'")
    if version is None:
        return missing
    providers = import_library("onnxruntime").get_available_providers()
    useful = [
        name.removesuffix("ExecutionProvider")
        for name in ("CUDAExecutionProvider", "CPUExecutionProvider")
        if name in providers
    ]
    return f"{version}, {', '.join(useful)}"


def _openvino() -> str:
    version, missing = _version("openvino", "not installed; pip install 'mar-runtime[openvino]'")
    if version is None:
        return missing
    from runtime.backends.openvino import open_openvino, openvino_version

    try:
        library, core = open_openvino("openvino")
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except (BackendError, RuntimeError) as error:
        return f"{version}; {error}"
    precisions = [name.lower() for name in ("FP32", "BF16", "INT8") if name in capabilities]
    return f"{openvino_version(library)}, supports {', '.join(precisions)} on this processor"


def _version(module: str, missing: str) -> tuple[str | None, str]:
    """Return the version of a library and "", or None and why there is none. A library that does not load has none."""
    try:
        return str(import_library(module).__version__), ""
    except (ImportError, OSError) as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == module
        return None, missing if absent else f"does not load: {error}"


def _gpu() -> Gpu | None:
    try:
        gpu = current_gpu()
    except BackendError as error:
        _line("gpu", str(error))
        return None
    memory = f"{gpu.memory_bytes / 2**30:.1f} GiB" + (", shared with the processor" if gpu.shared_memory else "")
    _line("gpu", f"{gpu.name}, {gpu.architecture}, {memory}; its driver supports CUDA up to {gpu.cuda}")
    _line("precisions", f"{', '.join(gpu.precisions)} on this GPU")
    return gpu


def _artifact(path: pathlib.Path, gpu: Gpu | None, versions: dict[str, str | None]) -> None:
    opened = Artifact(path)
    manifest = opened.manifest
    damage = None
    try:
        opened.verify(builds=True)
    except MarError as error:
        damage = str(error)
    click.echo(f"\n{path}: {manifest.precision}, {damage or 'every hash matches'}")
    if not manifest.builds:
        click.echo("  no TensorRT engines; mar build builds them for a GPU")
    for build in manifest.builds:
        problem = incompatibility(build, versions[build.target], gpu.architecture if gpu else None)
        click.echo(f"  {build.engine:13} {_built_for(build)}: {problem or 'loads here'}")
    if damage:
        click.get_current_context().exit(1)


def _built_for(build: Build) -> str:
    return f"{build.target} {build.library}, {', '.join(build.architectures)}"


def _line(subject: str, text: str) -> None:
    click.echo(f"{subject:13} {text}")

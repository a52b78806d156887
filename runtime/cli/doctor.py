"""The command `mar doctor`."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import click

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.engine_builds import TARGETS, incompatibility
from runtime.backends import available_threads
from runtime.backends.telemetry import import_library
from runtime.checks import pluralize
from runtime.cli.json_document import PrintDocument, json_document, json_option
from runtime.cli.options import PATH
from runtime.compatibility import running_precisions, untested_version
from runtime.errors import BackendError, MarError
from runtime.gpu.current_gpu import current_gpu
from runtime.version import __version__

_REMEDIES = {
    "onnxruntime": "pip install 'mar-runtime[cpu]'",
    "openvino": "pip install 'mar-runtime[openvino]'",
    **{target: f"it is needed to build and run engines of {target}" for target in TARGETS},
}
"""What to say of a library that is not installed."""

_PACKAGES = {"tensorrt-rtx": "tensorrt-rtx-cu12"}
"""The packages on PyPI of libraries that have another name there."""


@click.command()
@click.argument("artifact", type=PATH, required=False)
@json_option
def doctor(artifact: pathlib.Path | None, print_document: PrintDocument) -> None:
    """Show which libraries and GPU this machine has, and which built engines of ARTIFACT it can load."""
    found = _describe_machine()
    _print_machine(found)
    found["artifact"] = None
    if artifact is not None:
        found["artifact"] = _describe_artifact(artifact, found)
        _print_artifact(found["artifact"])
    print_document(json_document("doctor", found))
    if artifact is not None and found["artifact"]["damage"]:
        click.get_current_context().exit(1)


def _describe_machine() -> dict[str, Any]:
    gpu, gpu_problem = _describe_gpu()
    return {
        "mar": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "threads": {"available": available_threads(), "total": os.cpu_count()},
        "libraries": {
            "numpy": _library("numpy"),
            "onnxruntime": _onnxruntime(),
            "openvino": _openvino(),
            **{target: _library(module, target) for target, module in TARGETS.items()},
        },
        "gpu": gpu,
        "gpu_problem": gpu_problem,
    }


def _library(module: str, name: str | None = None) -> dict[str, Any]:
    """Describe a library: its version and what is unusual about it, or None and why it does not load."""
    name = name or module
    try:
        version = str(import_library(module).__version__)
        return {"version": version, "problem": untested_version(_PACKAGES.get(name, name), version)}
    except Exception as error:  # a library that is broken, or a folder of its name, raises nearly anything
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            return {"version": None, "problem": f"not installed; {_REMEDIES[name]}"}
        return {"version": None, "problem": f"does not load: {' '.join(str(error).split()) or type(error).__name__}"}


def _onnxruntime() -> dict[str, Any]:
    """Describe ONNX Runtime, with its devices and the precisions that it was seen to run on a processor."""
    found = {**_library("onnxruntime"), "devices": [], "precisions": []}
    if found["version"] is None:
        return found
    providers = import_library("onnxruntime").get_available_providers()
    devices = [name for name in ("CUDA", "CPU") if f"{name}ExecutionProvider" in providers]
    return {**found, "devices": devices, "precisions": running_precisions("onnxruntime")}


def _openvino() -> dict[str, Any]:
    """Describe OpenVINO, with the precisions that it has on this processor."""
    found = {**_library("openvino"), "precisions": []}
    if found["version"] is None:
        return found
    from runtime.backends.openvino import open_openvino, openvino_version

    try:
        library, core = open_openvino("openvino")
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except (BackendError, RuntimeError) as error:
        return {**found, "problem": str(error)}
    precisions = [name.lower() for name in ("FP32", "BF16", "INT8") if name in capabilities]
    version = openvino_version(library)
    return {"version": version, "problem": untested_version("openvino", version), "precisions": precisions}


def _describe_gpu() -> tuple[dict[str, Any] | None, str | None]:
    """Return the GPU and None, or None and why there is none."""
    try:
        gpu = current_gpu()
    except BackendError as error:
        return None, str(error)
    return {**dataclasses.asdict(gpu), "precisions": list(gpu.precisions)}, None


def _describe_artifact(path: pathlib.Path, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Describe an artifact: its damage, and for each of its builds why it does not load on this machine."""
    opened = Artifact(path)
    damage = None
    try:
        opened.verify(builds=True)
    except MarError as error:
        damage = str(error)
    architecture = machine["gpu"]["architecture"] if machine["gpu"] else None
    builds = [
        {
            "engine": build.engine,
            "target": build.target,
            "library": build.library,
            "architectures": list(build.architectures),
            "problem": incompatibility(build, machine["libraries"][build.target]["version"], architecture),
        }
        for build in opened.manifest.builds
    ]
    return {"path": str(path), "precision": opened.manifest.precision, "damage": damage, "builds": builds}


def _print_machine(found: Mapping[str, Any]) -> None:
    _line("mar", found["mar"])
    _line("python", f"{found['python']}, {found['machine']}, {found['system']}")
    _line("processor", f"{found['threads']['available']} of {pluralize(found['threads']['total'], 'thread')} available")
    for name, library in found["libraries"].items():
        parts = [library["version"], *library.get("devices", ())]
        if library.get("precisions"):
            parts.append(f"supports {', '.join(library['precisions'])} on this processor")
        text = ", ".join(part for part in parts if part)
        _line(name, "; ".join(part for part in (text, library["problem"]) if part))
    gpu = found["gpu"]
    if gpu is None:
        _line("gpu", found["gpu_problem"])
        return
    memory = f"{gpu['memory_bytes'] / 2**30:.1f} GiB" + (", shared with the processor" if gpu["shared_memory"] else "")
    _line("gpu", f"{gpu['name']}, {gpu['architecture']}, {memory}; its driver supports CUDA up to {gpu['cuda']}")
    _line("precisions", f"{', '.join(gpu['precisions'])} on this GPU")


def _print_artifact(found: Mapping[str, Any]) -> None:
    click.echo(f"\n{found['path']}: {found['precision']}, {found['damage'] or 'every hash matches'}")
    if not found["builds"]:
        click.echo("  no TensorRT engines; mar build builds them for a GPU")
    for build in found["builds"]:
        built_for = f"{build['target']} {build['library']}, {', '.join(build['architectures'])}"
        click.echo(f"  {build['engine']:13} {built_for}: {build['problem'] or 'loads here'}")


def _line(subject: str, text: str) -> None:
    click.echo(f"{subject:13} {text}")

"""A process that runs engines of an artifact with another library than the runtime's, and times them.

`benchmarks.peers` starts it. The first line of standard input is a JSON object with the keys of `Work`. Every further
line is one with the keys of `Calls`, and is answered by a line with the seconds of each call, or with why there are
none.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mar_export.onnx_export.example_inputs import example_inputs
from runtime.artifact.artifact_folder import Artifact
from runtime.backends import open_backend
from runtime.model.engine_spec import Engine, EngineSpec
from runtime.storage.files import replacing_folder
from runtime.storage.structured_files import parse_json


@dataclasses.dataclass(frozen=True)
class Work:
    """What runs.

    Attributes:
        peer: A key of `PEERS`.
        artifact: The folder of the artifact.
        model: The size of the model, whose random weights the artifact has.
        threads: The number of processor threads.
        folder: An existing folder for what a peer compiles, which is used again.
    """

    peer: str
    artifact: str
    model: str
    threads: int
    folder: str


@dataclasses.dataclass(frozen=True)
class Calls:
    """Calls of an engine with the same random inputs.

    Attributes:
        engine: The name of the engine.
        sizes: The size of each dynamic axis.
        calls: The number of calls.
        outputs: A file `.npz` to write the outputs to; None for none.
    """

    engine: str
    sizes: dict[str, int]
    calls: int
    outputs: str | None = None


Load = Callable[[EngineSpec], Engine]
"""Loads an engine by its spec."""


def onnxruntime(work: Work) -> Load:
    """Run the engines as the runtime does."""
    backend, artifact = open_backend("onnxruntime", "cpu", work.threads), Artifact(pathlib.Path(work.artifact))
    return lambda spec: backend.load(artifact, spec.name)


def openvino(work: Work) -> Load:
    """Run the engines on the other backend of the runtime."""
    backend, artifact = open_backend("openvino", "cpu", work.threads), Artifact(pathlib.Path(work.artifact))
    return lambda spec: backend.load(artifact, spec.name)


def eager(work: Work) -> Load:
    """Run the exported modules in eager PyTorch."""
    import torch

    from mar_export.graphs.engine_modules import loop_modules
    from mar_export.torch_backends.torch_cpu import torch_engine
    from training.checkpoints.random_weights import random_checkpoint

    torch.set_num_threads(work.threads)
    modules = loop_modules(random_checkpoint(work.model).model)
    return lambda spec: torch_engine(modules[spec.name], spec)


def aot_inductor(work: Work) -> Load:
    """Run the exported modules as AOTInductor compiles them."""
    import torch

    from mar_export.torch_backends.torch_cpu import missing_compiler, package_generator, save_packages
    from training.checkpoints.random_weights import random_checkpoint

    torch.set_num_threads(work.threads)
    manifest, packages = Artifact(pathlib.Path(work.artifact)).manifest, pathlib.Path(work.folder) / "packages"
    if not packages.is_dir():
        if (reason := missing_compiler()) is not None:
            sys.exit(f"aot-inductor: {reason}")
        with replacing_folder(packages) as folder:
            save_packages(manifest, random_checkpoint(work.model).model, folder)
    engines = package_generator(manifest, packages).engines
    return lambda spec: getattr(engines, spec.name)


PEERS: dict[str, Callable[[Work], Load]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "eager": eager,
    "aot-inductor": aot_inductor,
}
"""What opens each library."""


def main() -> None:
    """Answer calls until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries write to standard output, which is for answers
    work = Work(**parse_json(sys.stdin.readline()))
    load = functools.cache(PEERS[work.peer](work))
    manifest = Artifact(pathlib.Path(work.artifact)).manifest
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        calls = Calls(**parse_json(line))
        try:
            answer = _timed(load, calls, manifest)
        except Exception as error:  # a peer may refuse a graph or a size with any
            answer = {"refused": str(error).strip().split("\n")[0] or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)


def _timed(load: Load, calls: Calls, manifest: Any) -> dict[str, Any]:
    spec = manifest.specs[calls.engine]
    engine, inputs = load(spec), example_inputs(spec, manifest.model, calls.sizes, seed=0)
    seconds = []
    for _ in range(calls.calls):
        started = time.perf_counter()
        outputs = engine(**inputs)
        seconds.append(time.perf_counter() - started)
    if calls.outputs is not None:
        np.savez(calls.outputs, *outputs)
    return {"seconds": seconds}


if __name__ == "__main__":
    main()

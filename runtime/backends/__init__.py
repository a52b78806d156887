"""What runs an engine. A backend is imported only when it is asked for."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Protocol

from runtime.artifact.artifact_folder import Artifact
from runtime.errors import RequestError
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import Engine
from runtime.sampling.plan import PlanLoop


class Backend(Protocol):
    """Loads engines for one device.

    `description` names library, version and device for people; `precisions` are those of
    `runtime.artifact.manifest.PRECISIONS` that it has products for.
    """

    description: str
    precisions: Sequence[str]

    def load(self, artifact: Artifact, name: str) -> Engine:
        """The engine called `name` of a verified artifact. Raises `BackendError`."""

    def loop(self, config: ModelConfig) -> PlanLoop | None:
        """What executes plans with the engines loaded here, where the device can do better than the host."""

    def close(self) -> None:
        """Free every engine loaded here; they must not be called afterwards."""


# Where each runs, the usual device first: module and class, made with the name, threads and CUDA graphs or not.
BACKENDS = {
    "onnxruntime": {
        "cpu": "runtime.backends.onnxruntime:OnnxRuntime",
        "cuda": "runtime.backends.onnxruntime_cuda:OnnxRuntimeCuda",
    },
    "openvino": {"cpu": "runtime.backends.openvino:OpenVino"},
    "tensorrt": {"cuda": "runtime.backends.tensorrt:TensorRT"},
    "tensorrt-rtx": {"cuda": "runtime.backends.tensorrt:TensorRT"},
}


def available_threads() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_backend(name: str, device: str | None, threads: int | None, cuda_graphs: bool = True) -> Backend:
    """The backend called `name` on `device`, its usual one if None.

    `threads` are processor threads, all there are if None; `cuda_graphs` whether a GPU replays whole
    iterations, which gives the same images sooner.
    """
    if name not in BACKENDS:
        raise RequestError(f"unknown backend {name!r}; this version has {', '.join(BACKENDS)}")
    if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
        raise RequestError(f"threads must be a whole number in 1..1024, found {threads!r}")
    devices = BACKENDS[name]
    if device is None:
        device = next(iter(devices))
    if device not in devices:
        raise RequestError(f"backend {name} runs on {', '.join(devices)} in this version, not on {device!r}")
    module, attribute = devices[device].split(":")
    made = getattr(importlib.import_module(module), attribute)
    backend: Backend = made(name, threads or available_threads(), cuda_graphs)
    return backend

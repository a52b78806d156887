"""Backends, which run engines on one device. Each is imported only when it is opened."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Sequence
from typing import Protocol

from runtime.artifact.artifact_folder import Artifact
from runtime.backends.control_groups import cpu_quota
from runtime.checks import check_bool, check_int, truncate
from runtime.errors import RequestError
from runtime.model.engine_spec import Engine
from runtime.model.family_config import FamilyConfig
from runtime.sampling.plan import PlanLoop


class Backend(Protocol):
    """Loads the engines of an artifact with one library, for one device.

    Attributes:
        description: The library, its version and the device, for people.
        precisions: The precisions of `runtime.artifact.manifest.PRECISIONS` that it can run.
    """

    description: str
    precisions: Sequence[str]

    def load(self, artifact: Artifact, name: str) -> Engine:
        """Load an engine of an artifact whose files were verified.

        Raises:
            BackendError: The library cannot load the engine, or it differs from its spec in the manifest.
        """

    def loop(self, config: FamilyConfig) -> PlanLoop | None:
        """Create the loop that executes plans on the device with the loaded engines.

        Returns:
            The loop, or None if the backend has none: then the loop on the host calls the engines.
        """

    def close(self) -> None:
        """Free all loaded engines, which must not be called afterwards."""


# Backend -> device -> module and class. The first device is the default. A class is called with the backend's name, the
# number of threads, and whether CUDA graphs are used.
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
    """Return the number of processor threads that this process may use.

    These are the processors that it may run on, but no more than its control group's quota of processor time, rounded
    up: a container with 1.5 processors gets 2 threads.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return processors if quota is None else min(processors, math.ceil(quota))


def uses_gpu(name: str, device: str | None) -> bool:
    """Return whether a backend runs on a GPU, by the name and the device that `open_backend` gets, valid or not."""
    return (device or next(iter(BACKENDS.get(name, {})), None)) == "cuda"


def open_backend(name: str, device: str | None, threads: int | None, cuda_graphs: bool = True) -> Backend:
    """Open a backend.

    Args:
        name: One of `BACKENDS`.
        device: The device, `cpu` or `cuda`; by default the first that the backend has.
        threads: The number of processor threads; by default all that this process may use.
        cuda_graphs: Whether a GPU replays whole iterations as CUDA graphs. Images are the same, but faster.

    Raises:
        RequestError: The backend, the device or the number of threads is not valid.
        BackendError: The library is not installed or does not load, or there is no GPU.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise RequestError(f"unknown backend {truncate(name)}; this version has {', '.join(BACKENDS)}")
    if threads is not None:
        check_int("threads", threads, 1, 1024)
    check_bool("cuda_graphs", cuda_graphs)
    devices = BACKENDS[name]
    if device is None:
        device = next(iter(devices))
    if not isinstance(device, str) or device not in devices:
        raise RequestError(f"backend {name} runs on {', '.join(devices)} in this version, not on {truncate(device)}")
    module, attribute = devices[device].split(":")
    backend_class = getattr(importlib.import_module(module), attribute)
    backend: Backend = backend_class(name, int(threads or available_threads()), bool(cuda_graphs))
    return backend

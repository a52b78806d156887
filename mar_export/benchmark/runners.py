"""The runners of the benchmark: each generates the same images on request, in a process of its own.

A separate process gives a runner its own thread pools and its own peak of memory, and keeps PyTorch out of the process
of the runtime. It is stopped between its turns, because threads that spin would take the processor from the others.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import pathlib
import signal
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mar_export.benchmark.peak_memory import peak_memory_bytes
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.backends import BACKENDS
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.checks import pluralize
from runtime.engine_clocks import with_clocks
from runtime.errors import BackendError, MarError, RequestError
from runtime.generator import Generator
from runtime.model.families import check_supported, family_of, imported
from runtime.sampling.constraints import plan_for
from runtime.sampling.plan import Plan
from runtime.sampling.rng import seeded_noise, seeded_order
from runtime.storage.files import replacing_folder

if TYPE_CHECKING:
    from training.checkpoints.checkpoint import Checkpoint

NAIVE_RUNNER = "the runner naive-onnx"
"""Its name in `Family.refused`."""

AOT_RUNNER = "aot-inductor"
"""The runner whose engines are compiled before it starts."""

Stages = dict[str, float]
"""Seconds by the name of the stage."""

Generate = Callable[[Mapping[str, Any]], Stages]
"""Generates one batch with the settings of `Runner.generate`; returns the seconds of each stage."""


@dataclasses.dataclass(frozen=True)
class RunnerInputs:
    """What a runner needs to start: everything is opened in the runner's own process.

    Attributes:
        artifact: The artifact folder.
        checkpoint: The weights that the artifact was exported from; None for random weights, and for runners that need
            none.
        config_file: JSON with constructor arguments of a published checkpoint, or None.
        random_model: The model size whose random weights are used in place of a checkpoint, or None.
        naive: The folder of the graphs of `naive-onnx`.
        packages: The folder of the packages of `aot-inductor`.
        request: The named arguments that say what the images of one batch show.
        batch: Their number.
        threads: The number of processor threads.
    """

    artifact: pathlib.Path
    checkpoint: pathlib.Path | None
    config_file: pathlib.Path | None
    random_model: str | None
    naive: pathlib.Path
    packages: pathlib.Path
    request: Mapping[str, Any]
    batch: int
    threads: int


class Runner:
    """A runner in its own process.

    Every method raises `BackendError`, with the runner's name, if the process fails or ends.

    Attributes:
        name: A key of `RUNNERS`.
        description: The library and the device that the runner runs on, for reports.
    """

    def __init__(self, name: str, inputs: RunnerInputs, wait_policy: str | None = None) -> None:
        """Start the process.

        Args:
            name: A key of `RUNNERS`.
            inputs: What the runner opens.
            wait_policy: One of `WAIT_POLICIES`, or None for that of the environment.
        """
        self.name = name
        context = multiprocessing.get_context("spawn")  # a fork would inherit this process's threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, inputs, wait_policy, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.description: str = self._receive()
        self._signal(signal.SIGSTOP)

    def generate(self, settings: Mapping[str, Any]) -> tuple[float, Stages]:
        """Generate one batch with these sampling settings; returns the seconds in all, and in each stage.

        Arguments of the request of the inputs can be among the settings: the batch then shows these images instead.
        """
        self._send(dict(settings))
        seconds, stages = self._receive()
        self._signal(signal.SIGSTOP)
        return seconds, stages

    def finish(self) -> int:
        """End the process, and return the peak of its memory in bytes."""
        self._send(None)
        peak: int = self._receive()
        self._process.join()
        return peak

    def stop(self) -> None:
        """End the process at once, also in the middle of a generation."""
        self._process.terminate()
        self._signal(signal.SIGCONT)
        self._process.join()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.is_alive():
            assert self._process.pid is not None
            os.kill(self._process.pid, number)

    def _send(self, request: Mapping[str, Any] | None) -> None:
        self._signal(signal.SIGCONT)
        try:
            self._connection.send(request)
        except BrokenPipeError:
            raise self._ended() from None

    def _receive(self) -> Any:
        try:
            failure, answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._ended() from None
        if failure:
            raise BackendError(f"{self.name}: {failure}")
        return answer

    def _ended(self) -> BackendError:
        return BackendError(f"the process of {self.name} ended; not enough memory?")


def _serve(name: str, inputs: RunnerInputs, wait_policy: str | None, connection: Connection) -> None:
    """Answer requests until one is None. An answer is a pair: the failure or None, and the value."""
    try:
        described = ""
        if wait_policy is not None:
            os.environ["OMP_WAIT_POLICY"] = wait_policy  # OpenMP reads it when PyTorch is imported
            described = f", OMP_WAIT_POLICY={wait_policy}"
        description, generate = RUNNERS[name](inputs)
        connection.send((None, f"{description}{described}"))
        while (settings := connection.recv()) is not None:
            started = time.perf_counter()
            stages = generate(settings)
            seconds = time.perf_counter() - started
            connection.send((None, (seconds, {**stages, "rest": seconds - sum(stages.values())})))
        connection.send((None, peak_memory_bytes()))
    except KeyboardInterrupt:
        pass  # the benchmark's own process receives it too, and reports it
    except MarError as error:
        connection.send((str(error), None))
    except Exception as error:  # any failure must reach the benchmark's own process
        connection.send((f"{type(error).__name__}: {error}", None))


def _runtime(inputs: RunnerInputs, backend: str, device: str) -> tuple[str, Generate]:
    """This runtime on one of its backends, every engine timed."""
    generator = Generator.load(inputs.artifact, backend=backend, device=device, threads=inputs.threads)
    return _timed_generator(generator, inputs)


def _torch_engines(inputs: RunnerInputs, compiled: bool) -> tuple[str, Generate]:
    """This runtime's loop with the exported modules in PyTorch in place of engines."""
    from mar_export.torch_backends.torch_cpu import eager_generator

    manifest, checkpoint = _in_torch(inputs)
    return _timed_generator(eager_generator(manifest, checkpoint.model, compiled=compiled), inputs)


def _aot_inductor(inputs: RunnerInputs) -> tuple[str, Generate]:
    """This runtime's loop with engines that AOTInductor has compiled."""
    import torch

    from mar_export.torch_backends.torch_cpu import package_generator

    torch.set_num_threads(inputs.threads)
    return _timed_generator(package_generator(Artifact(inputs.artifact).manifest, inputs.packages), inputs)


def _eager(inputs: RunnerInputs) -> tuple[str, Generate]:
    """The published loop as its authors run it: averaged weights, inference mode, PyTorch's default attention."""
    import torch

    manifest, checkpoint = _in_torch(inputs)
    sample_request = imported(family_of(manifest.model).eager).sample_request

    def generate(settings: Mapping[str, Any]) -> Stages:
        times: Stages = {}
        asked, sampling = _asked(inputs, settings)
        sample_request(checkpoint.model, asked.request, *_drawn(manifest, asked, sampling), times)
        return times

    return f"torch {torch.__version__}, float32, {pluralize(inputs.threads, 'thread')}", generate


def _naive_onnx(inputs: RunnerInputs) -> tuple[str, Generate]:
    """The model exported without this project's optimizations, called from a loop in numpy."""
    from mar_export.benchmark.naive_onnx import NaiveEngines

    manifest = Artifact(inputs.artifact).manifest
    backend = OnnxRuntime("onnxruntime", inputs.threads)
    engines = NaiveEngines.load(backend, inputs.naive, check_supported(manifest.model, NAIVE_RUNNER))

    def generate(settings: Mapping[str, Any]) -> Stages:
        asked, sampling = _asked(inputs, settings)
        plan, order, noise = _drawn(manifest, asked, sampling)
        times: Stages = {}
        engines.sample(plan, np.array(asked.request["labels"], np.int64), order, noise, times)
        return times

    return backend.description, generate


def _asked(inputs: RunnerInputs, settings: Mapping[str, Any]) -> tuple[RunnerInputs, dict[str, Any]]:
    """Split the settings of `Runner.generate`: return the inputs with the request that is in them, and the others."""
    request = {name: settings.get(name, value) for name, value in inputs.request.items()}
    sampling = {name: value for name, value in settings.items() if name not in request}
    return dataclasses.replace(inputs, request=request, batch=len(next(iter(request.values())))), sampling


def _drawn(
    manifest: Manifest, inputs: RunnerInputs, settings: Mapping[str, Any]
) -> tuple[Plan, NDArray[np.int64], NDArray[np.float32]]:
    """Resolve the settings of a request to plan, order [B, L] and noise, as `Generator.generate` does."""
    config, indices = manifest.model, range(inputs.batch)
    plan = plan_for(config, manifest.resolve_sampling(settings))
    order = seeded_order(0, indices, config, plan.token_order)
    return plan, order, seeded_noise(0, indices, plan.noise_steps, config)


_DEFAULT = ("onnxruntime", "cpu")
RUNTIMES = {
    "runtime" if (backend, device) == _DEFAULT else f"runtime-{backend}-{device}": (backend, device)
    for backend, devices in BACKENDS.items()
    for device in devices
}
"""Runners that are this runtime, by name: the backend and the device. `runtime` is ONNX Runtime on a CPU."""

Open = Callable[[RunnerInputs], tuple[str, Generate]]
"""Opens a runner; returns its description and what generates with it."""

TORCH_RUNNERS: dict[str, Open] = {
    "eager": _eager,
    "eager-optimized": functools.partial(_torch_engines, compiled=False),
    "compile": functools.partial(_torch_engines, compiled=True),
    AOT_RUNNER: _aot_inductor,
}
"""The runners in PyTorch, by name."""

RUNNERS: dict[str, Open] = {
    **{
        name: functools.partial(_runtime, backend=backend, device=device)
        for name, (backend, device) in RUNTIMES.items()
    },
    "naive-onnx": _naive_onnx,
    **TORCH_RUNNERS,
}
"""Every runner by its name."""

WAIT_POLICIES = ("active", "passive")
"""How the threads of OpenMP, which PyTorch uses, wait for work: they spin, or they sleep.

Spinning is faster on an idle machine, and several times slower on a busy one.
"""


def wait_policies(name: str) -> tuple[str | None, ...]:
    """Return the wait policies that a runner is timed with: None stands for no choice."""
    return WAIT_POLICIES if name in TORCH_RUNNERS else (None,)


def checked_checkpoint(inputs: RunnerInputs) -> tuple[Manifest, Checkpoint]:
    """Open the manifest of the artifact and the checkpoint that it was exported from.

    Raises:
        RequestError: The checkpoint is missing, or the artifact was exported from another one.
    """
    from mar_export.artifact.exported_checkpoint import as_exported

    return Artifact(inputs.artifact).manifest, as_exported(open_checkpoint(inputs), inputs.artifact)


def compile_packages(inputs: RunnerInputs) -> None:
    """Compile the engines of `aot-inductor` into `inputs.packages`, for the number of threads of the inputs."""
    from mar_export.torch_backends.torch_cpu import save_packages

    manifest, checkpoint = _in_torch(inputs)
    with replacing_folder(inputs.packages) as folder:
        save_packages(manifest, checkpoint.model, folder)


def _in_torch(inputs: RunnerInputs) -> tuple[Manifest, Checkpoint]:
    """Open manifest and checkpoint for a runner in PyTorch, and set the number of PyTorch's threads."""
    import torch

    torch.set_num_threads(inputs.threads)
    return checked_checkpoint(inputs)


def open_checkpoint(inputs: RunnerInputs) -> Checkpoint:
    """Open the checkpoint of a benchmark: random weights of a model size, or those of a file.

    Raises:
        RequestError: There is neither.
    """
    from training.checkpoints.checkpoint import load_checkpoint
    from training.checkpoints.random_weights import random_checkpoint

    if inputs.random_model is not None:
        return random_checkpoint(inputs.random_model)
    if inputs.checkpoint is None:
        raise RequestError("eager PyTorch and naive-onnx need the weights; add --checkpoint")
    return load_checkpoint(inputs.checkpoint, inputs.config_file, autoencoder=False, any_family=True)


def _timed_generator(generator: Generator, inputs: RunnerInputs) -> tuple[str, Generate]:
    """Time every engine of a generator, or its loop as one stage where that runs on a device.

    The decoder is left out: other runners draw latents, and the roofline ends there.
    """
    generator.engines = dataclasses.replace(generator.engines, decoder=None)
    timed, clocks = with_clocks(generator)

    def generate(settings: Mapping[str, Any]) -> Stages:
        for clock in clocks.values():
            clock.seconds = 0.0
        timed.generate(**{**inputs.request, **settings})
        return {name: clock.seconds for name, clock in clocks.items()}

    return generator.description, generate

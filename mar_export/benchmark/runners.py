"""Who takes part in the benchmark: each in a process of its own, drawing the same images on request.

A process of its own gives a runner its own thread pools and its own peak of memory, and keeps
PyTorch out of the runtime's.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import pathlib
import resource
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.backends import BACKENDS
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.errors import BackendError, MarError, RequestError
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import DEVICE
from runtime.sampling.plan import build_plan
from runtime.sampling.rng import seeded_noise, seeded_order

if TYPE_CHECKING:
    from training.checkpoints.checkpoint import Checkpoint

Stages = dict[str, float]  # stage -> seconds
Draw = Callable[[Mapping[str, Any]], Stages]  # settings of a request -> the seconds of each stage


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is drawn, with what: paths for processes to open."""

    artifact: pathlib.Path
    checkpoint: pathlib.Path | None  # None for random weights
    config_file: pathlib.Path | None
    random_model: str | None
    naive: pathlib.Path  # folder of the naive graphs
    labels: tuple[int, ...]
    threads: int


class Runner:
    """A runner in its process. Raises `BackendError` where that fails."""

    def __init__(self, name: str, entry: Entry) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")  # a fork would inherit this process's threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, entry, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.description: str = self._answer()

    def draw(self, settings: Mapping[str, Any]) -> tuple[float, Stages]:
        """Draw once: seconds in all, and in each stage."""
        self._ask(dict(settings))
        seconds, stages = self._answer()
        return seconds, stages

    def finish(self) -> int:
        """End the process; its peak of memory in bytes."""
        self._ask(None)
        peak: int = self._answer()
        self._process.join()
        return peak

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.terminate()
        self._process.join()

    def _ask(self, request: Mapping[str, Any] | None) -> None:
        try:
            self._connection.send(request)
        except BrokenPipeError:
            raise self._ended() from None

    def _answer(self) -> Any:
        try:
            failure, answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._ended() from None
        if failure:
            raise BackendError(f"{self.name}: {failure}")
        return answer

    def _ended(self) -> BackendError:
        return BackendError(f"the process of {self.name} ended; not enough memory?")


def _serve(name: str, entry: Entry, connection: Connection) -> None:
    """Answer requests until one is None. An answer is a pair: what failed, or None; and the value."""
    try:
        description, draw = RUNNERS[name](entry)
        connection.send((None, description))
        while (settings := connection.recv()) is not None:
            started = time.perf_counter()
            stages = draw(settings)
            seconds = time.perf_counter() - started
            connection.send((None, (seconds, {**stages, "rest": seconds - sum(stages.values())})))
        connection.send((None, _peak_bytes()))
    except KeyboardInterrupt:
        pass  # the other process has it too, and says so
    except MarError as error:
        connection.send((str(error), None))
    except Exception as error:  # told to the other process, whatever it is
        connection.send((f"{type(error).__name__}: {error}", None))


def _peak_bytes() -> int:
    """The most memory this process ever had."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:  # no Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not getrusage here: its figure outlives exec, so it would be the parent's where that is larger.
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def _runtime(entry: Entry, backend: str, device: str) -> tuple[str, Draw]:
    """This runtime on one of its backends, each engine wrapped in a clock."""
    generator = Generator.load(entry.artifact, backend=backend, device=device, threads=entry.threads)
    return _clocked(generator, entry)


def _eager_optimized(entry: Entry) -> tuple[str, Draw]:
    """This runtime's loop on the modules that are exported, in PyTorch."""
    from mar_export.torch_backends.torch_cpu import eager_generator

    manifest, checkpoint = _in_torch(entry)
    return _clocked(eager_generator(manifest, checkpoint.model), entry)


def _compiled(entry: Entry) -> tuple[str, Draw]:
    """The same under `torch.compile`."""
    from mar_export.torch_backends.torch_cpu import eager_generator

    manifest, checkpoint = _in_torch(entry)
    return _clocked(eager_generator(manifest, checkpoint.model, compiled=True), entry)


def _eager(entry: Entry) -> tuple[str, Draw]:
    """The published loop as its authors run it: averaged weights, inference mode, PyTorch's default attention."""
    import torch

    from training.models.reference_loop import sample

    manifest, checkpoint = _in_torch(entry)
    labels, config = np.array(entry.labels), manifest.model

    def draw(settings: Mapping[str, Any]) -> Stages:
        plan = build_plan(config.tokens, manifest.resolve_sampling(settings))
        order = seeded_order(0, range(len(labels)), config, plan.token_order)
        noise = seeded_noise(0, range(len(labels)), plan.diffusion_steps, config)
        times: Stages = {}
        sample(checkpoint.model, labels, plan, order, noise, times=times)
        return times

    return f"torch {torch.__version__}, float32, {entry.threads} threads", draw


def _naive_onnx(entry: Entry) -> tuple[str, Draw]:
    """The model exported as it is written, called from a loop in numpy."""
    from mar_export.benchmark.naive_onnx import naive_specs, sample_naive

    manifest = Artifact(entry.artifact).manifest
    labels, config = np.array(entry.labels), manifest.model
    runner = OnnxRuntime("onnxruntime", entry.threads)
    specs = naive_specs(config)
    backbone, head = (runner.load_graph(entry.naive / f"{name}.onnx", spec) for name, spec in specs.items())

    def draw(settings: Mapping[str, Any]) -> Stages:
        plan = build_plan(config.tokens, manifest.resolve_sampling(settings))
        order = seeded_order(0, range(len(labels)), config, plan.token_order)
        noise = seeded_noise(0, range(len(labels)), plan.diffusion_steps, config)
        times: Stages = {}
        sample_naive(backbone, head, config, plan, labels, order, noise, times)
        return times

    return runner.description, draw


# This runtime by where it runs: plainly "runtime" on ONNX Runtime and a CPU, and named for every other place.
_USUAL = ("onnxruntime", "cpu")
RUNTIMES = {
    "runtime" if (backend, device) == _USUAL else f"runtime-{backend}-{device}": (backend, device)
    for backend, devices in BACKENDS.items()
    for device in devices
}
RUNNERS: dict[str, Callable[[Entry], tuple[str, Draw]]] = {
    **{
        name: functools.partial(_runtime, backend=backend, device=device)
        for name, (backend, device) in RUNTIMES.items()
    },
    "naive-onnx": _naive_onnx,
    "eager": _eager,
    "eager-optimized": _eager_optimized,
    "compile": _compiled,
}


def checked_checkpoint(entry: Entry) -> tuple[Manifest, Checkpoint]:
    """The artifact's manifest and the weights that it was exported from. Raises `RequestError`."""
    manifest, checkpoint = Artifact(entry.artifact).manifest, open_checkpoint(entry)
    if checkpoint.sha256 != manifest.provenance.get("checkpoint_sha256"):
        raise RequestError(
            f"{entry.checkpoint or checkpoint.source} is not the checkpoint that the artifact was exported from; "
            "export it first"
        )
    return manifest, checkpoint


def _in_torch(entry: Entry) -> tuple[Manifest, Checkpoint]:
    """The same, with PyTorch on as many threads as are asked for."""
    import torch

    torch.set_num_threads(entry.threads)
    return checked_checkpoint(entry)


def open_checkpoint(entry: Entry) -> Checkpoint:
    """The weights of an entry: random ones, or a file's."""
    from training.checkpoints.checkpoint import load_checkpoint
    from training.checkpoints.random_weights import random_checkpoint

    if entry.random_model is not None:
        return random_checkpoint(entry.random_model)
    if entry.checkpoint is None:
        raise RequestError("eager PyTorch and naive-onnx need the weights: give --checkpoint")
    return load_checkpoint(entry.checkpoint, entry.config_file)


def _clocked(generator: Generator, entry: Entry) -> tuple[str, Draw]:
    """Draws with a clock around every engine, or around the loop of a device that executes plans itself."""
    manifest, description = generator.manifest, generator.description
    if generator.on_host:
        engines = {field.name: getattr(generator.engines, field.name) for field in dataclasses.fields(Engines)}
        clocks = {name: _Clock(engine) for name, engine in engines.items() if engine is not None}
        timed = Generator(manifest, Engines(**clocks), description)
    else:
        clocks = {DEVICE: _Clock(generator.loop)}
        timed = Generator(manifest, generator.engines, description, loop=clocks[DEVICE])

    def draw(settings: Mapping[str, Any]) -> Stages:
        for clock in clocks.values():
            clock.seconds = 0.0
        timed.generate(entry.labels, **settings)
        return {name: clock.seconds for name, clock in clocks.items()}

    return generator.description, draw


class _Clock:
    """An engine, or a loop, that adds up the time spent in it."""

    def __init__(self, timed: Callable[..., Any]) -> None:
        self._timed, self.seconds = timed, 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        found = self._timed(*arguments, **named)
        self.seconds += time.perf_counter() - started
        return found
